"""What every way to compress an update has in common."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from protocol.errors import TrainingError
from protocol.model.update import Arrays


class Codec(Protocol):
    """One way to send a change of the weights in fewer bytes; both sides use the same.

    ``encode`` is given finite float32 arrays and raises TrainingError for others; what it
    returns besides the record is what it left unsent, empty where nothing is carried over, to be
    handed to the next ``encode`` as ``residual``. ``decode`` reads foreign bytes: it knows from
    ``like`` (names and shapes) what to expect, allocates in proportion to that alone, and raises
    MalformedMessage for anything else.
    """

    def encode(
        self, change: Arrays, residual: Arrays | None, generator: np.random.Generator
    ) -> tuple[ArrayRecord, Arrays]:
        """The record of ``change`` plus ``residual``, and the next residual."""
        ...

    def decode(self, record: ArrayRecord, like: Arrays) -> Arrays:
        """What a record says of arrays like these."""
        ...


def require_finite(change: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Raises TrainingError for a change that no codec can send."""
    for name, values in change.items():
        if not np.isfinite(values).all():
            raise TrainingError(
                f"array {name}: the change holds values that are not finite",
                "train with a lower learning rate",
            )
