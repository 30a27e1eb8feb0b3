"""``blindsight index rights`` and ``database``: how an item may leave, and where items are kept."""

from typing import TYPE_CHECKING, Annotated

import typer

from client.institution.index_flags import HomeOption, IndexOption, IndexTarget
from protocol.errors import UsageError
from protocol.terminal import AsJson, Outcome, command

if TYPE_CHECKING:
    from client.institution.index import Index

_POLICY, _NONE = "policy", "none"


@command
def rights(
    names: Annotated[list[str] | None, typer.Argument(help="Images, as the index names them.")] = (
        None
    ),
    release: Annotated[
        str | None,
        typer.Option(
            help="In which forms they may leave at most: some of id,caption,thumbnail,original, "
            "joined by commas; none; or policy, for all that the policy names."
        ),
    ] = None,
    home: HomeOption = None,
    index: IndexOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Say in which forms items may leave at most; without names, how many may leave how.

    The policy still bounds it, and what the collection says of an image itself.
    """
    from client.institution.index import Index
    from client.institution.rights import restrict

    root = IndexTarget(home, index).index
    if bool(names) != (release is not None):
        raise UsageError("names and --release go together", "Give both, or neither for a table.")
    if not names or release is None:
        return _counted(Index(root))
    epoch, changed = restrict(root, names, _forms(release))
    text = f"{changed:,} of {len(set(names)):,} items changed; epoch {epoch}"
    return Outcome(text, {"changed": changed, "epoch": epoch})


@command
def database(
    url: Annotated[str, typer.Argument(help="postgresql://NAME@HOST/DATABASE")],
    home: HomeOption = None,
    index: IndexOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Keep the items of an index in PostgreSQL, from its first build on."""
    from client.institution.database import PLACE, keep_items_in

    root = IndexTarget(home, index).index
    keep_items_in(root, url)
    return Outcome(f"written to {root / PLACE}, with what the URL says", {"index": str(root)})


def add_to(app: typer.Typer) -> None:
    """Put the commands beside the others of ``blindsight index``."""
    app.command()(rights)
    app.command()(database)


def _counted(opened: "Index") -> Outcome:
    """How many items may leave in which forms, most first."""
    counts = opened.table.rights().most_common()
    rows = [(_POLICY if forms is None else _joined(forms), count) for forms, count in counts]
    text = "\n".join(f"{count:>11,}  {forms}" for forms, count in rows)
    return Outcome(text, {"rights": dict(rows)})


def _joined(forms: frozenset[str]) -> str:
    from client.institution.pairs import FORMS

    return ",".join(form for form in FORMS if form in forms) or _NONE


def _forms(release: str) -> frozenset[str] | None:
    from client.institution.pairs import FORMS

    if release == _POLICY:
        return None
    forms = frozenset() if release == _NONE else frozenset(release.split(","))
    if unknown := sorted(forms - set(FORMS)):
        raise UsageError(
            f"{unknown[0]!r} is no form in which an item leaves",
            f"Take some of {', '.join(FORMS)}, none, or policy.",
        )
    return forms
