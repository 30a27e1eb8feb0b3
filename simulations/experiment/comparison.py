"""What an experiment says of one partition: mean figures by model, and for whom joining pays.

Read from what ``Findings`` wrote; every part of it may be missing, and nothing in it need have
the right type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from simulations.report.charts import finite
from simulations.report.figures import percent

Verdict = Literal["pays", "does not pay", "too close to tell"]
_NAMED = 3  # names that a sentence lists


@dataclass(frozen=True)
class Model:
    """One way to train, with its scores under each seed; {} where it was not measured.

    ``stated`` are means over seeds that are known even where ``scores`` are not.
    """

    name: str
    scores: Sequence[Mapping[str, Any]]
    pairs: float | None = None
    stated: Mapping[str, object] = field(default_factory=dict)

    def mean(self, key: str) -> float | None:
        """Over seeds; None where it is known of none."""
        return mean([one.get(key) for one in self.scores])

    def deviation(self, key: str) -> float | None:
        """The standard deviation over seeds; None below two."""
        known = _known([one.get(key) for one in self.scores])
        return stdev(known) if len(known) > 1 else None

    @property
    def reverse(self) -> Model:
        """Its scores from image to text."""
        return Model(self.name, [mapping(one.get("image_to_text")) for one in self.scores])

    @property
    def recall(self) -> float | None:
        """Mean recall@10."""
        found = self.mean("recall_at_10")
        return finite(self.stated.get("recall_at_10")) if found is None else found

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of ``recall`` over test images: its ends, each a mean over seeds."""
        spans = [at(one, "interval") for one in self.scores]
        known = [ends for span in spans if (ends := _ends(span))]
        if not known:
            return _ends(self.stated.get("interval"))
        return fmean(low for low, _ in known), fmean(high for _, high in known)


@dataclass(frozen=True)
class Comparison:
    """The models of one partition."""

    name: str
    central: Model
    federated: Model
    alone: Sequence[Model]
    institutions: int
    runs: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, name: str, found: object) -> Comparison:
        """From one value of ``partitions``."""
        runs = mappings(at(found, "runs"))
        shares = [mapping(run.get("pairs")) for run in runs]
        dealt = {one for share in shares for one in share}
        held = mean([sum(_known(list(share.values()))) for share in shares if share])
        names = {one for run in runs for one in mapping(run.get("alone"))}
        names |= set(mapping(at(found, "institutions")))

        def stated(who: str) -> dict[str, object]:
            return {
                "recall_at_10": at(found, "recall_at_10", who),
                "interval": at(found, "intervals", who),
            }

        return cls(
            name,
            Model("Pooled", mappings(at(found, "central_runs")), held, stated("central")),
            Model(
                "Federated",
                [mapping(run.get("federated")) for run in runs],
                held,
                stated("federated"),
            ),
            [
                Model(
                    one,
                    [mapping(at(run, "alone", one)) for run in runs],
                    mean([share.get(one) for share in shares]),
                    {"recall_at_10": at(found, "institutions", one)},
                )
                for one in sorted(names, key=_natural)
            ],
            len(dealt | names),
            runs,
        )

    def gain(self, one: Model) -> float | None:
        """What joining adds to the recall@10 of an institution: the mean over seeds."""
        return mean(self._gains(one))

    def verdict(self, one: Model) -> Verdict | None:
        """Whether joining pays for an institution; None where either side was not measured.

        It is too close to tell where seeds disagree, or where the institution's own recall lies
        in the federated model's interval. That errs on the careful side: both models answer the
        same sentences, and an interval of their difference would be narrower.
        """
        gains, own, span = self._gains(one), one.recall, self.federated.interval
        if not gains or own is None:
            return None
        if min(gains) <= 0 <= max(gains) or (span and span[0] <= own <= span[1]):
            return "too close to tell"
        return "pays" if gains[0] > 0 else "does not pay"

    def sentence(self) -> str:
        """What was found, in words."""
        recall, alone = self.federated.recall, mean([one.recall for one in self.alone])
        if recall is None:
            return "The federated model was not measured."
        pooled = self.central.recall
        reach = f"{_institutions(self.institutions)} federated reach {percent(recall)} recall@10"
        reach += f", {recall / pooled:.2f} of pooled data" if pooled else ""
        by: dict[Verdict | None, list[str]] = {}
        for one in self.alone:
            by.setdefault(self.verdict(one), []).append(one.name)
        known = {verdict: names for verdict, names in by.items() if verdict}
        if alone is None or not known:
            return f"{reach}; what each reaches alone was not measured."
        reach += f"; alone they reach {percent(alone)} on average"
        pays, worse, close = (
            known.get(one, []) for one in ("pays", "does not pay", "too close to tell")
        )
        if len(known) == 1 and None not in by:
            whole = "Joining pays" if pays else "Joining does not pay"
            return f"{'Too close to tell whether joining pays' if close else whole}: {reach}."
        told = len(pays) + len(worse) + len(close)
        said = [f"Joining pays for {len(pays) or 'none'} of {told}: {reach}."]
        if worse:
            better = "model is" if len(worse) == 1 else "models are"
            said.append(f"It does not pay for {_listed(worse)}, whose own {better} better.")
        if close:
            said.append(f"It is too close to tell for {_listed(close)}.")
        if None in by:
            said.append(f"Not measured alone: {_listed(by[None])}.")
        return " ".join(said)

    def _gains(self, one: Model) -> list[float]:
        # Seed by seed, for both sides of a seed were dealt the same data.
        pairs = zip(self.federated.scores, one.scores, strict=True)
        gains = [
            mine - own
            for joint, single in pairs
            if (mine := finite(joint.get("recall_at_10"))) is not None
            and (own := finite(single.get("recall_at_10"))) is not None
        ]
        if gains or self.federated.recall is None or one.recall is None:
            return gains
        return [self.federated.recall - one.recall]


def at(value: object, *path: str) -> Any:
    """The value at a path of keys, or None."""
    for key in path:
        value = mapping(value).get(key)
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """The value, or an empty mapping where it is none."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The items of a list, {} for any that is no mapping; none where it is no list."""
    return [mapping(one) for one in value] if isinstance(value, list | tuple) else []


def mean(values: Sequence[object]) -> float | None:
    """The mean of the numbers among them, or None."""
    known = _known(values)
    return fmean(known) if known else None


def _known(values: Sequence[object]) -> list[float]:
    return [number for value in values if (number := finite(value)) is not None]


def _ends(span: object) -> tuple[float, float] | None:
    ends = _known(span) if isinstance(span, list | tuple) and len(span) == 2 else []
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _natural(name: str) -> str:
    """institution-2 before institution-10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(64), name)


def _institutions(count: int) -> str:
    return {0: "Institutions", 1: "1 institution"}.get(count, f"{count} institutions")


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
