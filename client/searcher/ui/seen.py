"""What each party saw of one search, in figures and in words that anybody can read.

The sentences claim what docs/security.md shows, and no more.
"""

from typing import Any

from client.searcher.results import Results
from client.searcher.traffic import Traffic


def seen_by_institution(results: Results, name: str) -> dict[str, Any]:
    """The account of one institution: its figures, and a sentence on what it learned."""
    account = results.traffic.get(name, Traffic())
    return account.to_dict() | {"words": _institution(account)}


def seen_by_coordinator(relayed: frozenset[str], listed: bool) -> str:
    """A sentence on what the coordinator learned.

    ``relayed`` are the institutions that its relay leads to; ``listed`` says that its directory
    was asked whom one can search.
    """
    if relayed:
        return (
            f"Its relay carried the connection to {_listing(sorted(relayed))}: it knows that you "
            "were connected, when, and how many bytes went through. It could not read them."
        )
    if listed:
        return (
            "It was asked, when this page started, whom one can search. Of this search it saw "
            "nothing: the question went straight to each institution."
        )
    return "It saw nothing: the question went straight to each institution."


def _institution(account: Traffic) -> str:
    if not account.upload_bytes:
        return "It was sent no question. At most it learned that you were about to ask one."
    said = [
        "It learned that you searched, and when. It computed on ciphertext and could read neither "
        "the question nor a score."
    ]
    if account.items_wanted:
        said.append(
            f"Of the {account.items_asked} items asked for, {account.items_wanted} "
            f"{'were' if account.items_wanted > 1 else 'was'} wanted: it is not told which."
        )
    elif account.items_asked:
        said.append(
            f"None of the {account.items_asked} items asked for was wanted: it is not told that."
        )
    return " ".join(said)


def _listing(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
