"""No compression: every value as it is, four bytes each."""

import numpy as np
from flwr.app import ArrayRecord

from protocol.model.compression.codec import require_finite
from protocol.model.update import Arrays, pack, unpack


class Plain:
    """The arrays themselves. Exact."""

    def encode(
        self, change: Arrays, residual: Arrays | None, generator: np.random.Generator
    ) -> tuple[ArrayRecord, Arrays]:
        """The record, and nothing left over."""
        require_finite(change)
        return pack(change), {}

    def decode(self, record: ArrayRecord, like: Arrays) -> Arrays:
        """Reads it back. Raises MalformedMessage."""
        return unpack(record, like)
