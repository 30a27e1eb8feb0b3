"""Processes that are kept running, and of which nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from protocol.child import Child, Program, tail, turn_log
from protocol.errors import ServiceError, StorageError
from protocol.supervision import (
    Supervisor,
    end,
    listens,
    processes,
    require_free,
    require_none,
    stopping,
)

FOR_EVER = "import time; time.sleep(600)"
#: Starts another that would outlive it, and tells its number.
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {FOR_EVER!r}]).pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(600)
"""
#: A supervisor in a process of its own.
SUPERVISOR = """
import os, sys
from pathlib import Path
from protocol.child import Program
from protocol.supervision import Supervisor, stopping
state = Path(sys.argv[1])
command = (sys.executable, "-c", "import time; time.sleep(600)")
programs = [Program("one", command, state / "one.log", dict(os.environ))]
with stopping() as stop:
    Supervisor(state, programs).run(stop, lambda: print("up", flush=True))
print("ended in order", flush=True)
"""


def python(name: str, code: str, folder: Path, **options: object) -> Program:
    command = (sys.executable, "-c", code)
    return Program(name, command, folder / "logs" / f"{name}.log", dict(os.environ), **options)  # type: ignore[arg-type]


def until(found: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def supervised(state: Path, *programs: Program) -> Iterator[list[str]]:
    """A supervisor in a thread, and what it tells; ended with the block."""
    told: list[str] = []
    stop, ready = threading.Event(), threading.Event()
    supervisor = Supervisor(state, programs, told.append)
    thread = threading.Thread(target=supervisor.run, args=(stop, ready.set))
    thread.start()
    try:
        assert ready.wait(10)
        yield told
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def pid_of(state: Path, name: str) -> int | None:
    found = processes(state)
    assert found is not None
    (pid,) = (one["pid"] for one in found["processes"] if one["name"] == name)
    return pid


def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, python("one", FOR_EVER, tmp_path)) as told:
        first = pid_of(tmp_path, "one")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: pid_of(tmp_path, "one") not in (first, None))
        (said,) = told
        assert "one ended" in said and "killed by SIGKILL" in said and "again in 1 s" in said
        found = processes(tmp_path)
        assert found is not None and found["processes"][0]["restarts"] == 1
        second = pid_of(tmp_path, "one")
    assert second is not None and gone(second)
    assert processes(tmp_path) is None


def test_one_that_ends_again_and_again_is_waited_for_longer(tmp_path: Path) -> None:
    def why(text: str) -> str | None:
        return "it has no licence" if "no licence" in text else None

    failing = python("one", "print('no licence'); raise SystemExit(7)", tmp_path, explain=why)
    with supervised(tmp_path, failing) as told:
        until(lambda: len(told) == 2)
    assert "it has no licence; starting it again in 1 s" in told[0]
    assert "starting it again in 2 s" in told[1]


def test_an_end_that_explains_nothing_says_the_exit_code(tmp_path: Path) -> None:
    with supervised(tmp_path, python("one", "raise SystemExit(7)", tmp_path)) as told:
        until(lambda: told)
    assert "exit code 7" in told[0]


def test_all_end_in_reverse_order_and_with_what_they_started(tmp_path: Path) -> None:
    note = tmp_path / "ended"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n    open({0!r}, 'a').write({1!r})\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nopen({2!r}, 'w').close()\ntime.sleep(600)\n"
    )
    programs = [
        python(
            name,
            code.format(str(note), name, str(tmp_path / f"up-{name}")),
            tmp_path,
            ready=(tmp_path / f"up-{name}").exists,
        )
        for name in "abc"
    ]
    family = python("family", PARENT, tmp_path)
    with supervised(tmp_path, *programs, family):
        until(lambda: tail(family.log).strip())
        grandchild = int(tail(family.log))
    assert note.read_text() == "cba"
    assert gone(grandchild)


def test_one_that_others_wait_for_and_does_not_start_ends_all(tmp_path: Path) -> None:
    first = python("first", FOR_EVER, tmp_path)
    second = python("second", "print('port 5 is taken')", tmp_path, ready=lambda: False,
                    explain=lambda text: text.strip())  # fmt: skip
    stop = threading.Event()
    with pytest.raises(ServiceError, match="second did not start: port 5 is taken"):
        Supervisor(tmp_path, [first, second]).run(stop, lambda: pytest.fail("it is not ready"))
    found = json.loads((tmp_path / "processes.json").read_text())
    assert found["processes"] == []
    assert not [one for one in psutil.process_iter() if str(first.log) in one.name()]


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    require_none(tmp_path)
    with supervised(tmp_path, python("one", FOR_EVER, tmp_path)):
        with pytest.raises(ServiceError, match="up already"):
            require_none(tmp_path)
        other = Supervisor(tmp_path, [])
        with pytest.raises(ServiceError, match="up already"):
            other.run(threading.Event(), lambda: None)


def supervisor_process(state: Path) -> "subprocess.Popen[bytes]":
    """It is up when this returns."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SUPERVISOR, str(state)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_supervisor_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    with supervisor_process(tmp_path) as process:
        child = pid_of(tmp_path, "one")
        assert child is not None
        process.kill()
    until(lambda: gone(child))
    assert processes(tmp_path) is None


def test_end_ends_the_supervisor_once_and_waits(tmp_path: Path) -> None:
    with supervisor_process(tmp_path) as process:
        child = pid_of(tmp_path, "one")
        assert end(tmp_path) is True
        assert child is not None and gone(child)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ended in order\n"
    assert process.returncode == 0
    assert end(tmp_path) is False


def test_asked_twice_it_ends_once(tmp_path: Path) -> None:
    with stopping() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = Child(python("stubborn", STUBBORN, tmp_path))
    until(lambda: child.tail())
    child.stop(0.2)
    assert child.ended() == -signal.SIGKILL


def test_a_long_log_is_turned_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    with log.open("ab") as file:
        file.write(b"first\n" * 100)
        file.flush()
        turn_log(log, 100)
        assert log.stat().st_size == 0
        assert (tmp_path / "one.log.1").read_bytes() == b"first\n" * 100
        file.write(b"second\n")
        file.flush()
    assert tail(log) == "second\n"
    turn_log(log, 100)
    assert tail(log) == "second\n"
    turn_log(tmp_path / "none.log", 100)


def test_the_tail_of_a_log_is_in_whole_lines_and_bounded(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)))
    assert tail(log, limit=20) == "line 98\nline 99\n"
    assert tail(log, begin=log.stat().st_size - 8) == "line 99\n"
    assert tail(tmp_path / "none.log") == ""


def test_a_log_is_no_link_to_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    program = python("one", FOR_EVER, tmp_path)
    program.log.parent.mkdir()
    program.log.symlink_to(elsewhere)
    with pytest.raises(StorageError):
        Child(program)
    assert elsewhere.read_bytes() == b"mine"


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        host, port = one.getsockname()
        assert not listens(host, port)
        one.listen()
        assert listens(host, port)
        with pytest.raises(
            ServiceError, match=f"the node cannot listen on {host}:{port}"
        ) as caught:
            require_free(host, port, "the node", "Change the port.")
        assert caught.value.hint == "Change the port."
    require_free(host, port, "the node", "Change the port.")
