"""``blindsight audit``: what happened at a party, and whether its log still says so."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.audit import AuditLog, Entry
from protocol.errors import UsageError
from protocol.files import write_atomically
from protocol.terminal import AsJson, Outcome, command

audit_app = typer.Typer(help="A party's own log of what happened.", no_args_is_help=True)

HomeOption = Annotated[Path | None, typer.Option("--home", help="The party's folder.")]
LogOption = Annotated[Path | None, typer.Option("--log", help="Or the log itself.")]


@audit_app.command()
@command
def show(
    home: HomeOption = None,
    log: LogOption = None,
    event: Annotated[str | None, typer.Option(help="Only events of this name.")] = None,
    last: Annotated[int, typer.Option(min=1, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> Outcome:
    """Show the last entries; every line before them is checked."""
    entries = [one for one in _log(home, log).read() if event in (None, one.event)][-last:]
    lines = [f"{one.n:>6}  {one.time}  {one.event}  {_facts(one)}".rstrip() for one in entries]
    return Outcome("\n".join(lines) or "nothing yet", {"entries": [_plain(e) for e in entries]})


@audit_app.command()
@command
def verify(
    home: HomeOption = None,
    log: LogOption = None,
    chain: Annotated[
        str | None, typer.Option(help="A chain noted earlier: it must still be in the log.")
    ] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Check that no line was changed, and that one noted earlier is still there."""
    found, count, noted = "", 0, chain is None
    for entry in _log(home, log).read():
        found, count, noted = entry.chain, entry.n, noted or entry.chain == chain
    if not noted:
        raise UsageError(
            f"the chain {chain!r:.80} is not in the log: its end was cut off, or all written anew",
            "Compare with whoever noted it.",
        )
    text = f"{count} entries, unchanged. Note this chain elsewhere: {found or 'none yet'}"
    return Outcome(text, {"entries": count, "chain": found})


@audit_app.command()
@command
def export(
    out: Annotated[Path, typer.Option(help="Write the checked entries to this file.")],
    home: HomeOption = None,
    log: LogOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Write the checked entries as JSON lines, for other tools."""
    entries = [_plain(entry) for entry in _log(home, log).read()]
    write_atomically(out, "".join(json.dumps(one) + "\n" for one in entries))
    return Outcome(f"{len(entries)} entries in {out}", {"entries": len(entries), "out": str(out)})


def _log(home: Path | None, log: Path | None) -> AuditLog:
    if (home is None) == (log is None):
        raise UsageError("it is not said which log", "Give --home or --log.")
    return AuditLog(log if log is not None else Path(str(home)) / "audit.log")


def _facts(entry: Entry) -> str:
    return "  ".join(f"{name}={value}" for name, value in entry.facts.items())


def _plain(entry: Entry) -> dict[str, Any]:
    return {"n": entry.n, "time": entry.time, "event": entry.event, **entry.facts} | {
        "chain": entry.chain
    }
