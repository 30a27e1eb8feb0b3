"""``blindsight simulate``: a whole federation on this machine, from captions to pictures found.

Every part is the real one: Flower's apps train, each institution serves in a process of its own
over mutual TLS, the searcher encrypts with SEAL. What is simulated is the distance.
"""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flwr.app import UserConfig

from client.institution.index import Index
from client.institution.indexed_folder import IndexedFolder
from client.institution.pairs import Pair, Skip, read_pairs
from client.institution.reading import source_of
from client.institution.training_set import TrainingSet
from client.searcher.searcher import Searcher
from protocol.errors import UsageError
from protocol.files import write_atomically
from protocol.model.embedder import Embedder
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.settings import TrainingSettings
from protocol.params import Preset, preset_by_name
from protocol.terminal import Outcome, progress, say
from server.round import RoundReport
from simulations.baselines import Baselines, train_baselines
from simulations.comparison import compare
from simulations.examples import choose_sentences, find_examples
from simulations.federation import LocalFederation
from simulations.grid import FederatedRun, run_in_process
from simulations.institutions import settle_institutions
from simulations.options import encoders_of, own_of, training_of
from simulations.settings import SimulationSettings
from simulations.standing import measure_models
from simulations.summary import Summary

_MARK = ".blindsight-simulation"


def simulate(settings: SimulationSettings) -> Outcome:
    """Run everything that ``settings`` ask for; results lie in ``settings.out``.

    The report and the summary are written last and whole: if they are there, all is there.
    """
    preset = preset_by_name(settings.preset)
    summary = Summary(settings)
    out = _resumed_folder(settings.out) if settings.resume else _fresh_folder(settings.out)
    federation = LocalFederation(out)
    with summary.timed("data"):
        folder = settle_institutions(settings, out / "scenes", out / "institutions")
        _tell(folder.skipped)
    homes = {name: federation.institution(name) / "data" for name in federation.names}
    options = settings.model_dump()
    encoders = encoders_of(options)
    pretrained = Pretrained.load(encoders)
    training = training_of(
        options, pretrained.settings, seed=settings.seed, quorum=min(2, len(homes))
    )
    own = own_of(options)
    with summary.timed("training"):
        run = _train(training, homes, encoders, own, out, settings.resume)
        summary.add_training(training, run)
    with summary.timed("baselines"):
        trains = _read(homes, own, "train", pretrained, training) if settings.baselines else {}
        baselines = _train_baselines(training, trains, pretrained) if settings.baselines else None
    embedder = Embedder(federation.read_release())
    with summary.timed("evaluation"):
        tests = _read(homes, own, "test", pretrained, training)
        summary.add_retrieval(measure_models(run.model, baselines, tests))
    with summary.timed("index"):
        indexes, pairs = _index(federation, homes, embedder, preset, summary)
    with summary.timed("search"), ExitStack() as stack:
        with progress("starting services", None):
            remotes = federation.serve(stack)
        searcher = stack.enter_context(Searcher(embedder, remotes))
        sentences = choose_sentences(pairs, settings.queries, settings.seed)
        with progress("searching, encrypted", len(sentences)) as show:
            comparison = compare(searcher, indexes, embedder.texts(sentences), show)
        summary.add_search(comparison, indexes)
        summary.add_memory()
        summary.add_examples(find_examples(searcher, sentences, pairs))
    return summary.finish(out)


def _fresh_folder(out: Path) -> Path:
    """Empty ``out`` if an earlier simulation made it; never delete anything else."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / _MARK).is_file():
            raise UsageError(
                f"{out} exists and was not made by blindsight simulate",
                "Name another folder with --out; nothing in this one was touched.",
            )
        for one in out.iterdir():
            if one.name != _MARK:
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    write_atomically(out / _MARK, "Made by blindsight simulate, which may replace all of it.\n")
    return out


def _resumed_folder(out: Path) -> Path:
    """What an earlier simulation left in ``out``, for its training to go on."""
    if not (out / _MARK).is_file():
        raise UsageError(
            f"there is no simulation to resume in {out}",
            "Name its folder with --out, or leave --resume out.",
        )
    return out


def _train(
    training: TrainingSettings,
    homes: Mapping[str, Path],
    encoders: EncoderChoice,
    own: UserConfig,
    out: Path,
    resume: bool,
) -> FederatedRun:
    with progress("training, federated", training.rounds) as show:

        def on_round(report: RoundReport) -> None:
            for one in report.dropped:
                say(f"round {report.number}: {one.name} left out: {one.dropped}")
            show(report.number)

        return run_in_process(
            homes,
            training,
            encoders=encoders,
            own=own,
            releases=out / "releases",
            checkpoints=out / "checkpoints",
            resume=resume,
            on_round=on_round,
        )


def _read(
    homes: Mapping[str, Path],
    own: UserConfig,
    split: str,
    pretrained: Pretrained,
    training: TrainingSettings,
) -> dict[str, TrainingSet]:
    """One split of every institution, as its own training sees it."""
    model = pretrained.start(training)
    return {
        name: source_of(home, own).read(split, model, training).data for name, home in homes.items()
    }


def _train_baselines(
    training: TrainingSettings, data: Mapping[str, TrainingSet], pretrained: Pretrained
) -> Baselines:
    done = dict.fromkeys(["central", *data], 0.0)
    with progress("training, pooled and alone", 100) as show:

        def on_progress(name: str, share: float) -> None:
            done[name] = share
            show(int(100 * sum(done.values()) / len(done)))

        return train_baselines(data, training, pretrained, on_progress=on_progress)


def _index(
    federation: LocalFederation,
    homes: Mapping[str, Path],
    embedder: Embedder,
    preset: Preset,
    summary: Summary,
) -> tuple[dict[str, Index], dict[str, list[Pair]]]:
    indexes: dict[str, Index] = {}
    pairs: dict[str, list[Pair]] = {}
    with progress("indexing", len(homes)) as show:
        for name, home in homes.items():
            root = federation.institution(name) / "index"
            report = IndexedFolder(home, root).build(embedder, preset)
            indexes[name], indexed = report.index, set(report.added)
            pairs[name] = [one for one in read_pairs(home).pairs if one.file_name in indexed]
            _tell(report.skipped)
            summary.add_institution(name, pairs[name], report.skipped)
            show(len(indexes))
    return indexes, pairs


def _tell(skips: tuple[Skip, ...]) -> None:
    for skip in skips:
        say(f"skipped {skip}")
