"""The institution's side of training, as a Flower ClientApp: glue around ``training``.

What leaves: the change of what learns, compressed as the run says; the training loss; the recall
of the received model on the institution's own validation split; where the run standardises, sums
of its image features; and, where its own settings allow, how many pairs it trained on, skipped,
and how many captions were cut. What arrives is checked as any foreign bytes are.

The institution's own settings (``node_config``): ``data``, the folder of pairs; ``name``;
``share-counts``, true unless it says otherwise; ``group-key``; ``public-captions``, a file of
texts; ``synonyms``; ``cache`` and ``state``, folders that it alone reads; and the encoders that it
holds, by the keys of ``protocol.model.pretrained``.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.institution.evaluation import relevance, retrieve
from client.institution.pairs import stamp
from client.institution.reading import Frozen, Held, Source, source_of
from client.institution.residual import Residuals, run_of
from client.institution.training import train_epochs
from client.institution.training_set import FeatureSet
from protocol.errors import BlindsightError, DataError, MalformedMessage, TrainingError, UsageError
from protocol.model import statistics
from protocol.model.compression import codec_of
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics, Sums
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, load_arrays, unpack

app = ClientApp()

_log = logging.getLogger("blindsight.institution")
#: The sum of a few features is nearly one of them.
MIN_SUMMARISED = 10
#: Flower's code for "the ClientApp raised an exception".
_RAISED = 2
# An exception's own text may quote a caption, a path or a value, and Flower sends it to the
# coordinator. These sentences are all that leaves; the text itself stays in the local log.
_REASONS: dict[type[BlindsightError], str] = {
    DataError: "the institution has no training data or encoders that can be used",
    MalformedMessage: "the coordinator's message was refused",
    TrainingError: "training gave no usable update",
    UsageError: "the institution's own settings do not fit the run",
}


@dataclass(frozen=True, slots=True)
class _Site:
    """What the institution itself has settled."""

    name: str
    source: Source
    encoders: EncoderChoice
    share_counts: bool
    state: Path | None


@dataclass(frozen=True, slots=True)
class _Run:
    """What a message says: settings, round, and the model as received."""

    settings: TrainingSettings
    number: int
    model: TwoTowers
    before: Arrays


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluates the received model, trains it, and replies with the change alone.

    Reply: arrays "arrays" (new minus old, as ``settings.compression`` says) and metrics "metrics"
    with "train-loss", "num-examples" (1 unless counts are shared), and where there is something
    to say "val-recall-at-10", "pairs-skipped" and "captions-cut"; or an Error whose text names no
    data.
    """
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Replies with "val-recall-at-10" of the received model, if there is a validation split."""
    return _answer(message, context, _evaluate)


@app.query(statistics.ACTION)
def summarise(message: Message, context: Context) -> Message:
    """Replies with the sums of its training pictures' features, and of their squares."""
    return _answer(message, context, _summarise)


def derive_seed(seed: int, name: str, server_round: int) -> int:
    """A seed of 63 bits for one institution in one round, from the run's own."""
    digest = hashlib.sha256(f"blindsight/train/{seed}/{server_round}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def recall_at_10(model: TwoTowers, held: Held) -> float:
    """Of text-to-image retrieval over pairs that are held, each caption a query."""
    data = held.data
    texts, relevant = relevance(data.captions.of_items, data.captions.groups or None)
    found = retrieve(data.text_vectors(model, texts), data.image_vectors(model), relevant)
    return found.recall_at_10


def _answer(
    message: Message, context: Context, work: Callable[[Message, Context, _Site], RecordDict]
) -> Message:
    try:
        return Message(work(message, context, _site(context)), reply_to=message)
    except Exception as error:
        _log.warning("training failed here, and the coordinator is told so: %s", error)
        _log.debug("where it failed", exc_info=True)
        return Message(Error(_RAISED, _reason(error)), reply_to=message)


def _reason(error: Exception) -> str:
    for kind, sentence in _REASONS.items():
        if isinstance(error, kind):
            return f"{kind.code}: {sentence}"
    code = error.code if isinstance(error, BlindsightError) else BlindsightError.code
    return f"{code}: {type(error).__name__}"


def _train(message: Message, context: Context, site: _Site) -> RecordDict:
    run = _received(message.content, site)
    settings = run.settings
    held = _read(site, "train", run)
    if len(held.data) < 2:
        raise DataError("fewer than two training pairs", "add lines whose split is train")
    metrics = _measure(site, run)
    seed = derive_seed(settings.seed, site.name, run.number)
    loss = train_epochs(
        run.model,
        held.data,
        settings,
        torch.Generator().manual_seed(seed),
        settings.local_epochs,
        ((run.number - 1) / settings.rounds, run.number / settings.rounds),
    )
    after = arrays_of(run.model)
    change = {name: after[name] - run.before[name] for name in run.before}
    config = message.content.config_records["config"]
    residuals = Residuals(context.state, site.state, run_of(config))
    codec = codec_of(settings.compression)
    record, residual = codec.encode(
        change, residuals.load(run.number, run.before), np.random.default_rng(seed)
    )
    residuals.save(run.number, residual)
    metrics["train-loss"] = loss
    metrics["num-examples"] = len(held.data) if site.share_counts else 1
    if site.share_counts:
        metrics["pairs-skipped"] = held.skipped
        metrics["captions-cut"] = held.cut
    return RecordDict({"arrays": record, "metrics": metrics})


def _evaluate(message: Message, context: Context, site: _Site) -> RecordDict:
    return RecordDict({"metrics": _measure(site, _received(message.content, site))})


def _summarise(message: Message, context: Context, site: _Site) -> RecordDict:
    settings, number = _settings(message.content, 0)
    model = _starting(site, settings)
    held = _read(site, "train", _Run(settings, number, model, {}))
    if not isinstance(held.data, FeatureSet):
        raise MalformedMessage("features are standardised of frozen encoders alone")
    if len(held.data) < MIN_SUMMARISED:
        raise DataError(f"fewer than {MIN_SUMMARISED} training pairs: their sum would tell of each")
    return Sums.of(held.data.plain_images(), site.share_counts).to_content()


def _measure(site: _Site, run: _Run) -> MetricRecord:
    held = _read(site, "val", run)
    if not len(held.data):
        return MetricRecord()
    recall = recall_at_10(run.model, held)
    # A recall is a fraction, and a fraction with many digits tells its denominator.
    return MetricRecord({"val-recall-at-10": recall if site.share_counts else round(recall, 2)})


def _settings(content: RecordDict, first: int) -> tuple[TrainingSettings, int]:
    """The run's settings and the round's number, from the coordinator's message."""
    config = content.config_records.get("config", ConfigRecord())
    settings = TrainingSettings.from_run_config(config)
    server_round = config.get("server-round")
    if type(server_round) is not int or not first <= server_round <= settings.rounds:
        raise MalformedMessage(f"server-round: expected {first} to {settings.rounds}")
    return settings, server_round


def _received(content: RecordDict, site: _Site) -> _Run:
    """The coordinator's model, and a copy of what it learns to subtract afterwards."""
    settings, number = _settings(content, 1)
    record = content.array_records.get("arrays")
    if record is None:
        raise MalformedMessage("expected the global model under the name arrays")
    model = _starting(site, settings)
    before = unpack(record, arrays_of(model))
    load_arrays(model, before)
    if settings.standardise:
        said = content.array_records.get(statistics.RECORD)
        if said is None:
            raise MalformedMessage(f"expected {statistics.RECORD}, for this run standardises")
        found = Statistics.from_record(said, model.image.width)
        model.standardise(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    return _Run(settings, number, model, before)


def _starting(site: _Site, settings: TrainingSettings) -> TwoTowers:
    held = load_pretrained(replace(site.encoders, dim=settings.towers.dim))
    return held.agree(settings.towers).start(settings)


def _site(context: Context) -> _Site:
    config = context.node_config
    data, name = config.get("data"), config.get("name")
    if not isinstance(data, str) or not isinstance(name, str) or not name:
        raise DataError("the institution's settings need data and name")
    state = config.get("state", "")
    if not isinstance(state, str):
        raise DataError(f"the institution's setting state: expected a folder, got {state!r:.40}")
    # Anything but a plain true hides the counts: a misspelt setting must not reveal them.
    share_counts = config.get("share-counts", True) is True
    source, encoders = source_of(Path(data), config), EncoderChoice.from_config(config)
    return _Site(name, source, encoders, share_counts, Path(state) if state else None)


def _read(site: _Site, split: str, run: _Run) -> Held:
    return _held(site.source, split, stamp(site.source.data), Frozen(run.model, run.settings))


@lru_cache(maxsize=64)
def _held(source: Source, split: str, changed: object, frozen: Frozen) -> Held:
    """Reads a split once a run and not once a round; ``changed`` notices an edit."""
    return source.read(split, frozen.model, frozen.settings)


@lru_cache(maxsize=4)
def load_pretrained(choice: EncoderChoice) -> Pretrained:
    """Loads encoders once a process and not once a round."""
    return Pretrained.load(choice)
