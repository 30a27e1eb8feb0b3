"""Federated averaging (McMahan et al., arXiv:1602.05629) that believes nothing it is told.

Flower's FedAvg takes NaN, negative weights and wrong shapes that happen to broadcast, ends the
run for one strange reply, averages one reply of ten, and waits for ever. This one reads every
reply as foreign bytes, drops a bad one and says why, wants a quorum, and has a deadline. It sums
in the order of the node ids, so the result does not depend on who was faster.
"""

import math
import time
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from protocol.errors import MalformedMessage, TrainingError
from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays, pack, unpack
from server.round import InstitutionReport, RoundReport

MAX_EXAMPLES = 100_000_000
#: No honest round moves a weight as far; one that does would leave nothing of the model.
MAX_CHANGE = 100.0
#: So many rounds in a row without a quorum end the run.
PATIENCE = 3
_POLL_SECONDS = 0.5
_TRAIN_METRICS = {"train-loss", "num-examples"}
_OPTIONAL_METRICS = {"val-recall-at-10", "pairs-skipped"}
_METRIC_RANGES = {
    "train-loss": (0.0, 1e6),
    "num-examples": (1, MAX_EXAMPLES),
    "val-recall-at-10": (0.0, 1.0),
    "pairs-skipped": (0, MAX_EXAMPLES),
}


class CheckedFedAvg(FedAvg):
    """FedAvg over checked changes of the weights: new = old + weighted mean of the changes.

    The weights are the numbers of examples. As soon as one institution keeps its number to
    itself (it then says 1), all weigh the same, for a mixture of both would silence it.

    ``reports`` holds a RoundReport for each round; ``recalls`` the last round's evaluation of
    the final model, by institution.
    """

    def __init__(self, initial: Arrays, settings: TrainingSettings) -> None:
        super().__init__(
            min_train_nodes=settings.quorum,
            min_evaluate_nodes=settings.quorum,
            min_available_nodes=settings.quorum,
        )
        self.settings = settings
        self.current = initial
        self.reports: list[RoundReport] = []
        self.recalls: dict[str, float] = {}
        self._asked: dict[int, str] = {}
        self._started = 0.0
        self._bytes_down = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sends the global model to every institution that is there, once a quorum is.

        Raises TrainingError when the deadline passes without one.
        """
        self._started = time.monotonic()
        self._asked = self._wait_for_quorum(grid)
        self._bytes_down = arrays.count_bytes() * len(self._asked)
        return self._messages(MessageType.TRAIN, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Averages the valid replies; (None, None), which keeps the old model, below quorum.

        Raises TrainingError when the first round has no valid reply at all, or when PATIENCE
        rounds in a row miss the quorum.
        """
        replies = list(replies)
        valid, reports = self._check_all(replies)
        counted = len(valid) >= self.settings.quorum
        self.reports.append(
            RoundReport(
                number=server_round,
                rounds=self.settings.rounds,
                counted=counted,
                institutions=tuple(reports[node] for node in sorted(reports)),
                seconds=time.monotonic() - self._started,
                bytes_down=self._bytes_down,
                bytes_up=sum(map(_reply_bytes, replies)),
            )
        )
        if not counted:
            self._give_up_if_hopeless(len(valid))
            return None, None
        self.current = self._average(valid)
        return pack(self.current), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Has the final model evaluated; the earlier ones are, in the next round's train."""
        if server_round < self.settings.rounds:
            return []
        return self._messages(MessageType.EVALUATE, server_round, arrays, config)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keeps what each institution measured in ``recalls``; an odd reply is passed over."""
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            name = self._asked.get(reply.metadata.src_node_id)
            try:
                metrics = _metrics(reply.content, set()) if not reply.has_error() else {}
            except MalformedMessage:
                continue
            if name is not None and "val-recall-at-10" in metrics:
                self.recalls[name] = float(metrics["val-recall-at-10"])
        return None

    def _wait_for_quorum(self, grid: Grid) -> dict[int, str]:
        """The institutions that are there, by node id. Raises TrainingError at the deadline."""
        while True:
            nodes = {node.node_id: node.name or str(node.node_id) for node in grid.get_nodes()}
            if len(nodes) >= self.settings.quorum:
                return dict(sorted(nodes.items()))
            if time.monotonic() - self._started > self.settings.deadline_seconds:
                raise TrainingError(
                    f"only {len(nodes)} institutions are there after "
                    f"{self.settings.deadline_seconds:g} s; expected {self.settings.quorum}",
                    "start the missing institutions, or lower the quorum",
                )
            time.sleep(_POLL_SECONDS)

    def _messages(
        self, kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        config = ConfigRecord({**config, "server-round": server_round})
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(
                content,
                dst_node_id=node,
                message_type=kind,
                ttl=self.settings.deadline_seconds,
                group_id=str(server_round),
            )
            for node in self._asked
        ]

    def _check_all(
        self, replies: Iterable[Message]
    ) -> tuple[dict[int, tuple[Arrays, int]], dict[int, InstitutionReport]]:
        """Valid (change, examples) by node, ascending, and a report on every node asked."""
        valid: dict[int, tuple[Arrays, int]] = {}
        reports = {
            node: InstitutionReport(name, dropped="no reply within the deadline")
            for node, name in self._asked.items()
        }
        answered: set[int] = set()
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if node not in self._asked or node in answered:
                continue  # nobody was asked under this name, or it has had its say
            answered.add(node)
            name = self._asked[node]
            try:
                change, metrics = self._check(reply)
            except MalformedMessage as error:
                reports[node] = InstitutionReport(name, dropped=error.message)
                continue
            examples = int(metrics["num-examples"])
            skipped = metrics.get("pairs-skipped")
            valid[node] = change, examples
            reports[node] = InstitutionReport(
                name,
                train_loss=float(metrics["train-loss"]),
                val_recall_at_10=metrics.get("val-recall-at-10"),
                examples=examples if examples > 1 else None,
                pairs_skipped=None if skipped is None else int(skipped),
            )
        return valid, reports

    def _check(self, reply: Message) -> tuple[Arrays, dict[str, float]]:
        """Reads one reply. Raises MalformedMessage that says what was wrong with it."""
        if reply.has_error():
            raise MalformedMessage(f"error: {_printable(reply.error.reason)}")
        content = reply.content
        if set(content) != {"arrays", "metrics"} or "arrays" not in content.array_records:
            raise MalformedMessage(f"expected arrays and metrics, got {sorted(content)!r:.100}")
        metrics = _metrics(content, _TRAIN_METRICS)
        change = unpack(content.array_records["arrays"], self.current)
        for name, values in change.items():
            if values.size and np.abs(values).max() > MAX_CHANGE:
                raise MalformedMessage(f"array {name}: changed by more than {MAX_CHANGE:g}")
        return change, metrics

    def _average(self, valid: dict[int, tuple[Arrays, int]]) -> Arrays:
        """In float64 and in the order of the node ids, then back to float32."""
        hidden = any(examples == 1 for _, examples in valid.values())
        weights = {node: 1 if hidden else examples for node, (_, examples) in valid.items()}
        total = sum(weights.values())
        averaged: Arrays = {}
        for name, old in self.current.items():
            new = old.astype(np.float64)
            for node, (change, _) in valid.items():
                new += change[name].astype(np.float64) * (weights[node] / total)
            averaged[name] = new.astype(np.float32)
        return averaged

    def _give_up_if_hopeless(self, valid: int) -> None:
        recent = self.reports[-PATIENCE:]
        missed = len(recent) == PATIENCE and not any(report.counted for report in recent)
        if not missed and (valid or len(self.reports) > 1):
            return
        why = "; ".join(f"{report.name}: {report.dropped}" for report in recent[-1].dropped)
        raise TrainingError(
            f"round {recent[-1].number}: {valid} usable replies, expected at least "
            f"{self.settings.quorum} ({why})",
            "see the institutions' own logs for what went wrong there",
        )


def _metrics(content: RecordDict, required: set[str]) -> dict[str, float]:
    """The numbers of a reply, by name. Raises MalformedMessage for a name, type or range."""
    record = content.metric_records.get("metrics")
    if record is None or not required <= set(record) <= required | _OPTIONAL_METRICS:
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


def _reply_bytes(reply: Message) -> int:
    if not reply.has_content():
        return 0
    return sum(record.count_bytes() for record in reply.content.values())


def _printable(reason: object) -> str:
    """A stranger's text, cut and made harmless to a terminal."""
    text = reason if isinstance(reason, str) else "no reason given"
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])
