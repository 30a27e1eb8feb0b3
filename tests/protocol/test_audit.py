"""The audit log: what was acknowledged is there, and what was changed is noticed."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.audit import AuditLog
from protocol.errors import StorageError, UsageError
from simulations.cli import app

FACTS = st.dictionaries(
    st.text(min_size=1, max_size=9).filter(
        lambda name: name not in {"n", "time", "event", "before", "chain", "self"}
    ),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=40),
    max_size=4,
)


def logged(path: Path, count: int = 5) -> AuditLog:
    log = AuditLog(path / "audit.log")
    for number in range(count):
        log.record("query", who="radiology", number=number)
    return log


@given(st.lists(st.tuples(st.text(max_size=20), FACTS), max_size=5))
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_was_recorded_is_read(tmp_path: Path, events) -> None:
    log = AuditLog(tmp_path / f"{time.monotonic_ns()}.log")
    for event, facts in events:
        log.record(event, **facts)
    found = list(log.read()) if events else []
    assert [(one.event, one.facts) for one in found] == events
    assert [one.n for one in found] == list(range(1, len(events) + 1))


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    log = logged(tmp_path)
    good = log.path.read_bytes()
    for at in range(0, len(good), 3):
        for other in (good[at] ^ 1, ord("0"), ord(" ")):
            if other == good[at]:
                continue
            log.path.write_bytes(good[:at] + bytes([other]) + good[at + 1 :])
            try:
                found = [(one.n, one.time, one.event, one.facts) for one in log.read()]
            except StorageError:
                continue
            # White space between tokens says nothing, and the last newline may be missing.
            log.path.write_bytes(good)
            want = [(one.n, one.time, one.event, one.facts) for one in log.read()]
            assert found in (want, want[:-1]), (at, other)


def test_lines_removed_repeated_or_swapped_are_noticed(tmp_path: Path) -> None:
    log = logged(tmp_path)
    lines = log.path.read_bytes().splitlines(keepends=True)
    for wrong in (
        lines[1:],
        lines[:2] + lines[3:],
        lines[:2] + lines[1:],
        [lines[1], lines[0], *lines[2:]],
        [*lines, lines[0]],
    ):
        log.path.write_bytes(b"".join(wrong))
        with pytest.raises(StorageError, match="line"):
            list(log.read())


def test_an_end_cut_off_is_noticed_by_whoever_noted_the_chain(tmp_path: Path, capsys) -> None:
    log = logged(tmp_path)
    chain = list(log.read())[-1].chain
    run = ["audit", "verify", "--log", str(log.path), "--chain", chain]
    app(run, standalone_mode=False)
    assert "5 entries" in capsys.readouterr().out
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(SystemExit) as caught:
        app(run, standalone_mode=False)
    assert caught.value.code == 2
    assert "cut off" in capsys.readouterr().err


def test_a_line_that_a_crash_left_unfinished_is_written_over(tmp_path: Path) -> None:
    log = logged(tmp_path)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"n": 6, "time": "2026')
    assert len(list(log.read())) == 5
    log.record("after")
    assert [one.event for one in log.read()] == ["query"] * 5 + ["after"]


def test_a_damaged_end_is_not_built_on(tmp_path: Path) -> None:
    log = logged(tmp_path)
    log.path.write_bytes(log.path.read_bytes() + b"garbage\n")
    before = log.path.read_bytes()
    with pytest.raises(StorageError, match="no entry"):
        log.record("after")
    assert log.path.read_bytes() == before


def test_threads_and_processes_write_one_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    code = (
        "import sys; from pathlib import Path; from protocol.audit import AuditLog\n"
        "for i in range(20): AuditLog(Path(sys.argv[1])).record('other', i=i)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(log.path)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: log.record("mine", i=i), range(40)))
    assert other.wait(60) == 0
    assert len(list(log.read())) == 60


def test_an_acknowledged_entry_survives_a_kill(tmp_path: Path) -> None:
    """Ten writers are killed at any moment: what they said they had recorded is there."""
    path = tmp_path / "audit.log"
    code = (
        "import sys; from pathlib import Path; from protocol.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "while True: print(log.record('charge').n, flush=True)"
    )
    acknowledged = 0
    for number in range(10):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.002 * number)
        writer.kill()
        out = writer.stdout.read().split()
        writer.__exit__(None, None, None)
        acknowledged = max([acknowledged + 1, *map(int, out)])
    assert len(list(AuditLog(path).read())) >= acknowledged


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch) -> None:
    log = logged(tmp_path)
    before = log.path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space"):
        log.record("after")
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.record("after")
    assert len(list(log.read())) == 6


def test_names_of_its_own_and_huge_entries_are_refused(tmp_path: Path) -> None:
    log = logged(tmp_path)
    for facts in ({"chain": "x"}, {"text": "x" * 40_000}):
        with pytest.raises(ValueError, match=r"a fact|at most"):
            log.record("query", **facts)
    assert len(list(log.read())) == 5


def test_the_log_is_for_its_owner(tmp_path: Path) -> None:
    assert logged(tmp_path).path.stat().st_mode & 0o777 == 0o600


def test_show_and_export(tmp_path: Path, capsys) -> None:
    logged(tmp_path).record("fetch", items=3)
    app(["audit", "show", "--home", str(tmp_path), "--last", "2"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "fetch  items=3" in out and len(out.splitlines()) == 2
    target = tmp_path / "out.jsonl"
    app(["audit", "export", "--home", str(tmp_path), "--out", str(target)], standalone_mode=False)
    assert json.loads(target.read_text().splitlines()[5])["items"] == 3
    with pytest.raises(UsageError, match="cannot be read"):
        list(AuditLog(tmp_path / "none").read())


def test_many_at_once_are_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.record("first")
    several = log.record_all([("score", {"number": i}) for i in range(5)])
    assert log.record_all([]) == []
    assert list(log.read())[1:] == several
    with pytest.raises(ValueError, match="may not be called"):
        log.record_all([("good", {}), ("bad", {"chain": "x"})])
    assert len(list(log.read())) == 6, "all or none"
