"""Kills each process of a real federation in turn, and says what became of the run.

``python -m simulations.faults [CASE ...]`` prints a table. Each kill falls in the second round. A
run must come to its end, keep the round that was acknowledged before, and give the model that it
gives without the fault; where an institution missed a round for it, the model that the same
institutions give in one process when that one is absent from that round.
"""

import sys
import tempfile
from pathlib import Path

from protocol.errors import BlindsightError
from server.deployment.place import Place
from simulations.faults.fault import FAULTS, Fault
from simulations.faults.outcome import Missed, Outcome, Weights, distance, expected, play
from simulations.faults.stage import Stage
from simulations.poc.poc import Poc

INSTITUTIONS = 4
SCENES = 160
_HEAD = ("killed with -9", "seconds", "resumed", "by hand", "acknowledged before", "kept",
         "missed", "difference")  # fmt: skip


def main(names: list[str]) -> None:
    """Play all faults, or those named, and print the table."""
    chosen: list[Fault | None] = [fault for fault in FAULTS if fault.name in names]
    _print(*_HEAD)
    _print(*("---" for _ in _HEAD))
    models: dict[Missed, Weights] = {}
    with tempfile.TemporaryDirectory() as folder:
        poc = Poc.open(Path(folder) / "poc")
        try:
            poc.make(INSTITUTIONS, SCENES, 0)
            poc.start()
            stage = Stage(poc, Place.open(poc.coordinator))
            for fault in chosen if names else (None, *FAULTS):
                name = "nothing" if fault is None else fault.name
                try:
                    poc.await_online()
                    found = play(stage, fault)
                except BlindsightError as error:
                    _print(name, f"FAILED: {error.message}")
                    continue
                if found.missed not in models:
                    models[found.missed] = expected(stage, found.missed)
                _print(name, *_cells(found, distance(found.weights, models[found.missed])))
        finally:
            poc.stop()


def _cells(found: Outcome, difference: float) -> tuple[str, ...]:
    missed = ", ".join(f"{name} {number}" for name, number in sorted(found.missed))
    return (
        f"{found.seconds:.0f}" + ("" if found.struck else " (NOT killed)"),
        str(found.automatic),
        str(found.by_hand),
        str(found.acknowledged),
        "yes" if found.kept else "NO",
        missed or "-",
        f"{difference:.1e}",
    )


def _print(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
