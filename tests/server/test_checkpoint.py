"""A run that is killed and resumed ends with the same model, to the bit."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import StorageError, UsageError
from protocol.model.settings import TrainingSettings
from server.checkpoint import MANIFEST, Checkpoints
from server.coordinator import coordinate
from server.progress import Progress
from server.round import RoundReport
from simulations.grid import InProcessGrid
from tests.server.learners import INITIAL, NAMES, SETTINGS, WIDTH, bits, learners, run

RUNS = {
    "fedavg": {},
    "fedadam": {"optimiser": "fedadam", "server_learning_rate": 0.03},
    "top-k": {"compression": "top-k:0.05"},
    "all": {
        "optimiser": "fedyogi",
        "server_learning_rate": 0.03,
        "compression": "top-k:0.2",
        "client_fraction": 0.5,
        "standardise": True,
        "patience": 3,
    },
    # Momentum carries it past the best model, which patience then falls back on.
    "best": {"optimiser": "fedavgm", "server_learning_rate": 1.0, "rounds": 9, "patience": 2},
    "int8": {"compression": "int8", "optimiser": "fedavgm", "server_learning_rate": 0.1},
}


class _Stopped(Exception):
    pass


def _settings(name: str) -> TrainingSettings:
    return replace(SETTINGS, **RUNS[name])


def _stop_after(number: int) -> object:
    def on_round(report: RoundReport) -> None:
        if report.number == number:
            raise _Stopped

    return on_round


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_after_every_round_gives_the_same_model(name: str, tmp_path: Path) -> None:
    settings, seen = _settings(name), list[int]()
    whole = run(settings)
    assert (len(whole.reports) < settings.rounds) == (name == "best")
    for number in range(1, len(whole.reports) + 1):
        with pytest.raises(_Stopped):
            run(settings, tmp_path, _stop_after(number))
    resumed = run(settings, tmp_path, lambda report: seen.append(report.number))
    assert bits(resumed) == bits(whole) and resumed.recalls == whole.recalls
    assert seen == [report.number for report in whole.reports]
    for mine, theirs in zip(resumed.reports, whole.reports, strict=True):
        assert replace(mine, seconds=0) == replace(theirs, seconds=0)


def test_institutions_that_survive_answer_a_round_again_as_before(tmp_path: Path) -> None:
    """The coordinator dies before it has saved the round that the institutions have answered."""
    settings = _settings("top-k")
    seen: list[str] = []
    for folder in (None, tmp_path / "states"):
        nodes = [
            {"name": name} | ({"state": str(folder / name)} if folder else {}) for name in NAMES
        ]
        checkpoints = tmp_path / ("memory" if folder is None else "files")
        with InProcessGrid(learners(), nodes) as grid:
            with pytest.raises(_Stopped):
                coordinate(grid, settings, _stop_after(3), checkpoints)
            saved = {path: path.read_bytes() for path in checkpoints.iterdir() if path.is_file()}
            with pytest.raises(_Stopped):
                coordinate(grid, settings, _stop_after(4), checkpoints, resume=True)
            for path in checkpoints.iterdir():
                path.unlink()
            for path, data in saved.items():
                path.write_bytes(data)
            seen.append(bits(coordinate(grid, settings, None, checkpoints, resume=True)))
    assert seen == [bits(run(settings))] * 2


@pytest.fixture(scope="module")
def victims() -> Iterator[subprocess.Popen[str]]:
    """A program that starts a process for each run that it is told, and can be told many."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.learners"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate()


def _killed_at_random(
    victims: subprocess.Popen[str],
    settings: dict[str, object],
    checkpoints: Path,
    choose: random.Random,
) -> str | None:
    """Starts or resumes the run and kills it; the hash of its model if it was faster."""
    stdin, stdout = victims.stdin, victims.stdout
    assert stdin is not None and stdout is not None
    stdin.write(json.dumps([str(checkpoints), settings]) + "\n")
    stdin.flush()
    process = int(stdout.readline().split()[1])
    for _ in range(choose.randrange(3)):
        if stdout.readline().startswith("ended"):
            return None
    time.sleep(choose.uniform(0, 0.08))
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(process, signal.SIGKILL)
    model = None
    while not (line := stdout.readline()).startswith("ended"):
        if line.startswith("model"):
            model = line.split()[1]
    return model


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "top-k", "all"])
def test_a_run_killed_anywhere_gives_the_same_model(
    victims: subprocess.Popen[str], name: str, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    changes = RUNS[name] | {"rounds": 12}
    whole = bits(run(replace(SETTINGS, **changes)))
    ends = [_killed_at_random(victims, changes, tmp_path, choose) for _ in range(6)]
    assert ends[0] is None and set(ends) <= {None, whole}, ends
    assert bits(run(replace(SETTINGS, **changes), tmp_path)) == whole


def test_what_a_kill_left_of_a_write_is_removed(tmp_path: Path) -> None:
    settings = _settings("top-k")
    with pytest.raises(_Stopped):
        run(settings, tmp_path, _stop_after(2))
    left = [tmp_path / f".{'0' * 32}-00003.safetensors.abcd", tmp_path / f".{MANIFEST}.abcd"]
    left.append(tmp_path / "a" / f".residual-{'0' * 32}-00003.safetensors.abcd")
    others = [tmp_path / "notes.txt", tmp_path / "a" / "features.safetensors"]
    for path in (*left, *others):
        path.write_bytes(b"")
    run(settings, tmp_path)
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in others)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "a").glob("residual-*"))) == 2


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    settings = _settings("fedadam")
    with pytest.raises(_Stopped):
        run(settings, tmp_path, _stop_after(2))
    for change, name in (
        ({"server_learning_rate": 0.04}, "server-learning-rate = 0.03, this run has 0.04"),
        ({"optimiser": "fedyogi"}, "optimiser"),
        ({"rounds": 7}, "rounds"),
        ({"towers": replace(settings.towers, dim=16)}, "towers"),
    ):
        with pytest.raises(UsageError, match=name):
            run(replace(settings, **change), tmp_path)
    with pytest.raises(UsageError, match="ended in the middle, after round 2"):
        run(settings, tmp_path, resume=False)
    done = run(settings, tmp_path)
    assert bits(run(settings, tmp_path)) == bits(done), "a finished run is only evaluated"
    assert bits(run(settings, tmp_path, resume=False)) == bits(done), "and may be replaced"


def _damages(folder: Path) -> dict[str, tuple[Path, bytes]]:
    manifest, (arrays,) = folder / MANIFEST, folder.glob("*.safetensors")
    text, data = manifest.read_bytes(), arrays.read_bytes()
    found = json.loads(text)

    def changed(**changes: object) -> tuple[Path, bytes]:
        return manifest, json.dumps(found | changes).encode()

    return {
        "flip": (arrays, data[:-1] + bytes([data[-1] ^ 1])),
        "cut": (arrays, data[:-1]),
        "grow": (arrays, data + bytes(10_000_000)),
        "text": (manifest, text[:-9]),
        "nesting": (manifest, b"[" * 100_000),
        "format": changed(format=2),
        "run": changed(run="../../etc/passwd"),
        "hash": changed(sha256="0" * 64),
        "rounds": changed(reports=found["reports"][:1]),
        "order": changed(reports=found["reports"][::-1]),
        "none": changed(reports=[]),
        "field": changed(reports=[found["reports"][0] | {"counted": 1}]),
        "recall": changed(best_recall=float("inf")),
        "best": changed(best_recall=0.5),
        "waited": changed(waited=-1),
        "extra": changed(extra=1),
    }


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    settings = _settings("fedadam")
    with pytest.raises(_Stopped):
        run(settings, tmp_path, _stop_after(2))
    checkpoints = Checkpoints(tmp_path, settings)
    for what, (path, data) in _damages(tmp_path).items():
        good = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(StorageError, match=str(tmp_path)) as caught:
            checkpoints.load(INITIAL, WIDTH)
        assert "from the beginning" in caught.value.hint, what
        path.write_bytes(good)
    found = checkpoints.load(INITIAL, WIDTH)
    assert found is not None and found.number == 2
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        checkpoints.load(INITIAL, WIDTH)


def test_a_checkpoint_holds_every_bit(tmp_path: Path) -> None:
    settings = _settings("all")
    run(settings, tmp_path)
    found = Checkpoints(tmp_path, settings).load(INITIAL, WIDTH)
    assert found is not None and found.finished(settings) and found.number == settings.rounds
    assert set(found.optimiser.state) == {"m", "v"}
    assert all(v.dtype == np.float64 for v in found.optimiser.state["v"].values())
    assert Checkpoints(tmp_path / "empty", settings).load(INITIAL, WIDTH) is None
    other = Progress.begin(INITIAL, settings)
    assert other.run != found.run
