"""Two people compare a fingerprint by telephone: the one thing that no certificate can do."""

import sys

import typer

from protocol.errors import UsageError
from protocol.identity import PublicIdentity


def check_fingerprint(given: str | None, identity: PublicIdentity, whose: str) -> None:
    """Compare what ``whose`` fingerprint was said to be with what it is; ask where none is given.

    Groups, spaces and capitals do not matter; every digit does. Raises UsageError.
    """
    if given is None and sys.stdin.isatty():
        given = str(typer.prompt(f"The fingerprint that you were told of {whose}", err=True))
    if given is None:
        raise UsageError(
            f"the fingerprint of {whose} was not compared; here it is {identity.fingerprint}",
            "Ask for it by telephone or in person; if it is this one, add --fingerprint.",
        )
    if _digits(given) != _digits(identity.fingerprint):
        raise UsageError(
            f"the fingerprint of {whose} is {identity.fingerprint}, not the one given",
            "Do not go on: somebody may have put another key in its place. Compare all 64 digits.",
        )


def _digits(text: str) -> str:
    return "".join(text.split()).replace(":", "").lower()
