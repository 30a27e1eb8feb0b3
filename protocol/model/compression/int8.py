"""Eight bits a value, with one float32 scale for each block of 256: 1.02 bytes a value.

Rounding is stochastic (QSGD, Alistarh et al., arXiv:1610.02132, §3): a value between two steps
goes up with the probability of its distance from the lower one, so the expectation of what is
sent is what was meant, and the errors of institutions and rounds average out. An unbiased codec
needs no memory of its errors: nothing is carried over. The generator protects nothing here; a
seeded one makes runs repeat to the bit.

The record: "values", int8 [n], all arrays in the order of their sorted names, and "scales",
float32 [b], a scale for each block; blocks start afresh with each array, for the changes of a
matrix and of a gain differ by orders of magnitude.
"""

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from protocol.errors import MalformedMessage
from protocol.model.compression.codec import require_finite
from protocol.model.update import Arrays, expect_names, flatten, pack, read_array, unflatten

BLOCK = 256
_STEPS = 127
#: Times 127 it is still finite. Far above any honest scale.
_MAX_SCALE = 1e30


class Int8:
    """Blocks of 256 values as whole multiples, -127 to 127, of the block's own scale."""

    def encode(
        self, change: Arrays, residual: Arrays | None, generator: np.random.Generator
    ) -> tuple[ArrayRecord, Arrays]:
        """The record, and nothing left over; one draw from ``generator`` for each value."""
        require_finite(change)
        values, scales = [np.zeros(0, np.int8)], [np.zeros(0, np.float32)]
        for name in sorted(change):
            quantised, scale = _quantise(change[name].ravel(), generator)
            values.append(quantised)
            scales.append(scale)
        return pack({"values": np.concatenate(values), "scales": np.concatenate(scales)}), {}

    def decode(self, record: ArrayRecord, like: Arrays) -> Arrays:
        """Reads it back as float32. Raises MalformedMessage."""
        expect_names(record, ("scales", "values"))
        sizes = [like[name].size for name in sorted(like)]
        blocks = [-(-size // BLOCK) for size in sizes]
        scales = read_array("scales", record["scales"], "float32", (sum(blocks),))
        if ((scales < 0) | (scales > _MAX_SCALE)).any():
            raise MalformedMessage(f"array scales: expected values from 0 to {_MAX_SCALE:g}")
        values = read_array("values", record["values"], "int8", (sum(sizes),))
        if (values < -_STEPS).any():
            raise MalformedMessage(f"array values: expected steps from -{_STEPS} to {_STEPS}")
        starts = np.cumsum([0, *blocks])
        repeated = [
            np.repeat(scales[start : start + count], BLOCK)[:size]
            for start, count, size in zip(starts, blocks, sizes, strict=False)
        ]
        return unflatten(values * flatten(dict(zip(sorted(like), repeated, strict=True))), like)


def _quantise(
    values: npt.NDArray[np.float32], generator: np.random.Generator
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Float32 [n] as int8 [n] and the blocks' scales."""
    blocks = -(-values.size // BLOCK)
    padded = np.zeros((blocks, BLOCK), np.float64)
    padded.ravel()[: values.size] = values
    largest = np.abs(padded).max(axis=1)
    scales = (largest / _STEPS).astype(np.float32)
    # A block of zeros has the scale 0, as has one too small for any scale: all its steps are 0.
    padded /= np.where(scales > 0, scales, np.inf)[:, None].astype(np.float64)
    padded += generator.random(padded.shape)
    np.floor(padded, out=padded)
    # The scale is rounded, so the largest value may lie a hair beyond the last step.
    steps = np.clip(padded, -_STEPS, _STEPS).astype(np.int8)
    return steps.ravel()[: values.size], scales
