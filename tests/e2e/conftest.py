"""One small simulated federation, made by the command itself, for all end-to-end tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ["--rounds", "2", "--local-epochs", "1", "--queries", "25", "--seed", "3"]


@pytest.fixture(scope="session")
def blindsight() -> Run:
    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "simulations.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=200, env=dict(os.environ), **options
        )

    return run


@pytest.fixture(scope="session")
def simulated(
    blindsight: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder of a simulation of three institutions, and the envelope that it printed."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    done = blindsight(
        "simulate", "--scenes", 240, "--institutions", 3, *SMALL, "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)
