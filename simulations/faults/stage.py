"""The federation that faults happen to; one institution of it is the one to suffer."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from protocol.errors import TrainingError
from protocol.supervision import processes
from server.deployment.place import Place
from simulations.poc.poc import Poc

_PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Its parties' folders and processes; it is up."""

    poc: Poc
    place: Place

    @property
    def sufferer(self) -> Path:
        """The folder of an institution."""
        return self.poc.institutions[0]

    def process(self, home: Path, name: str) -> int:
        """The number of a supervised process, or of its ``supervisor``."""
        found: dict[str, Any] = processes(home / "state") or {}
        if name == "supervisor":
            return int(found["supervisor"])
        return next(int(one["pid"]) for one in found["processes"] if one["name"] == name)

    def below(self, home: Path, name: str) -> int:
        """The number of a process that a supervised one started last. Raises TrainingError."""
        children = psutil.Process(self.process(home, name)).children()
        # Flower's executor does not take note of those of former runs.
        alive = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            raise TrainingError(f"{home.name}: {name} has started no process that is still there")
        return int(max(alive, key=lambda one: one.create_time()).pid)

    def heard(self) -> int:
        """How much the sufferer's node has printed until now, in bytes."""
        return (self.sufferer / "state/logs/node.log").stat().st_size

    def await_said(self, texts: tuple[str, ...], begin: int) -> None:
        """Wait until the sufferer's node has printed these, in this order, since ``begin``."""
        log, deadline = self.sufferer / "state/logs/node.log", time.monotonic() + _PATIENCE
        while not _in_order(texts, log.read_bytes()[begin:]):
            if time.monotonic() > deadline:
                raise TrainingError(f"the node never said {', then '.join(texts)}")
            time.sleep(0.05)


def _in_order(texts: tuple[str, ...], said: bytes) -> bool:
    at = 0
    for text in texts:
        at = said.find(text.encode(), at)
        if at < 0:
            return False
    return True
