"""Keeps a party's processes running, in order: one waits for the other, and all end together.

A process that ends is started again, after one second, then two, up to RETRY_SECONDS. Each child
ends with the supervisor, however that ends; one that is ended here, with all that it started.
``STATE/processes.json`` says how they are; a lock beside it, that one supervisor is there.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from protocol.child import Child, Program
from protocol.errors import ServiceError, StorageError
from protocol.files import open_exclusively, read_bounded, write_atomically
from protocol.terminal import say

RETRY_SECONDS = 30.0
START_SECONDS = 120.0
_SETTLED_SECONDS = 60.0
_POLL_SECONDS = 0.2
_LOG_SECONDS = 10.0
_STATUS = "processes.json"
_LOCK = "supervisor.lock"
_MAX_BYTES = 1 << 20


class Supervisor:
    """Starts ``programs`` in their order, keeps them running, and ends them in reverse."""

    def __init__(
        self, state: Path, programs: Sequence[Program], tell: Callable[[str], None] = say
    ) -> None:
        self._state = state
        self._programs = programs
        self._tell = tell
        self._children: dict[str, Child] = {}
        self._restarts = dict.fromkeys((one.name for one in programs), 0)
        self._waits = dict.fromkeys((one.name for one in programs), 0.0)
        self._due: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def run(self, stop: threading.Event, on_ready: Callable[[], None]) -> None:
        """Supervise until ``stop`` is set; ``on_ready`` is called once all have come up.

        Call it from a thread that lives as long as the supervision: children are tied to it.
        Raises ServiceError when a program does not come up the first time, or another
        supervisor is there; StorageError.
        """
        with _only_one(self._state):
            try:
                for program in self._programs:
                    self._start(program)
                    self._await_ready(program, stop)
                if not stop.is_set():
                    on_ready()
                self._watch(stop)
            finally:
                self._end()

    def _start(self, program: Program) -> None:
        self._children[program.name] = Child(program)
        self._due.pop(program.name, None)
        self._note()

    def _await_ready(self, program: Program, stop: threading.Event) -> None:
        """Wait for what others depend on. Without a word on when it is ready, nobody waits."""
        deadline = time.monotonic() + START_SECONDS
        while program.ready is not None and not stop.is_set() and not program.ready():
            child = self._children[program.name]
            if child.ended() is not None or time.monotonic() > deadline:
                why = program.explain(child.tail()) or f"see {program.log}"
                raise ServiceError(f"{program.name} did not start: {why}", f"See {program.log}.")
            stop.wait(_POLL_SECONDS)

    def _watch(self, stop: threading.Event) -> None:
        turned = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            now = time.monotonic()
            for program in self._programs:
                due = self._due.get(program.name)
                child = self._children[program.name]
                if due is not None and now >= due:
                    self._restarts[program.name] += 1
                    self._start(program)
                elif due is None and (code := child.ended()) is not None:
                    self._plan(program, child, code)
            if now - turned > _LOG_SECONDS:
                turned = now
                for child in self._children.values():
                    child.turn_log()

    def _plan(self, program: Program, child: Child, code: int) -> None:
        """Decide when to start an ended program again, and say so."""
        child.sweep()
        ran = time.monotonic() - child.started
        before = 0.0 if ran > _SETTLED_SECONDS else self._waits[program.name]
        wait = self._waits[program.name] = min(max(1.0, 2 * before), RETRY_SECONDS)
        why = program.explain(child.tail()) or _ending(code)
        self._why[program.name] = why
        self._due[program.name] = time.monotonic() + wait
        self._tell(
            f"{program.name} ended after {ran:.0f} s: {why}; starting it again in {wait:g} s"
        )
        self._note()

    def _end(self) -> None:
        for program in reversed(self._programs):
            if program.name in self._children:
                self._children.pop(program.name).stop()
        self._note()

    def _note(self) -> None:
        found = {
            "supervisor": os.getpid(),
            "processes": [
                {
                    "name": program.name,
                    "pid": None if program.name in self._due else child.pid,
                    "restarts": self._restarts[program.name],
                    "last_end": self._why.get(program.name),
                    "log": str(program.log),
                }
                for program in self._programs
                if (child := self._children.get(program.name)) is not None
            ],
        }
        try:
            write_atomically(self._state / _STATUS, json.dumps(found, indent=1) + "\n")
        except StorageError as error:  # a full disk is no reason to end what runs
            self._tell(error.message)


def processes(state: Path) -> dict[str, Any] | None:
    """What a supervisor there noted of itself and its processes; None when none is there."""
    if not (state / _LOCK).exists():
        return None
    try:
        with open_exclusively(state / _LOCK):
            return None
    except StorageError:
        pass
    try:
        found = json.loads(read_bounded(state / _STATUS, _MAX_BYTES, "start it again"))
    except (OSError, ValueError):
        return {"supervisor": None, "processes": []}
    return found if isinstance(found, dict) else None


def require_none(state: Path) -> None:
    """Raise ServiceError when a supervisor is there."""
    if processes(state) is not None:
        raise ServiceError(
            f"the processes of {state.parent} are up already",
            "End them first, or leave them as they are.",
        )


def end(state: Path, seconds: float = 60.0) -> bool:
    """End the supervisor that is there, in order; False when none is.

    Raises ServiceError if it is still there after ``seconds``.
    """
    deadline, asked = time.monotonic() + seconds, False
    while (found := processes(state)) is not None:
        if found["supervisor"] is not None and not asked:
            asked = True
            with _gone_is_fine():
                os.kill(found["supervisor"], signal.SIGTERM)
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the processes of {state.parent} did not end within {seconds:g} s",
                f"Process {found['supervisor']} supervises them; see the logs in {state}.",
            )
        time.sleep(_POLL_SECONDS)
    return asked


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, once or often, for as long as the block lasts."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def require_free(host: str, port: int, what: str, hint: str) -> None:
    """Raise ServiceError, with ``hint``, when ``port`` cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"{what} cannot listen on {host}:{port}: {error.strerror}", hint
            ) from error


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_none(state)
    with open_exclusively(state / _LOCK):
        yield


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
