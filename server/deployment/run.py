"""A training run on disk: what was asked for, its checkpoints, and the release that it leaves.

    state/runs/00001/
        run.json       settings, bundle, the numbers of Flower's runs that worked on it
        checkpoints/   after every round; also the history
        releases/      the model, from the end of training until it is published

One of Flower's runs ends with its ServerApp's process. Ours goes on in the next one, from the last
checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import StorageError, UsageError
from protocol.files import read_bounded, write_atomically, writing
from protocol.identity import Identity
from protocol.model.release import read_release
from protocol.model.signature import sign_release
from server.checkpoint import history
from server.round import RoundReport

Scalar = bool | float | int | str
_MANIFEST = "run.json"
_MAX_BYTES = 1 << 20


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, bool | int | float | str]
    bundle: str
    flower_runs: tuple[int, ...] = ()
    release: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run in its ``folder``."""

    folder: Path
    config: Mapping[str, Scalar]
    bundle: str
    flower_runs: tuple[int, ...] = ()
    release: str | None = None

    @classmethod
    def begin(cls, runs: Path, config: Mapping[str, Scalar], bundle: str) -> Self:
        """A new run below the folder ``runs``. Raises StorageError."""
        numbers = [int(one.name) for one in _folders(runs)]
        folder = runs / f"{max(numbers, default=0) + 1:05}"
        with writing(runs):
            folder.mkdir(mode=0o700, parents=True)
        run = cls(folder, dict(config), bundle)
        run._write()
        return run

    @classmethod
    def latest(cls, runs: Path) -> Self | None:
        """The run that was begun last; None before the first. Raises StorageError."""
        folders = _folders(runs)
        if not folders:
            return None
        path = folders[-1] / _MANIFEST
        hint = f"remove {folders[-1]} and train from the beginning"
        try:
            content = read_bounded(path, _MAX_BYTES, hint)
            found = _Manifest.model_validate(json.loads(content))
        except (OSError, ValueError, ValidationError) as error:
            raise StorageError(f"{path} is damaged: {error}"[:300], hint) from error
        return cls(folders[-1], found.config, found.bundle, found.flower_runs, found.release)

    @property
    def number(self) -> int:
        """1 for the first."""
        return int(self.folder.name)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def rounds(self) -> int:
        """How many rounds were asked for."""
        return int(self.config["rounds"])

    def reports(self) -> tuple[RoundReport, ...]:
        """Its rounds so far. Raises StorageError for a checkpoint that is damaged."""
        return history(self.checkpoints)

    def run_config(self, resume: bool) -> dict[str, Scalar]:
        """What the ServerApp is told, with the places that it needs."""
        places: dict[str, Scalar] = {
            "checkpoints": str(self.checkpoints),
            "releases": str(self.folder / "releases"),
            "resume": resume,
        }
        return {**self.config, **places}

    def approved(self, approvals: str) -> Self:
        """The run with what reviewers signed of its bundle, which institutions may ask for."""
        return replace(self, config={**self.config, "bundle-approvals": approvals})

    def continued(self, flower_run: int, bundle: str) -> Self:
        """The run with one more of Flower's that works on it."""
        run = replace(self, flower_runs=(*self.flower_runs, flower_run), bundle=bundle)
        run._write()
        return run

    def publish(self, releases: Path, coordinator: Identity) -> Self:
        """Sign the release that training left and move it to the folder ``releases``.

        A crash in between leaves it in one of the two places. Raises UsageError without a release,
        StorageError for a damaged one.
        """
        found = [one for one in (self.folder / "releases").glob("[0-9a-f]*") if one.is_dir()]
        if not found:
            if self.release is not None:
                return self
            raise UsageError(f"run {self.number} left no release", "Train it to the end.")
        sign_release(read_release(found[0]), coordinator)
        run = replace(self, release=found[0].name)
        run._write()
        target = releases / found[0].name
        with writing(releases):
            releases.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                found[0].rename(target)
        return run

    def _write(self) -> None:
        content = _Manifest(
            config=dict(self.config),
            bundle=self.bundle,
            flower_runs=self.flower_runs,
            release=self.release,
        )
        write_atomically(self.folder / _MANIFEST, content.model_dump_json(indent=1) + "\n")


def _folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        return []
    return sorted(one for one in runs.iterdir() if one.name.isdigit() and len(one.name) == 5)
