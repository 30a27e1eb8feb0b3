"""What a round of training gave: plain data for a progress bar, a report, a history."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstitutionReport:
    """What one institution said in one round, or why its reply was not used.

    ``val_recall_at_10`` is of the model that the institution *received* in this round, on its
    own validation split. None stands for what it did not say or may not say. ``bytes_up`` is
    the size of its reply, used or not.
    """

    name: str
    train_loss: float | None = None
    val_recall_at_10: float | None = None
    examples: int | None = None
    pairs_skipped: int | None = None
    captions_cut: int | None = None
    dropped: str | None = None
    bytes_up: int = 0


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round: ``number`` of ``rounds``, the institutions drawn in a fixed order, seconds, bytes.

    ``counted`` says whether enough valid replies came; if not, the model stayed as it was.
    ``bytes_down`` went to all institutions together, ``bytes_up`` came back.
    """

    number: int
    rounds: int
    counted: bool
    institutions: tuple[InstitutionReport, ...]
    seconds: float
    bytes_down: int
    bytes_up: int

    @property
    def dropped(self) -> tuple[InstitutionReport, ...]:
        """The institutions whose reply was not used."""
        return tuple(report for report in self.institutions if report.dropped is not None)
