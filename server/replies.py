"""Replies are foreign bytes: read with suspicion, each by itself, and a bad one is named.

Flower's FedAvg takes NaN, negative weights and wrong shapes that happen to broadcast, and ends
the run for one strange reply.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from protocol.errors import MalformedMessage
from protocol.model.compression import Codec
from protocol.model.update import Arrays

MAX_EXAMPLES = 100_000_000
#: No honest round moves a weight as far; one that does would leave nothing of the model.
MAX_CHANGE = 100.0
_TRAIN_METRICS = {"num-examples"}
_OPTIONAL_METRICS = {"val-recall-at-10"}
_OPTIONAL_TRAIN_METRICS = frozenset(
    {"train-loss", "pairs-skipped", "captions-cut", "privacy-epsilon"}
)
_NONE: frozenset[str] = frozenset()
_METRIC_RANGES = {
    "train-loss": (0.0, 1e6),
    "num-examples": (1, MAX_EXAMPLES),
    "val-recall-at-10": (0.0, 1.0),
    "pairs-skipped": (0, MAX_EXAMPLES),
    "captions-cut": (0, MAX_EXAMPLES),
    "privacy-epsilon": (0.0, 1e6),
}
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Update:
    """One institution's change of the weights and what it says of it.

    ``examples`` is 1 where the institution keeps the number to itself.
    """

    change: Arrays
    examples: int
    train_loss: float | None
    val_recall_at_10: float | None
    pairs_skipped: int | None
    captions_cut: int | None
    privacy_epsilon: float | None = None


def collect(
    replies: Iterable[Message], asked: Iterable[int], read: Callable[[RecordDict], _Read]
) -> tuple[dict[int, _Read], dict[int, str]]:
    """What ``read`` made of each reply, by ascending node id; and why the others' is missing.

    The first reply of each node that was asked counts, and nobody else's.
    """
    found: dict[int, _Read] = {}
    reasons = dict.fromkeys(asked, "no reply within the deadline")
    open_ = set(reasons)
    for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
        node = reply.metadata.src_node_id
        if node not in open_:
            continue
        open_.remove(node)
        try:
            if reply.has_error():
                raise MalformedMessage(f"error: {_printable(reply.error.reason)}")
            found[node] = read(reply.content)
            del reasons[node]
        except MalformedMessage as error:
            reasons[node] = error.message
    return found, reasons


def read_update(content: RecordDict, codec: Codec, like: Arrays) -> Update:
    """Reads a reply to "train": arrays and metrics. Raises MalformedMessage."""
    if set(content) != {"arrays", "metrics"} or "arrays" not in content.array_records:
        raise MalformedMessage(f"expected arrays and metrics, got {sorted(content)!r:.100}")
    metrics = _metrics(content, _TRAIN_METRICS, _OPTIONAL_TRAIN_METRICS)
    change = codec.decode(content.array_records["arrays"], like)
    for name, values in change.items():
        if values.size and np.abs(values).max() > MAX_CHANGE:
            raise MalformedMessage(f"array {name}: changed by more than {MAX_CHANGE:g}")
    skipped, cut = metrics.get("pairs-skipped"), metrics.get("captions-cut")
    return Update(
        change,
        examples=int(metrics["num-examples"]),
        train_loss=metrics.get("train-loss"),
        val_recall_at_10=metrics.get("val-recall-at-10"),
        pairs_skipped=None if skipped is None else int(skipped),
        captions_cut=None if cut is None else int(cut),
        privacy_epsilon=metrics.get("privacy-epsilon"),
    )


def read_epsilon(content: RecordDict) -> float | None:
    """What an institution says beside its masked vector that its records have paid, if it does."""
    if "metrics" not in content:
        return None
    return _metrics(content, set(), frozenset({"privacy-epsilon"})).get("privacy-epsilon")


def read_recall(content: RecordDict) -> float | None:
    """Reads a reply to "evaluate": None where there is no validation split."""
    return _metrics(content, set()).get("val-recall-at-10")


def count_bytes(message: Message) -> int:
    """The size of a message's content."""
    if not message.has_content():
        return 0
    return sum(size_of(record) for record in message.content.values())


def size_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """The size of a record; 0 for one with an empty text or list, which Flower fails to count."""
    try:
        return record.count_bytes()
    except (ValueError, IndexError):
        return 0


def _metrics(
    content: RecordDict, required: set[str], optional: frozenset[str] = _NONE
) -> dict[str, float]:
    """The numbers of a reply, by name. Raises MalformedMessage for a name, type or range."""
    record = content.metric_records.get("metrics")
    known = required | optional | _OPTIONAL_METRICS
    if record is None or not required <= set(record) <= known:
        got = None if record is None else sorted(record)
        raise MalformedMessage(f"metrics: expected {sorted(required)}, got {got!r:.100}")
    metrics: dict[str, float] = {}
    for name, value in record.items():
        low, high = _METRIC_RANGES[name]
        kind = int if isinstance(low, int) else float
        if type(value) is not kind or not math.isfinite(value) or not low <= value <= high:
            raise MalformedMessage(f"metric {name}: expected {low} to {high}, got {value!r:.40}")
        metrics[name] = value
    return metrics


def _printable(reason: object) -> str:
    """A stranger's text, cut and made harmless to a terminal."""
    text = reason if isinstance(reason, str) else "no reason given"
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])
