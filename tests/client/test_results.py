"""What was found, as a page, a table, files and pictures in a terminal; captions are hostile."""

import io
import json
import re
import stat
import sys
import webbrowser
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.text import Text

from client.searcher.lines import account, listing, picture_columns, printable, privacy
from client.searcher.mosaic import mosaic
from client.searcher.query import Query
from client.searcher.results import Result, Results
from client.searcher.sheet import outcome
from client.searcher.traffic import Traffic
from protocol.errors import DataError, ServiceError

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J<script>alert(1)</script>\" onload='x' {{7*7}} \u202eevil\n"


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, "JPEG")
    return made.getvalue()


def results(*ranked: Result, notes: dict | None = None, query: str = HOSTILE) -> Results:
    traffic = {"clinic": Traffic(1000, 2000, {}, 1, 1, 20, 10, questions_left=41)}
    return Results(
        Query(query), ranked, notes or {}, traffic, {"total": 12.0}, frozenset({"clinic"})
    )


RED = Result("clinic", 7, 0.91, jpeg((250, 0, 0)), HOSTILE)
BARE = Result("museum", 3, 0.5, b"", "")
DAMAGED = Result("museum", 4, 0.4, b"\xff\xd8\xff damaged", "a caption")


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data


def test_a_hostile_caption_is_only_words_on_the_page(tmp_path: Path) -> None:
    found = results(RED, BARE)
    found.save(tmp_path / "a.html")
    for text in ((tmp_path / "a.html").read_text(), found._repr_html_(), RED._repr_html_()):
        page = Page(text)
        assert "script" not in {tag for tag, _ in page.elements}
        for tag, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes)
            if tag == "img":
                assert attributes["alt"] == HOSTILE
                assert attributes["src"].startswith("data:image/jpeg;base64,")
        assert "<script>alert(1)</script>" in page.said and "{{7*7}}" in page.said
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", (tmp_path / "a.html").read_text())
    assert "default-src 'none'" in (tmp_path / "a.html").read_text()


def test_a_table_has_a_row_for_each() -> None:
    table = results(RED, BARE).to_pandas()
    assert list(table["institution"]) == ["clinic", "museum"]
    assert list(table["position"]) == [7, 3] and table["score"][0] == 0.91
    assert table["thumbnail"][0] == RED.thumbnail and table["caption"][1] == ""
    assert results().to_pandas().empty


def test_pictures_are_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = b"<?php evil ?>"
    foreign = Result("clinic", 7, 0.9, jpeg((250, 0, 0)) + hidden, "")
    results(foreign, BARE, DAMAGED).save(tmp_path / "folder")
    (written,) = (tmp_path / "folder").iterdir()
    assert written.name == "001-clinic-7.jpg"
    assert hidden not in written.read_bytes()
    red, green, _ = Image.open(written).getpixel((20, 15))
    assert red > 240 and green < 10
    assert "museum #4" in capsys.readouterr().err


def test_as_a_sequence_and_as_plain_values() -> None:
    found = results(RED, BARE, notes={"harbour": ServiceError("it is down")})
    assert len(found) == 2 and found[0] is RED and list(found) == [RED, BARE]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["notes"] == {"harbour": "it is down"}
    assert told["results"][1] == {
        "institution": "museum",
        "position": 3,
        "score": 0.5,
        "caption": None,
        "id": None,
    }
    assert told["privacy"]["clinic"]["decoys"] == 10 and told["upload_bytes"] == 1000


def test_a_picture_is_decoded_or_refused() -> None:
    assert RED.picture().size == (40, 30)
    for one in (BARE, DAMAGED):
        with pytest.raises(DataError, match=f"{one.institution} #{one.position}"):
            one.picture()


class Browser(webbrowser.BaseBrowser):
    """Remembers what it was asked to show."""

    def __init__(self) -> None:
        super().__init__("remembering")
        self.shown: list[str] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        self.shown.append(url)
        return True


BROWSER = Browser()
webbrowser.register("remembering", None, BROWSER)


def test_without_a_notebook_the_browser_shows_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(webbrowser._browsers, "remembering", [None, BROWSER])
    monkeypatch.setattr(webbrowser, "_tryorder", ["remembering"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    results(RED).show()
    (url,) = BROWSER.shown
    path = Path(url.removeprefix("file://"))
    assert path.parent == tmp_path and "clinic" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def safe(text: str) -> bool:
    return all(letter.isprintable() or letter in "\u200c\u200d" for letter in text)


@given(st.text())
def test_nothing_that_steers_a_terminal_is_printable(text: str) -> None:
    shown = printable(text)
    assert safe(shown)
    if safe(text):
        assert shown == text


def test_words_survive_and_escapes_are_seen() -> None:
    assert printable("a\tred\ncar 👨‍👩‍👧 سيارة") == "a red car 👨‍👩‍👧 سيارة"
    assert printable("\x1b[2J\x9b\u202e") == "\\x1b[2J\\x9b\\u202e"


def test_no_control_character_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = results(RED, BARE, notes={"harbour": ServiceError("\x1b[31mdown\x07")})
    text = outcome(found, None, pictures=False).text
    told = capsys.readouterr().err
    assert all(safe(line) for line in (text + "\n" + told).splitlines())
    assert "\\x1b[31mdown\\x07" in told and "--sheet" in told
    assert "1 institution answered in 12 ms" in text and "<script>" in text


def test_pictures_hold_colours_and_no_foreign_escape() -> None:
    text = mosaic([RED, BARE, DAMAGED], 80)
    assert "\x1b[38;2;2" in text and "▄" in text
    # Colours alone: every escape is one of select graphic rendition.
    assert not re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b")
    plain = Text.from_ansi(text).plain
    for words in ("1  +0.910  clinic", "no picture was released", "the picture is damaged"):
        assert words in plain


@pytest.mark.parametrize(("width", "across"), [(20, 1), (27, 1), (54, 2), (82, 3), (200, 7)])
def test_as_many_side_by_side_as_fit(width: int, across: int) -> None:
    ranked = [Result("clinic", i, 0.5, jpeg((9, 9, 9), (40, 40)), "word " * 40) for i in range(8)]
    lines = Text.from_ansi(mosaic(ranked, width)).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert max(line.count("+0.500") for line in lines) == across


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1)])
def test_odd_pictures_are_drawn_too(size: tuple[int, int]) -> None:
    assert "▄" in mosaic([Result("clinic", 1, 0.5, jpeg((9, 9, 9), size), "")], 80)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picture_columns() is None and picture_columns(False) is None
    monkeypatch.setenv("COLUMNS", "91")
    assert picture_columns(True) == 91
    assert listing(results(BARE), None).startswith("  1  +0.5000  museum           #3")
    assert "\x1b" in listing(results(RED), 80)


def test_a_terminal_says_itself_whether_it_knows_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "91")
    for term, colours, expected in (
        ("xterm-256color", "truecolor", 91),
        ("xterm-256color", "", None),
        ("dumb", "truecolor", None),
    ):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLORTERM", colours)
        assert picture_columns() == expected
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert picture_columns() is None


def test_what_each_party_saw_is_told() -> None:
    told = privacy(results(RED))
    row = next(line for line in told.splitlines() if line.startswith("clinic"))
    assert re.split(r"  +", row) == [
        "clinic", "1,000", "2,000", "20", "10", "1 made, 1 destroyed", "41 questions",
    ]  # fmt: skip
    assert "The coordinator saw nothing of it" in told
    assert account(results(RED)).endswith(
        "1,000 bytes of ciphertext went out, 2,000 bytes came back"
    )
