"""Checkpoints: a run on disk after every round, so that a killed one goes on to the same bits.

    checkpoints/
        checkpoint.json             run, settings, history, and which arrays belong to them
        <run>-<round>.safetensors   the model, the optimiser's moments, the best model, statistics

The manifest is replaced when the arrays are safely there, and names them by their SHA-256: a kill
at any moment leaves the state after one round or after the next, never a part of either. Rounds
that did not count are written too: the history says when to give up. Who was drawn is told by the
history: its reports are of exactly the institutions that were asked.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import StorageError, UsageError
from protocol.files import check_file, write_atomically, writing
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics
from protocol.model.tensor_file import read_tensors, write_tensors
from protocol.model.update import Arrays
from server.progress import Best, Progress
from server.round import RoundReport

MANIFEST = "checkpoint.json"
MANIFEST_BYTES = 1 << 28
_HINT = "remove the folder of checkpoints and train from the beginning"
#: Arrays, and what a kill in the middle of a write left of a file.
_OWN = re.compile(r"[0-9a-f]{32}-\d{5}\.safetensors|\.([0-9a-f]{32}-|checkpoint\.json\.).*")


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    settings: dict[str, bool | int | float | str]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    reports: Annotated[tuple[RoundReport, ...], Field(min_length=1)]
    best_recall: Annotated[float, Field(ge=0, le=1)] | None
    waited: Annotated[int, Field(ge=0)]
    finished: bool

    @property
    def arrays(self) -> str:
        return f"{self.run}-{len(self.reports):05}.safetensors"


class Checkpoints:
    """The folder of one run's checkpoints; it holds the latest alone. One process writes it."""

    def __init__(self, folder: Path, settings: TrainingSettings) -> None:
        self._folder = folder
        self._settings = settings

    def save(self, progress: Progress) -> None:
        """Writes the state after a round. Raises StorageError; the one before then stays."""
        finished = progress.finished(self._settings)
        manifest = _Manifest(
            run=progress.run,
            settings=self._settings.to_run_config(),
            sha256="0" * 64,
            reports=tuple(progress.reports),
            best_recall=None if progress.best is None else progress.best.recall,
            waited=progress.waited,
            finished=finished,
        )
        path = self._folder / manifest.arrays
        sha256 = write_tensors(path, _tensors(progress))
        manifest = manifest.model_copy(update={"sha256": sha256})
        write_atomically(self._folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        with writing(self._folder):
            for old in self._folder.iterdir():
                if _OWN.fullmatch(old.name) and old != path:
                    old.unlink(missing_ok=True)

    def load(self, initial: Arrays, width: int) -> Progress | None:
        """The state after the last round that was saved; None when there is no checkpoint.

        ``initial`` has the model's names and shapes, ``width`` is that of an image feature.
        Raises UsageError when it is of other settings, StorageError when it is damaged.
        """
        manifest = self._manifest()
        if manifest is None:
            return None
        ours: dict[str, Any] = self._settings.to_run_config()
        for key in sorted(ours.keys() | manifest.settings.keys()):
            theirs = manifest.settings.get(key)
            if theirs != ours.get(key):
                raise UsageError(
                    f"{self._folder}: the checkpoint was made with {key} = {theirs!r:.200}, "
                    f"this run has {ours.get(key)!r:.200}",
                    "resume with the settings it was made with, or start anew in another folder",
                )
        progress = Progress.begin(initial, self._settings)
        progress.run = manifest.run
        progress.reports = list(manifest.reports)
        progress.waited = manifest.waited
        if manifest.best_recall is not None:
            progress.best = Best(manifest.best_recall, initial)
        if self._settings.standardise:
            progress.statistics = Statistics(
                np.zeros(width, np.float32), np.ones(width, np.float32)
            )
        path = self._folder / manifest.arrays
        found = read_tensors(path, _tensors(progress), _HINT, manifest.sha256)
        _restore(progress, found)
        return progress

    def require_vacant(self) -> None:
        """Raises UsageError when the folder holds a run that is not over."""
        manifest = self._manifest()
        if manifest is not None and not manifest.finished:
            raise UsageError(
                f"{self._folder} holds a run that ended in the middle, after round "
                f"{len(manifest.reports)}",
                "resume it, name another folder, or remove this one",
            )

    def _manifest(self) -> _Manifest | None:
        return _read_manifest(self._folder / MANIFEST)


def history(folder: Path) -> tuple[RoundReport, ...]:
    """The rounds of the run in a folder of checkpoints, for whoever watches it; none before one.

    Raises StorageError when the checkpoint is damaged.
    """
    manifest = _read_manifest(folder / MANIFEST)
    return () if manifest is None else manifest.reports


def _read_manifest(path: Path) -> _Manifest | None:
    try:
        check_file(path, MANIFEST_BYTES, _HINT)
        found = _Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", _HINT) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(f"{path}: {where} {first['msg']:.200}", _HINT) from error
    numbers = [report.number for report in found.reports]
    if numbers != list(range(1, len(numbers) + 1)):
        raise StorageError(f"{path}: its reports are not of the rounds 1, 2, 3, ...", _HINT)
    return found


def _tensors(progress: Progress) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a run under one kind of name each."""
    groups: dict[str, dict[str, Any]] = {"current": progress.current}
    groups |= {f"optimiser/{key}": values for key, values in progress.optimiser.state.items()}
    if progress.best is not None:
        groups["best"] = progress.best.arrays
    if progress.statistics is not None:
        groups["statistics"] = {"mean": progress.statistics.mean, "std": progress.statistics.std}
    return {f"{group}/{name}": a for group, arrays in groups.items() for name, a in arrays.items()}


def _restore(progress: Progress, found: dict[str, npt.NDArray[Any]]) -> None:
    """Undoes ``_tensors``; ``found`` has passed the check against it."""

    def group(prefix: str) -> dict[str, npt.NDArray[Any]]:
        return {name: found[f"{prefix}/{name}"] for name in progress.current}

    if progress.best is not None:
        progress.best = Best(progress.best.recall, group("best"))
    if progress.statistics is not None:
        progress.statistics = Statistics(found["statistics/mean"], found["statistics/std"])
    progress.optimiser.state = {key: group(f"optimiser/{key}") for key in progress.optimiser.state}
    progress.current = group("current")
