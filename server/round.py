"""What a round of training gave: plain data for a progress bar, a report, a history."""

from collections.abc import Iterable
from dataclasses import dataclass

#: The name under which the mean over all institutions stands; it is no name of a party.
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class InstitutionReport:
    """What one institution said in one round, or why its reply was not used.

    ``val_recall_at_10`` is of the model that the institution *received* in this round, on its
    own validation split. None stands for what it did not say or may not say. ``bytes_up`` is
    the size of its reply, used or not. ``privacy_epsilon`` is what its records have paid so far.
    """

    name: str
    train_loss: float | None = None
    val_recall_at_10: float | None = None
    examples: int | None = None
    pairs_skipped: int | None = None
    captions_cut: int | None = None
    dropped: str | None = None
    bytes_up: int = 0
    privacy_epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class MaskedSums:
    """What a round under secure aggregation said: of all its institutions together, of none alone.

    The loss and the recall are means; ``examples``, ``pairs_skipped`` and ``captions_cut`` are
    sums, None where an institution keeps its own to itself. ``exchanges`` is how many messages
    each was sent, ``bytes`` what all of them cost beside vectors and model, ``seconds`` the time
    beside the wait for vectors. ``failure`` says why there is no sum; then there is nothing else.
    """

    train_loss: float | None = None
    val_recall_at_10: float | None = None
    examples: int | None = None
    pairs_skipped: int | None = None
    captions_cut: int | None = None
    exchanges: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round: ``number`` of ``rounds``, the institutions drawn in a fixed order, seconds, bytes.

    ``counted`` says whether enough valid replies came; if not, the model stayed as it was.
    ``bytes_down`` went to all institutions together, ``bytes_up`` came back. ``masked`` is None
    where each institution's update was seen by itself. ``central_epsilon`` is what the rounds until
    then cost an institution as a whole, at ``server.privacy.CENTRAL_DELTA``; None without noise.
    """

    number: int
    rounds: int
    counted: bool
    institutions: tuple[InstitutionReport, ...]
    seconds: float
    bytes_down: int
    bytes_up: int
    masked: MaskedSums | None = None
    central_epsilon: float | None = None

    @property
    def train_loss(self) -> float | None:
        """The mean over the institutions whose update counted."""
        if self.masked is not None:
            return self.masked.train_loss
        return _mean(one.train_loss for one in self.institutions)

    @property
    def val_recall_at_10(self) -> float | None:
        """The mean over the institutions that measured the model that they received."""
        if self.masked is not None:
            return self.masked.val_recall_at_10
        return _mean(one.val_recall_at_10 for one in self.institutions)

    @property
    def dropped(self) -> tuple[InstitutionReport, ...]:
        """The institutions whose reply was not used."""
        return tuple(report for report in self.institutions if report.dropped is not None)


def _mean(values: Iterable[float | None]) -> float | None:
    said = [value for value in values if value is not None]
    return sum(said) / len(said) if said else None
