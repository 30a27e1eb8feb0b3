"""What the index commands are told: an institution's home, or data, index and release by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from protocol.errors import UsageError

if TYPE_CHECKING:
    from client.institution.deployment.place import Place
    from client.institution.indexed_folder import IndexedFolder
    from protocol.model.embedder import Embedder
    from protocol.model.release import Release

T = TypeVar("T")

HomeOption = Annotated[
    Path | None,
    typer.Option(help="This institution's folder: its data, its index, and the signed release."),
]
DataOption = Annotated[Path | None, typer.Option(help="Folder with metadata.jsonl and the images.")]
IndexOption = Annotated[Path | None, typer.Option(help="Folder of the index.")]
ReleaseOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the model release; with --home also its id. (default with --home: the "
        "newest to build and update, the index's own to add and search)"
    ),
]
PresetOption = Annotated[str, typer.Option(help="Parameter set: private or fast.")]
GoalOption = Annotated[
    str, typer.Option(help="What the chunk width shall make least: bytes or latency.")
]
UpOption = Annotated[float, typer.Option(help="A searcher's Mbit/s to you.")]
DownOption = Annotated[float, typer.Option(help="Your Mbit/s to a searcher.")]


class IndexTarget:
    """Where a command works. What is named by a flag of its own goes before what the home says."""

    def __init__(
        self,
        home: Path | None,
        index: Path | None = None,
        data: Path | None = None,
        release: str | None = None,
    ) -> None:
        """Raise UsageError for a folder in which no institution is installed."""
        self._place = None if home is None else _place(home)
        if self._place is not None:
            data = data or self._place.data
            index = index or self._place.root / self._place.institution.index
        self.data, self._index, self._release = data, index, release

    @property
    def index(self) -> Path:
        """The folder of the index. Raises UsageError if it was not said."""
        return _said("index", self._index)

    @property
    def folder(self) -> "IndexedFolder":
        """The images and the index of them. Raises UsageError if it was not said where."""
        from client.institution.indexed_folder import IndexedFolder

        return IndexedFolder(_said("data", self.data), self.index)

    def embedder(self, int8: bool, newest: bool = False) -> "Embedder":
        """The model: the ``newest`` of the federation or the index's own, if none is named.

        In a home it is one that the federation's coordinator has signed; it comes from there.
        """
        from protocol.model.embedder import Embedder

        return Embedder(self._model(newest), "int8" if int8 else "float32")

    def _model(self, newest: bool) -> "Release":
        if self._place is None:
            from protocol.model.release import read_release

            return read_release(Path(_said("release", self._release)))
        from client.institution.deployment.releases import find_release, indexed_release

        own = None if newest else indexed_release(self._place)
        return find_release(self._place, self._release or own)


def _place(home: Path) -> "Place":
    from client.institution.deployment.place import Place

    return Place.open(home)


def _said(flag: str, value: T | None) -> T:
    if value is None:
        raise UsageError(f"--{flag} is missing", "Give it, or --home with an institution's folder.")
    return value
