"""A service in a process of its own: its address, or why there is none; and never left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from client.searcher.remote import RemoteInstitution
from protocol.credentials import Credentials
from protocol.errors import ServiceError
from simulations.authority import ThrowAwayAuthority
from simulations.process import ServiceProcess

RELEASE = "0123456789abcdef"
Start = Callable[[], ServiceProcess]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    rows = np.eye(3, 8, dtype=np.float32)
    build_index(tmp_path / "index", RELEASE, rows, [Pair(f"{i}.png", ("a",)) for i in range(3)])
    tls = ThrowAwayAuthority().issue("clinic", tmp_path / "tls")
    return lambda: ServiceProcess(
        "clinic",
        tmp_path / "service.log",
        data=tmp_path,
        index=tmp_path / "index",
        credentials=tls,
        threads=1,
    )


def test_it_answers_until_the_block_ends(start: Start, tmp_path: Path) -> None:
    credentials = Credentials.in_folder(tmp_path / "tls")
    with start() as process:
        remote = RemoteInstitution(process.name, process.address(120), credentials, 30)
        assert remote.describe(RELEASE).institution == "clinic"
        remote.close()
        assert psutil.pid_exists(process.pid)
    assert not psutil.pid_exists(process.pid)


def test_one_that_cannot_start_says_why(start: Start, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "index")
    with start() as process, pytest.raises(ServiceError, match="of clinic did not start") as caught:
        process.address(120)
    assert "there is no usable index" in caught.value.message
    assert str(tmp_path / "service.log") in caught.value.hint
    assert not psutil.pid_exists(process.pid)


def test_one_that_says_nothing_is_not_waited_for(start: Start) -> None:
    with start() as process, pytest.raises(ServiceError, match="no word from it"):
        process.address(0)
    assert not psutil.pid_exists(process.pid)
