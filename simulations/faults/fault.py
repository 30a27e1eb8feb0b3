"""What is killed, and when: every process of a federation, in its second round.

By then one round is acknowledged: it was told to whoever watches, and its checkpoint is on disk.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from protocol.errors import BlindsightError
from protocol.terminal import say
from simulations.faults.stage import Stage

ROUND = 2
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Fault:
    """Whom to kill, once the sufferer's node says ``moment``; ``starts`` is who is started again.

    Processes are started again by their supervisor; a supervisor, as by systemd.
    """

    name: str
    moment: str
    victim: Callable[[Stage], int]
    starts: str = ""

    def await_moment(self, stage: Stage, begin: int) -> None:
        """Wait for it in what the node printed since ``begin``."""
        stage.await_said((f"ROUND {ROUND}]", self.moment), begin)

    def strike(self, stage: Stage) -> None:
        """Kill; start a supervisor again. Raises TrainingError where there is nobody to kill."""
        psutil.Process(self.victim(stage)).kill()
        say(f"killed: {self.name}")
        home = {"coordinator": stage.poc.coordinator, "institution": stage.sufferer}
        for _ in range(_TRIES if self.starts else 0):
            time.sleep(3)
            with suppress(BlindsightError):
                stage.poc.start_party(self.starts, home[self.starts])
                return


_BEFORE, _DURING, _AFTER = "Receiving: query.share", "Receiving: train", "Receiving: query.unmask"
FAULTS = (
    Fault("superlink", _DURING, lambda s: s.process(s.poc.coordinator, "superlink")),
    Fault("coordinator's executor", _DURING, lambda s: s.process(s.poc.coordinator, "executor")),
    Fault("ServerApp", _DURING, lambda s: s.below(s.poc.coordinator, "executor")),
    Fault("nginx", _DURING, lambda s: s.process(s.poc.coordinator, "nginx")),
    Fault("all of the coordinator", _DURING,
          lambda s: s.process(s.poc.coordinator, "supervisor"), "coordinator"),
    Fault("node before its update", _BEFORE, lambda s: s.process(s.sufferer, "node")),
    Fault("node during its update", _DURING, lambda s: s.process(s.sufferer, "node")),
    Fault("node after its update", _AFTER, lambda s: s.process(s.sufferer, "node")),
    Fault("institution's executor", _DURING, lambda s: s.process(s.sufferer, "executor")),
    Fault("ClientApp", _DURING, lambda s: s.below(s.sufferer, "executor")),
    Fault("all of an institution", _DURING,
          lambda s: s.process(s.sufferer, "supervisor"), "institution"),
)  # fmt: skip
