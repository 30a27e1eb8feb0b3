"""What a search found: pictures in order, notes beside them, and what each party saw of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.searcher.query import Query
from client.searcher.traffic import Traffic
from protocol.errors import BlindsightError, UsageError

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """One picture found."""

    institution: str
    position: int
    score: float
    """Cosine of the query's and the picture's embedding, with the institution's noise in it."""
    thumbnail: bytes = field(repr=False)
    """JPEG, or empty where the institution releases none."""
    caption: str
    """Or empty where the institution releases none."""
    id: str = ""
    """The item's name at the institution, or empty where that is not released."""
    original: bytes = field(default=b"", repr=False)
    """The file as the institution holds it, or empty; foreign bytes that nobody checked."""

    @property
    def key(self) -> tuple[str, int]:
        """Institution and position: one picture of one epoch of its index."""
        return self.institution, self.position

    def picture(self) -> "Image":
        """Decode the thumbnail. Raises DataError where there is none or it is damaged."""
        from protocol.model.pictures import read_picture

        return read_picture(f"{self.institution} #{self.position}", self.thumbnail)

    def _repr_html_(self) -> str:
        from client.searcher.sheet import fragment

        return fragment([self])


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Results, best first; notes on institutions that did not answer; what it all cost.

    While a search is under way, ``pending`` names the institutions from which scores or pictures
    are still to come; of those in ``answered`` the scores are known.
    """

    query: Query
    ranked: tuple[Result, ...]
    notes: dict[str, BlindsightError]
    traffic: dict[str, Traffic]
    """What each institution was sent and sent, by name: the account of what it saw."""
    milliseconds: dict[str, float]
    answered: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.ranked)

    def __getitem__(self, place: int) -> Result:  # type: ignore[override]
        return self.ranked[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.ranked)

    def to_pandas(self) -> "DataFrame":
        """Return a table with a row for each result. Raises UsageError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError("pandas is not installed", "pip install pandas") from error
        names = ("institution", "position", "score", "caption", "id", "thumbnail")
        return pandas.DataFrame([{name: getattr(one, name) for name in names} for one in self])

    def show(self) -> None:
        """Show the pictures: as a grid in a notebook, elsewhere in the browser."""
        from client.searcher.sheet import show

        show(self)

    def save(self, path: Path) -> None:
        """Write a page of the pictures that needs nothing else, if ``path`` ends in .html.

        Else ``path`` is a folder that gets the thumbnails as files. Raises StorageError.
        """
        from client.searcher.sheet import write_pictures, write_sheet

        if path.suffix.lower() in (".html", ".htm"):
            write_sheet(path, self)
        else:
            write_pictures(path, self)

    def _repr_html_(self) -> str:
        from client.searcher.sheet import fragment

        return fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures, in plain JSON values."""
        return {
            "query": str(self.query),
            "results": [
                {
                    "institution": one.institution,
                    "position": one.position,
                    "score": one.score,
                    "caption": one.caption or None,
                    "id": one.id or None,
                }
                for one in self
            ],
            "notes": {name: note.message for name, note in self.notes.items()},
            "privacy": {name: account.to_dict() for name, account in self.traffic.items()},
            "upload_bytes": sum(one.upload_bytes for one in self.traffic.values()),
            "download_bytes": sum(one.download_bytes for one in self.traffic.values()),
            "milliseconds": self.milliseconds,
        }
