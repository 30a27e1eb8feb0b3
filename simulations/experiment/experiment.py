"""Runs an experiment: the same model alone, federated and on pooled data, with equal looks at data.

Only a simulation can do this: it pools what no party may see together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from client.institution.evaluation import evaluate_vectors, relevance
from client.institution.pairs import Pair, PairFolder, read_pairs, write_pairs
from client.institution.reading import Source, read_public, source_of
from client.institution.training_set import TrainingSet
from protocol.errors import DataError, UsageError
from protocol.files import writing
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers
from protocol.terminal import Outcome, progress, say
from server.round import RoundReport
from simulations.baselines import CENTRAL, train_alone, train_together
from simulations.experiment.findings import Findings
from simulations.experiment.settings import ExperimentSettings
from simulations.grid import run_in_process
from simulations.institutions import by_name
from simulations.options import encoders_of, own_of, training_of
from simulations.partition import parse_partition, partition, take


def experiment(settings: ExperimentSettings) -> Outcome:
    """Run everything that ``settings`` ask for; table, page and JSON lie in ``settings.out``.

    What is found is written after every run, so that a crash costs only the run it comes in.
    """
    if settings.data is None:
        raise UsageError("it is not said on which data", "Give --data FOLDER.")
    options = settings.model_dump()
    own = own_of(options)
    source = source_of(settings.data, own)
    folder = take(read_pairs(settings.data, source.group_key), settings.limit, 0)
    for notice in folder.notices:
        say(notice)
    names = _partitions(settings, folder)
    shares = {
        (name, seed): _shares(folder, name, settings, seed)
        for seed in range(settings.seeds)
        for name in names
    }
    encoders = encoders_of(options)
    pretrained = Pretrained.load(encoders)
    training = training_of(options, pretrained.settings)
    bench = Bench(folder, source, encoders, pretrained, own, training)
    findings = Findings(settings, training, len(folder.pairs), bench.gallery)
    with writing(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
    for seed in range(settings.seeds):
        findings.add_central(seed, bench.central(seed).scores)
        for name in names:
            held = shares[name, seed]
            with TemporaryDirectory(prefix=".homes-", dir=settings.out) as homes:
                _deal(Path(homes), folder, held)
                federated, reports = bench.federated(seed, Path(homes), name)
            alone = bench.alone(seed, held, name) if settings.local else {}
            pairs = {one: _count_training(some) for one, some in held.items()}
            scores = {one: found.scores for one, found in alone.items()}
            findings.add(name, seed, pairs, federated.scores, scores, reports)
            findings.save(settings.out)
    return findings.finish(settings.out)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model: recall and rank over the whole test gallery."""

    scores: dict[str, Any]


class Bench:
    """What all runs of an experiment share: the data as training sees it, and the test."""

    def __init__(
        self,
        folder: PairFolder,
        source: Source,
        encoders: EncoderChoice,
        pretrained: Pretrained,
        own: dict[str, bool | float | int | str],
        training: TrainingSettings,
    ) -> None:
        self._folder, self._source, self._own = folder, source, own
        self._encoders, self._pretrained, self._training = encoders, pretrained, training
        path = source.public_captions
        self._public = read_public(Path(path)) if path else ()
        self._model = pretrained.start(training)
        with progress("reading, and features of frozen encoders", len(folder.pairs)) as show:
            self._show = show
            self._test = self._set(folder.split("test"))
            self._train = self._set(folder.split("train"))
        self._show = lambda done: None
        if not len(self._test):
            raise DataError(
                "there is no test image to measure with",
                'Mark some lines "split": "test", or leave "split" out.',
            )
        captions = self._test.captions
        self._groups = captions.groups or None
        self._queries, self._relevant = relevance(captions.of_items, self._groups)

    @property
    def gallery(self) -> tuple[int, int]:
        """How many images are searched with how many sentences."""
        return len(self._test), len(self._queries)

    def central(self, seed: int) -> Measured:
        """On all training pairs in one place, without the noise that institutions need."""
        settings = replace(self._training, seed=seed, privacy_noise=0.0)
        with progress(f"seed {seed}: pooled", 100) as show:
            model = train_alone(
                self._train, settings, self._pretrained, CENTRAL, lambda done: show(int(100 * done))
            )
        return self._measure(model)

    def federated(
        self, seed: int, homes: Path, name: str
    ) -> tuple[Measured, Sequence[RoundReport]]:
        """By the institutions below ``homes``, through Flower."""
        folders = {one.name: one for one in sorted(homes.iterdir())}
        settings = replace(self._training, seed=seed, quorum=min(2, len(folders)))
        with progress(f"seed {seed}: federated, {name}", settings.rounds) as show:
            run = run_in_process(
                folders,
                settings,
                encoders=self._encoders,
                own=self._own,
                on_round=lambda report: show(report.number),
            )
        return self._measure(run.model), run.reports

    def alone(self, seed: int, shares: Mapping[str, list[Pair]], name: str) -> dict[str, Measured]:
        """Each institution for itself, which needs no noise."""
        settings = replace(self._training, seed=seed, privacy_noise=0.0)
        sets = {
            one: self._set([pair for pair in pairs if pair.split == "train"])
            for one, pairs in shares.items()
        }
        with progress(f"seed {seed}: each alone, {name}", len(sets)) as show:
            models = train_together(sets, settings, self._pretrained, on_done=show)
        return {one: self._measure(model) for one, model in models.items()}

    def _set(self, pairs: Sequence[Pair]) -> TrainingSet:
        held = self._source.of(
            self._folder, pairs, self._model, self._training, self._public, self._show
        )
        if held.cut:
            say(f"{held.cut:,} captions are longer than the text encoder takes, and cut")
        return held.data

    def _measure(self, model: TwoTowers) -> Measured:
        found = evaluate_vectors(
            self._test.image_vectors(model),
            self._test.text_vectors(model, self._queries),
            self._relevant,
            self._groups,
        )
        return Measured(
            asdict(found.text_to_image)
            | {
                "image_to_text": asdict(found.image_to_text),
                "interval": list(found.intervals.text_to_image.recall_at_10),
            }
        )


def _partitions(settings: ExperimentSettings, folder: PairFolder) -> list[str]:
    """What to compare; every one is understood before anything is trained."""
    if settings.partitions is None:
        return ["site"] if len(folder.sites) > 1 else ["iid", "dirichlet:0.3", "topics"]
    names = list(dict.fromkeys(filter(None, map(str.strip, settings.partitions.split(",")))))
    if not names:
        raise UsageError("partitions: expected at least one", "try iid,dirichlet:0.3")
    for name in names:
        parse_partition(name)
    return names


def _shares(
    folder: PairFolder, name: str, settings: ExperimentSettings, seed: int
) -> dict[str, list[Pair]]:
    scheme = parse_partition(name)
    count = None if scheme.kind == "site" else settings.institutions
    return by_name(partition(folder, scheme, count, seed))


def _deal(homes: Path, folder: PairFolder, shares: Mapping[str, Sequence[Pair]]) -> None:
    """A folder of its own for every institution, as in life; only training and validation."""
    for name, pairs in shares.items():
        write_pairs(homes / name, [pair for pair in pairs if pair.split != "test"], folder)


def _count_training(pairs: Sequence[Pair]) -> int:
    return sum(pair.split == "train" for pair in pairs)
