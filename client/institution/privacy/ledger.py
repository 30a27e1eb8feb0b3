"""What an institution has spent of its records' privacy, over all rounds of all runs, on disk.

``privacy-ledger.json`` in the institution's own state folder has one charge for each round that it
ever began. A round is charged *before* it trains: a crash afterwards costs budget, and never gives
any back. A round that is asked for again draws fresh noise, is a second look at the records, and is
charged again.

The file is written whole or not at all, under a lock, and carries a hash of itself. A damaged one
is refused: it never counts as empty. ``privacy-ledger.lock`` remembers that there is a ledger, so
one that has gone missing is refused too. Nobody is kept from removing both: whoever can write the
folder holds the records anyway.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocol.accountant import Spending, epsilon
from protocol.errors import BudgetError, DataError, MalformedMessage, StorageError
from protocol.files import open_exclusively, read_bounded, write_at, write_atomically, writing

_VERSION = 1
_MAX_BYTES = 64 << 20
_HINT = (
    "Restore the file from a backup. If there is none, count every round of the audit log before "
    "you begin a new ledger: what was spent stays spent."
)


@dataclass(frozen=True, slots=True)
class Charge:
    """One round: of which run, and what it cost."""

    run: str
    round: int
    spending: Spending


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent: ``epsilon`` (0: no limit) at ``delta``."""

    epsilon: float = 0.0
    delta: float = 1e-6


class Ledger:
    """The ledger in ``folder``; one process at a time writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "privacy-ledger.json"
        self._lock = folder / "privacy-ledger.lock"

    def charge(self, charge: Charge, budget: Budget) -> float:
        """Charge a round; it is on disk when this returns what all rounds cost, as epsilon.

        Raises BudgetError for a round that would exceed the budget, which is then not charged;
        StorageError for a ledger that is damaged, missing, or being written by another process.
        """
        with writing(self.path):
            self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open_exclusively(self._lock) as lock:
                charges = self.read()
                spent = epsilon([one.spending for one in charges], budget.delta)
                after = epsilon([*(one.spending for one in charges), charge.spending], budget.delta)
                if budget.epsilon and after > budget.epsilon:
                    raise BudgetError(
                        f"round {charge.round} would bring what was spent of privacy from epsilon "
                        f"{spent:.3f} to {after:.3f} (delta {budget.delta:g}); expected at most "
                        f"{budget.epsilon:g}",
                        "Train with more noise or fewer rounds, or raise the institution's budget.",
                    )
                write_atomically(self.path, _encode([*charges, charge]))
                write_at(lock, b"begun\n", 0)
        return after

    def read(self) -> list[Charge]:
        """Every charge, in order; none where nothing was ever charged. Raises StorageError."""
        try:
            return _decode(read_bounded(self.path, _MAX_BYTES, _HINT))
        except FileNotFoundError:
            if self._lock.exists() and self._lock.stat().st_size:
                raise StorageError(f"{self.path} is missing", _HINT) from None
            return []
        except (ValueError, KeyError, TypeError, RecursionError, MalformedMessage) as error:
            raise StorageError(f"{self.path} is no ledger, or damaged", _HINT) from error
        except (OSError, DataError) as error:
            raise StorageError(f"{self.path} cannot be read: {error}", _HINT) from error


def _encode(charges: list[Charge]) -> str:
    content = [{"run": one.run, "round": one.round, **asdict(one.spending)} for one in charges]
    found = {"version": _VERSION, "charges": content, "sha256": _digest(content)}
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _decode(text: bytes) -> list[Charge]:
    found = json.loads(text)
    if found["version"] != _VERSION or found["sha256"] != _digest(found["charges"]):
        raise ValueError("not what was written")
    return [
        Charge(one["run"], one["round"], Spending(one["noise"], one["sampling"], one["steps"]))
        for one in found["charges"]
    ]


def _digest(content: Any) -> str:
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(written.encode()).hexdigest()
