"""A round of federated optimisation that believes nothing it is told.

Flower's own strategies average one reply of ten, wait for ever, and neither end a run early nor
begin one in the middle. Here a round wants a quorum, has a deadline, drops a bad reply and says
why, and takes all that it depends on from ``Progress``.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from protocol.errors import TrainingError, UsageError
from protocol.model import statistics
from protocol.model.compression import codec_of
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics, Sums
from protocol.model.update import Arrays, pack_model
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import highest
from server.averaging import mean_change
from server.exchange import exchange
from server.masked_rounds import MaskedRounds
from server.optimisers import Moments
from server.participants import draw, present, wait_for_quorum
from server.privacy import CentralPrivacy
from server.progress import Progress
from server.replies import Update, collect, count_bytes, read_recall, read_update
from server.round import InstitutionReport, RoundReport
from server.secure_sum import Records

#: So many rounds in a row without a quorum end the run.
MAX_MISSED = 3
_LOGS = "see the institutions' own logs for what went wrong there"
_log = logging.getLogger("blindsight.coordinator")


class Strategy:
    """Asks the institutions that ``grid`` reaches, and moves ``progress`` on.

    ``roster`` says who they are; secure aggregation needs it. Raises UsageError if it is missing.
    """

    def __init__(
        self,
        grid: Grid,
        settings: TrainingSettings,
        progress: Progress,
        roster: Roster | None = None,
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._progress = progress
        self._codec = codec_of(settings.compression)
        self._central: CentralPrivacy | None = None
        if settings.central_noise:
            self._central = CentralPrivacy(settings.central_noise, settings.central_clip)
        self._masked: MaskedRounds | None = None
        if settings.secure_aggregation:
            if roster is None:
                raise UsageError(
                    "secure aggregation needs the federation's roster",
                    "name it in the run's settings: roster, and identity for the authority's key",
                )
            self._masked = MaskedRounds(self._send, settings, progress.run, roster)

    def standardise(self, width: int) -> Statistics:
        """Mean and deviation of image features [width] over the institutions that are there.

        Raises TrainingError when fewer than a quorum say theirs.
        """
        asked = wait_for_quorum(self._grid, self._settings)
        if self._masked is not None:
            return self._masked.standardise(asked, width)
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
        if self._masked is not None:
            return self._train_masked(asked, number, started, self._masked)
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
        change = mean_change(list(valid.values())) if report.counted else None
        return self._finish(report, len(valid), change)

    def evaluate(self, model: Arrays) -> dict[str, float]:
        """The validation recall@10 of ``model`` at every institution that is there and tells.

        With secure aggregation their mean, under the name EVERYBODY.
        """
        asked = present(self._grid)
        number = self._progress.number
        if self._masked is not None:
            return self._masked.evaluate(asked, number, self._model(model))
        replies = self._ask(MessageType.EVALUATE, asked, number, self._model(model))
        found, _ = collect(replies, asked, read_recall)
        return {asked[node]: recall for node, recall in found.items() if recall is not None}

    def _train_masked(
        self, asked: dict[int, str], number: int, started: float, rounds: MaskedRounds
    ) -> RoundReport:
        """A round of which nothing but sums is ever seen here."""
        progress = self._progress
        model = self._model(progress.current)
        found, change, said = rounds.train(asked, number, model, progress.current)
        survivors = () if change is None else found.survivors
        report = RoundReport(
            number=number,
            rounds=self._settings.rounds,
            counted=change is not None,
            institutions=tuple(
                InstitutionReport(
                    name,
                    dropped=None
                    if node in survivors
                    else found.reasons.get(node, said.failure or "its vector did not arrive"),
                    bytes_up=found.sent.get(node, 0),
                    privacy_epsilon=found.epsilons.get(node) if node in survivors else None,
                )
                for node, name in asked.items()
            ),
            seconds=time.monotonic() - started,
            bytes_down=found.received,
            bytes_up=sum(found.sent.values()),
            masked=said,
        )
        return self._finish(report, len(survivors), change)

    def _finish(self, report: RoundReport, valid: int, change: Moments | None) -> RoundReport:
        """One step, if the round counts; the report with what it cost."""
        progress = self._progress
        self._give_up_if_hopeless(report, valid)
        if change is not None:
            if self._settings.patience:
                progress.judge(report.val_recall_at_10)
            if self._central is not None:
                change = self._central.protect(change, valid, self._rounding(report))
                noisy = 1 + sum(one.counted for one in progress.reports)
                report = replace(report, central_epsilon=self._central.epsilon(noisy))
            progress.current = progress.optimiser.step(progress.current, change)
        progress.reports.append(report)
        return report

    def _rounding(self, report: RoundReport) -> float:
        """How far secure aggregation moves any value of a change of weight 1."""
        if self._masked is None:
            return 0.0
        step = self._settings.clipping_range / highest(32, len(report.institutions))
        return step * self._settings.max_weight / 2

    def _model(self, arrays: Arrays) -> Records:
        records: Records = {"arrays": pack_model(arrays)}
        if self._progress.statistics is not None:
            records[statistics.RECORD] = self._progress.statistics.to_record()
        return records

    def _ask(self, kind: str, asked: Iterable[int], number: int, records: Records) -> list[Message]:
        """Sends the same to each and waits for the replies, no longer than the deadline."""
        return self._send(kind, number, dict.fromkeys(asked, records))

    def _send(self, kind: str, number: int, contents: Mapping[int, Records]) -> list[Message]:
        """Sends each its own."""
        config = ConfigRecord(
            {
                **self._settings.to_run_config(),
                "run": self._progress.run,
                "server-round": number,
            }
        )
        deadline = self._settings.deadline_seconds
        messages = [
            Message(
                RecordDict({**records, "config": config}),
                node,
                kind,
                ttl=deadline,
                group_id=str(number),
            )
            for node, records in contents.items()
        ]
        return exchange(self._grid, messages, deadline)

    def _give_up_if_hopeless(self, report: RoundReport, valid: int) -> None:
        recent = [*self._progress.reports, report][-MAX_MISSED:]
        missed = len(recent) == MAX_MISSED and not any(found.counted for found in recent)
        # A coordinator that was killed may have unmasked this round, and is refused it now.
        if not missed and (valid or report.number > 1 or report.masked is not None):
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
        privacy_epsilon=update.privacy_epsilon,
    )
