"""What a search found, as lines, as data and as a sheet of pictures."""

import html
import webbrowser
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.files import write_atomically
from protocol.terminal import Outcome, say

if TYPE_CHECKING:
    from client.searcher.searcher import Results


def outcome(sentence: str, results: "Results", sheet: Path | None) -> Outcome:
    """Return what a search found, for people and for programs; write the picture sheet."""
    for name, note in results.notes.items():
        say(f"{name}: {note.message}")
    lines = [
        f"{place:>3}  {one.score:+.4f}  {one.institution:<16} #{one.position:<6} {one.caption}"
        for place, one in enumerate(results, 1)
    ]
    up = sum(one.upload_bytes for one in results.traffic.values())
    down = sum(one.download_bytes for one in results.traffic.values())
    lines.append(
        f"{len(results.traffic) - len(results.notes)} institutions answered in "
        f"{results.milliseconds['total']:.0f} ms; {up:,} bytes of ciphertext went out, "
        f"{down:,} bytes came back"
    )
    if sheet is not None:
        write_atomically(sheet, "".join(_sheet(sentence, results)))
        lines.append(f"pictures: {sheet}")
    data = {
        "results": [
            {
                "institution": one.institution,
                "position": one.position,
                "score": one.score,
                "caption": one.caption or None,
            }
            for one in results
        ],
        "notes": {name: note.message for name, note in results.notes.items()},
        "upload_bytes": up,
        "download_bytes": down,
        "milliseconds": results.milliseconds,
        "sheet": str(sheet) if sheet else None,
    }
    return Outcome("\n".join(lines), data)


def open_sheet(sheet: Path) -> None:
    """Show a picture sheet in the user's browser."""
    webbrowser.open(sheet.resolve().as_uri())


def _sheet(sentence: str, results: "Results") -> Iterable[str]:
    yield (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        "<style>:root{color-scheme:light dark}body{font:16px system-ui;margin:2rem}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:1rem}"
        "figure{margin:0}img{width:100%;border-radius:8px}figcaption{font-size:.85rem}</style>"
        f"<title>{html.escape(sentence)}</title><h1>{html.escape(sentence)}</h1><main>"
    )
    for one in results:
        picture = b64encode(one.thumbnail).decode()
        shown = f"<img alt='' src='data:image/jpeg;base64,{picture}'>" if picture else ""
        yield (
            f"<figure>{shown}<figcaption>{html.escape(one.institution)} · {one.score:.3f} "
            f"{html.escape(one.caption)}</figcaption></figure>"
        )
    yield "</main>"
