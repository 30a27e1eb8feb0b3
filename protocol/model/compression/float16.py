"""Half precision: two bytes a value, eleven bits of each.

Nothing is carried over: the error is at most a 2048th of a value, or 3e-8 where that is more,
which is below what a float32 weight near 1 can hold anyway.
"""

import numpy as np
from flwr.app import ArrayRecord

from protocol.model.compression.codec import require_finite
from protocol.model.update import Arrays, pack, unpack

#: The largest finite number of half precision; the coordinator refuses far smaller ones.
MAX_FLOAT16 = 65504.0


class Float16:
    """The arrays as float16, rounded to nearest, under their own names."""

    def encode(
        self, change: Arrays, residual: Arrays | None, generator: np.random.Generator
    ) -> tuple[ArrayRecord, Arrays]:
        """The record, and nothing left over."""
        require_finite(change)
        halves = {
            name: np.clip(values, -MAX_FLOAT16, MAX_FLOAT16).astype(np.float16)
            for name, values in change.items()
        }
        return pack(halves), {}

    def decode(self, record: ArrayRecord, like: Arrays) -> Arrays:
        """Reads it back as float32. Raises MalformedMessage."""
        return unpack(record, like, "float16")
