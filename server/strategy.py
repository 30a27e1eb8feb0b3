"""A round of federated optimisation that believes nothing it is told.

Flower's own strategies average one reply of ten, wait for ever, and neither end a run early nor
begin one in the middle. Here a round wants a quorum, has a deadline, drops a bad reply and says
why, and takes all that it depends on from ``Progress``.
"""

import logging
import time
from collections.abc import Iterable
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from protocol.errors import TrainingError
from protocol.model import statistics
from protocol.model.compression import codec_of
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics, Sums
from protocol.model.update import Arrays, pack
from server.averaging import mean_change
from server.participants import draw, present, wait_for_quorum
from server.progress import Progress
from server.replies import Update, collect, count_bytes, read_recall, read_update
from server.round import InstitutionReport, RoundReport

#: So many rounds in a row without a quorum end the run.
MAX_MISSED = 3
_LOGS = "see the institutions' own logs for what went wrong there"
_log = logging.getLogger("blindsight.coordinator")


class Strategy:
    """Asks the institutions that ``grid`` reaches, and moves ``progress`` on."""

    def __init__(self, grid: Grid, settings: TrainingSettings, progress: Progress) -> None:
        self._grid = grid
        self._settings = settings
        self._progress = progress
        self._codec = codec_of(settings.compression)

    def standardise(self, width: int) -> Statistics:
        """Mean and deviation of image features [width] over the institutions that are there.

        Raises TrainingError when fewer than a quorum say theirs.
        """
        asked = wait_for_quorum(self._grid, self._settings)
        replies = self._ask(statistics.MESSAGE_TYPE, asked, 0, {})
        found, reasons = collect(replies, asked, partial(Sums.from_content, width=width))
        why = "; ".join(f"{asked[node]}: {reason}" for node, reason in reasons.items())
        if len(found) < self._settings.quorum:
            raise TrainingError(
                f"statistics: {len(found)} usable replies, expected at least "
                f"{self._settings.quorum} ({why})",
                _LOGS,
            )
        if why:
            _log.warning("statistics without some institutions: %s", why)
        return Statistics.combine(list(found.values()))

    def train(self) -> RoundReport:
        """The next round: draws, asks, checks, averages and steps; below quorum no step is made.

        Raises TrainingError when the deadline passes without a quorum, when the first round has
        no valid reply at all, or when MAX_MISSED rounds in a row miss the quorum; ``progress``
        then stands where it stood.
        """
        started = time.monotonic()
        progress, number = self._progress, self._progress.number + 1
        asked = draw(wait_for_quorum(self._grid, self._settings), self._settings, number)
        arrays = self._model(progress.current)
        replies = self._ask(MessageType.TRAIN, asked, number, arrays)
        read = partial(read_update, codec=self._codec, like=progress.current)
        valid, reasons = collect(replies, asked, read)
        sizes = {reply.metadata.src_node_id: count_bytes(reply) for reply in replies}
        report = RoundReport(
            number=number,
            rounds=self._settings.rounds,
            counted=len(valid) >= self._settings.quorum,
            institutions=tuple(
                _report(name, sizes.get(node, 0), valid.get(node), reasons.get(node))
                for node, name in asked.items()
            ),
            seconds=time.monotonic() - started,
            bytes_down=sum(record.count_bytes() for record in arrays.values()) * len(asked),
            bytes_up=sum(sizes.values()),
        )
        self._give_up_if_hopeless(report, len(valid))
        if report.counted:
            if self._settings.patience:
                progress.judge(mean_recall(update.val_recall_at_10 for update in valid.values()))
            change = mean_change(list(valid.values()))
            progress.current = progress.optimiser.step(progress.current, change)
        progress.reports.append(report)
        return report

    def evaluate(self, model: Arrays) -> dict[str, float]:
        """The validation recall@10 of ``model`` at every institution that is there and tells."""
        asked = present(self._grid)
        number = self._progress.number
        replies = self._ask(MessageType.EVALUATE, asked, number, self._model(model))
        found, _ = collect(replies, asked, read_recall)
        return {asked[node]: recall for node, recall in found.items() if recall is not None}

    def _model(self, arrays: Arrays) -> dict[str, ArrayRecord]:
        records = {"arrays": pack(arrays)}
        if self._progress.statistics is not None:
            records[statistics.RECORD] = self._progress.statistics.to_record()
        return records

    def _ask(
        self, kind: str, asked: Iterable[int], number: int, records: dict[str, ArrayRecord]
    ) -> list[Message]:
        """Sends the same to each and waits for the replies, no longer than the deadline."""
        config = ConfigRecord(
            {
                **self._settings.to_run_config(),
                "run": self._progress.run,
                "server-round": number,
            }
        )
        content = RecordDict({**records, "config": config})
        deadline = self._settings.deadline_seconds
        messages = [
            Message(content, node, kind, ttl=deadline, group_id=str(number)) for node in asked
        ]
        return list(self._grid.send_and_receive(messages, timeout=deadline))

    def _give_up_if_hopeless(self, report: RoundReport, valid: int) -> None:
        recent = [*self._progress.reports, report][-MAX_MISSED:]
        missed = len(recent) == MAX_MISSED and not any(found.counted for found in recent)
        if not missed and (valid or report.number > 1):
            return
        why = "; ".join(f"{found.name}: {found.dropped}" for found in report.dropped)
        raise TrainingError(
            f"round {report.number}: {valid} usable replies, expected at least "
            f"{self._settings.quorum} ({why})",
            _LOGS,
        )


def mean_recall(recalls: Iterable[float | None]) -> float | None:
    """The plain mean of what was said; None when nobody said anything."""
    said = [recall for recall in recalls if recall is not None]
    return sum(said) / len(said) if said else None


def _report(name: str, size: int, update: Update | None, reason: str | None) -> InstitutionReport:
    if update is None:
        return InstitutionReport(name, dropped=reason, bytes_up=size)
    return InstitutionReport(
        name,
        train_loss=update.train_loss,
        val_recall_at_10=update.val_recall_at_10,
        examples=update.examples if update.examples > 1 else None,
        pairs_skipped=update.pairs_skipped,
        captions_cut=update.captions_cut,
        bytes_up=size,
    )
