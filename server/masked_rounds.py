"""A run's rounds under secure aggregation: what is asked for as a sum, and what the sum says.

Statistics of features, changes of the model and recalls are summed alike; the coordinator never
reads what one institution sent.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType

from protocol.errors import MalformedMessage, TrainingError
from protocol.model import statistics
from protocol.model.masking import EVALUATE_TOTALS, TRAIN_TOTALS, session_of, sums_of
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics
from protocol.model.update import Arrays
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import TOTAL_STEP
from protocol.secure_aggregation.session import Purpose
from server.averaging import mean_of_sum
from server.optimisers import Moments
from server.replies import MAX_EXAMPLES
from server.round import EVERYBODY, MaskedSums
from server.secure_sum import Records, Secured, SecureSum

#: Sends its own records to each node in a round, and returns the replies that came in time.
Send = Callable[[str, int, Mapping[int, Records]], list[Message]]
_KINDS = {
    "statistics": statistics.MESSAGE_TYPE,
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
}
_log = logging.getLogger("blindsight.coordinator")


@dataclass(slots=True)
class MaskedRounds:
    """The sums of the run ``run``; ``roster`` is the coordinator's own."""

    send: Send
    settings: TrainingSettings
    run: str
    roster: Roster
    _sums: SecureSum = field(init=False)
    _round: int = 0
    _evaluated: int = 0

    def __post_init__(self) -> None:
        self._sums = SecureSum(lambda kind, own: self.send(kind, self._round, own), self.roster)

    def standardise(self, asked: Mapping[int, str], width: int) -> Statistics:
        """Mean and deviation of features [width] over all. Raises TrainingError."""
        found = self._sum("statistics", 0, asked, {}, (0, 1 + 2 * width), ("train", 1))
        why = "; ".join(f"{asked[node]}: {reason}" for node, reason in found.reasons.items())
        if found.total is None:
            raise TrainingError(
                f"statistics: {found.failure} ({why})",
                "see the institutions' own logs for what went wrong there",
            )
        if why:
            _log.warning("statistics without some institutions: %s", why)
        return Statistics.combine([sums_of(found.total)])

    def train(
        self, asked: Iterable[int], number: int, model: Records, like: Arrays
    ) -> tuple[Secured, Moments | None, MaskedSums]:
        """Round ``number``: the mean change of arrays ``like`` these, None where there is none."""
        sizes = sum(values.size for values in like.values()), len(TRAIN_TOTALS)
        last = number >= self.settings.rounds
        following: tuple[Purpose, int] = ("evaluate", number) if last else ("train", number + 1)
        self._round = number
        found = self._sum("train", number, asked, model, sizes, following)
        said = MaskedSums(exchanges=found.exchanges, bytes=found.overhead, seconds=found.seconds)
        if found.total is None:
            return found, None, replace(said, failure=found.failure)
        totals = dict(zip(TRAIN_TOTALS, found.total.totals.tolist(), strict=True))
        weight, clip = totals["weight"] / self.settings.max_weight, self.settings.clipping_range
        count = len(found.survivors)
        try:
            _check(totals, count, self.settings.max_weight)
            change = mean_of_sum(found.total.update, weight, like, clip)
        except MalformedMessage as error:
            return found, None, replace(said, failure=error.message)
        if not found.equal:
            said = replace(
                said,
                examples=round(totals["weight"]),
                pairs_skipped=round(totals["pairs-skipped"]),
                captions_cut=round(totals["captions-cut"]),
            )
        return (
            found,
            change,
            replace(
                said,
                # Private training tells no loss.
                train_loss=None if self.settings.privacy_noise else totals["train-loss"] / count,
                val_recall_at_10=_mean(totals["val-recall-at-10"], totals["measured"]),
            ),
        )

    def evaluate(self, asked: Iterable[int], number: int, model: Records) -> dict[str, float]:
        """The mean recall of a model under the name EVERYBODY; nothing where there is none."""
        self._round = number
        # A second model after the same round is another sum.
        counter, self._evaluated = number + self._evaluated, self._evaluated + 1
        found = self._sum("evaluate", counter, asked, model, (0, len(EVALUATE_TOTALS)))
        if found.total is None:
            _log.warning("no recall of the finished model: %s", found.failure)
            return {}
        recall = _mean(*found.total.totals.tolist())
        return {} if recall is None else {EVERYBODY: recall}

    def _sum(
        self,
        purpose: Purpose,
        number: int,
        asked: Iterable[int],
        records: Records,
        sizes: tuple[int, int],
        following: tuple[Purpose, int] | None = None,
    ) -> Secured:
        federation = self.roster.federation
        session = session_of(self.settings, federation, self.run, purpose, number)
        return self._sums.of(
            session,
            _KINDS[purpose],
            dict.fromkeys(asked, records),
            sizes,
            self.settings.quorum,
            following and session_of(self.settings, federation, self.run, *following),
        )


def _check(totals: Mapping[str, float], count: int, max_weight: int) -> None:
    """Raise MalformedMessage for sums that ``count`` honest institutions cannot give.

    One that sends what it likes cannot be told from others, but a mask that does not fit its
    shares leaves totals that are random in 64 bits, and those do not lie in these ranges.
    """
    ranges: dict[str, tuple[float, float]] = {
        "weight": (count, count * max_weight),
        "train-loss": (0, count * 1e6),
        "measured": (0, count),
        "val-recall-at-10": (0, totals["measured"]),
        "pairs-skipped": (0, count * MAX_EXAMPLES),
        "captions-cut": (0, count * MAX_EXAMPLES),
    }
    slack = count * TOTAL_STEP  # each was rounded by itself
    for name, (low, high) in ranges.items():
        if not low - slack <= totals[name] <= high + slack:
            raise MalformedMessage(
                f"the sum of {name} is {totals[name]:g}, expected {low:g} to {high:g}: an "
                "institution broke the rules, or its masks are not those that it shared"
            )


def _mean(total: float, count: float) -> float | None:
    return total / round(count) if round(count) > 0 else None
