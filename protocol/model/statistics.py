"""Mean and deviation of image features over all institutions, so that all standardise alike.

Before the first round each institution replies to a query ``query.statistics`` with the sums of
its features and of their squares; sums are all that the mean and variance of the union need, and
sums are what secure aggregation can hide. The coordinator combines them and sends the result
with every message that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, MessageType, MetricRecord, RecordDict

from protocol.errors import MalformedMessage
from protocol.model.update import expect_names, pack, read_array

#: The institution answers it with ``@app.query("statistics")``.
ACTION = "statistics"
MESSAGE_TYPE = f"{MessageType.QUERY}.{ACTION}"
#: The name of the arrays in every later message.
RECORD = "statistics"

MAX_COUNT = 100_000_000
MIN_STD = 1e-6
_MAX_SUM = 1e30
#: An honest sum of squares may fall short of the least possible one by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Sums:
    """What one institution says: ``count`` features of width w, float64 [w] sums.

    An institution that keeps its number to itself says 1 and sends means in place of sums.
    """

    count: int
    sum: npt.NDArray[np.float64]
    sum_of_squares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, features: npt.NDArray[Any], share_count: bool = True) -> Self:
        """Sums float [n, w] in float64; n at least 1. The sum over one item is that item."""
        wide = features.astype(np.float64)
        total, squares = wide.sum(axis=0), (wide**2).sum(axis=0)
        if share_count:
            return cls(len(wide), total, squares)
        return cls(1, total / len(wide), squares / len(wide))

    def to_content(self) -> RecordDict:
        """Arrays "statistics" with "sum" and "sum_of_squares"; metrics "metrics" with "count"."""
        arrays = pack({"sum": self.sum, "sum_of_squares": self.sum_of_squares})
        return RecordDict({RECORD: arrays, "metrics": MetricRecord({"count": self.count})})

    @classmethod
    def from_content(cls, content: RecordDict, width: int) -> Self:
        """Reads such a reply. Raises MalformedMessage that says what was wrong with it."""
        if set(content) != {RECORD, "metrics"} or RECORD not in content.array_records:
            raise MalformedMessage(f"expected {RECORD} and metrics, got {sorted(content)!r:.100}")
        metrics = content.metric_records.get("metrics")
        if metrics is None or set(metrics) != {"count"}:
            raise MalformedMessage("metrics: expected count alone")
        count = metrics["count"]
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise MalformedMessage(f"metric count: expected 1 to {MAX_COUNT}, got {count!r:.40}")
        record = content.array_records[RECORD]
        expect_names(record, ("sum", "sum_of_squares"))
        total = read_array("sum", record["sum"], "float64", (width,))
        squares = read_array("sum_of_squares", record["sum_of_squares"], "float64", (width,))
        if (np.abs(total) > _MAX_SUM).any() or (np.abs(squares) > _MAX_SUM).any():
            raise MalformedMessage(f"array sum: expected values up to {_MAX_SUM:g}")
        if (squares < total**2 / count * (1 - _ROUNDING)).any():
            raise MalformedMessage("array sum_of_squares: smaller than any features give")
        return cls(count, total, squares)


@dataclass(frozen=True, slots=True)
class Statistics:
    """``mean`` and ``std``, float32 [w]; no deviation is below 1e-6, so it can divide."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    @classmethod
    def combine(cls, sums: Sequence[Sums]) -> Self:
        """Over the union; if one institution hides its count, all weigh the same, as in rounds.

        ``sums`` are of one width, in an order that does not depend on who was faster.
        """
        hidden = any(found.count == 1 for found in sums)
        weights = [1 if hidden else found.count for found in sums]
        total = sum(weights)
        mean = np.zeros_like(sums[0].sum)
        squares = np.zeros_like(mean)
        for found, weight in zip(sums, weights, strict=True):
            mean += found.sum / found.count * (weight / total)
            squares += found.sum_of_squares / found.count * (weight / total)
        std = np.sqrt(np.maximum(squares - mean**2, 0))
        return cls(mean.astype(np.float32), np.maximum(std, MIN_STD).astype(np.float32))

    def to_record(self) -> ArrayRecord:
        """Arrays "mean" and "std"."""
        return pack({"mean": self.mean, "std": self.std})

    @classmethod
    def from_record(cls, record: ArrayRecord, width: int) -> Self:
        """Reads what the coordinator sent. Raises MalformedMessage."""
        expect_names(record, ("mean", "std"))
        mean = read_array("mean", record["mean"], "float32", (width,))
        std = read_array("std", record["std"], "float32", (width,))
        # The bound as float32 holds it: 1e-6 itself lies a little above.
        if (std < np.float32(MIN_STD)).any():
            raise MalformedMessage(f"array std: expected at least {MIN_STD:g}")
        return cls(mean, std)
