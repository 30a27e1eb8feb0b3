"""One small simulated federation, made by the command itself, for all end-to-end tests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.prefork import Prefork, Run

SMALL = ["--rounds", "2", "--local-epochs", "1", "--queries", "25", "--seed", "3"]


@pytest.fixture(scope="session")
def blindsight() -> Iterator[Run]:
    """A command in a process of its own, which is spared the imports."""
    prefork = Prefork()
    yield prefork.run
    prefork.close()


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a simulation of three institutions, and the envelope that it printed."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    command = [sys.executable, "-m", "simulations.cli", "simulate", "--scenes", "240"]
    done = subprocess.run(
        [*command, "--institutions", "3", *SMALL, "--out", str(out), "--json"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)
