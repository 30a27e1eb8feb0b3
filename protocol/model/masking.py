"""Secure aggregation as Flower carries it: names of messages, records, and what stands in totals.

Every message of a session has a record "masking" with "purpose" and "number", and the bytes of
``protocol.secure_aggregation`` under the names below. A masked vector travels as arrays "masked":
"update", uint32 [p], and "totals", uint64 [k].
"""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType

from protocol.errors import MalformedMessage
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Sums
from protocol.model.update import expect_names, pack, read_array
from protocol.secure_aggregation.contribution import Contribution, Floats, Sum
from protocol.secure_aggregation.masks import Masked
from protocol.secure_aggregation.session import Purpose, Session

ADVERTISE, SHARE, AGREE, UNMASK = (
    f"{MessageType.QUERY}.{action}" for action in ("advertise", "share", "agree", "unmask")
)
RECORD = "masking"
MASKED = "masked"
#: In the totals of "train" and of "evaluate", in this order.
EVALUATE_TOTALS = ("val-recall-at-10", "measured")
TRAIN_TOTALS = ("weight", "train-loss", *EVALUATE_TOTALS, "pairs-skipped", "captions-cut")


def session_of(
    settings: TrainingSettings, federation: str, run: str, purpose: Purpose | str, number: int
) -> Session:
    """The session that these settings make. Raises MalformedMessage."""
    return Session(
        federation,
        run,
        purpose,
        number,
        settings.reconstruction_threshold,
        settings.clipping_range,
        settings.max_weight,
    )


def named(record: ConfigRecord | None, name: str) -> bytes:
    """The bytes under this name. Raises MalformedMessage if they are not there."""
    value = None if record is None else record.get(name)
    if not isinstance(value, bytes):
        raise MalformedMessage(f"{RECORD}: expected bytes under the name {name}")
    return value


def pack_masked(words: Masked) -> ArrayRecord:
    """Undone by ``read_masked``."""
    return pack({"update": words.update, "totals": words.totals})


def read_masked(record: ArrayRecord | None, parameters: int, totals: int) -> Masked:
    """A masked vector of exactly these sizes. Raises MalformedMessage."""
    if record is None:
        raise MalformedMessage(f"expected arrays under the name {MASKED}")
    expect_names(record, ("totals", "update"))
    return Masked(
        read_array("update", record["update"], "uint32", (parameters,)),
        read_array("totals", record["totals"], "uint64", (totals,)),
    )


def totals_of(names: tuple[str, ...], values: dict[str, Any]) -> Floats:
    """Values by name, in order, as they stand in totals; 0 for what is not there."""
    return np.array([float(values.get(name, 0)) for name in names])


def contribution_of(sums: Sums) -> Contribution:
    """Sums of features as totals: the count, w sums, w sums of squares."""
    totals = np.concatenate([[sums.count], sums.sum, sums.sum_of_squares])
    return Contribution(np.zeros(0, np.float32), totals)


def sums_of(summed: Sum) -> Sums:
    """Undoes ``contribution_of``, of a sum. Raises MalformedMessage for an impossible count."""
    count, width = round(float(summed.totals[0])), len(summed.totals) // 2
    if count < 1:
        raise MalformedMessage(f"statistics: expected a count of at least 1, got {count}")
    return Sums(count, summed.totals[1 : 1 + width], summed.totals[1 + width :])
