"""The searcher's side: ``from client.searcher import Searcher``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.searcher.searcher import Searcher as Searcher

__all__ = ["Searcher"]


def __getattr__(name: str) -> object:
    """Import on first use: commands mount this package, and SEAL takes a while."""
    if name == "Searcher":
        from client.searcher.searcher import Searcher

        return Searcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
