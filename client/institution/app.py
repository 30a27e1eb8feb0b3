"""The institution's side of training, as a Flower ClientApp: glue around ``training``.

What leaves: the change of the weights, the training loss, the recall of the received model on
the institution's own validation split and, where its own settings allow, how many pairs it
trained on and skipped. What arrives is checked as any foreign bytes are.

The institution's own settings (``node_config``): ``data``, the folder of pairs; ``name``;
``share-counts``, true unless it says otherwise.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.institution.evaluation import measure
from client.institution.pairs import METADATA, read_pairs
from client.institution.training import TrainingSet, read_split, train_epochs
from protocol.errors import BlindsightError, DataError, MalformedMessage, TrainingError
from protocol.model.embedder import Embedder
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, load_arrays, pack, unpack

app = ClientApp()

_log = logging.getLogger("blindsight.institution")
#: Flower's code for "the ClientApp raised an exception".
_RAISED = 2
# An exception's own text may quote a caption, a path or a value, and Flower sends it to the
# coordinator. These sentences are all that leaves; the text itself stays in the local log.
_REASONS: dict[type[BlindsightError], str] = {
    DataError: "the institution has no training data that can be used",
    MalformedMessage: "the coordinator's message was refused",
    TrainingError: "training gave no usable update",
}


@dataclass(frozen=True, slots=True)
class _Site:
    """What the institution itself has settled."""

    name: str
    data: Path
    share_counts: bool


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluates the received model, trains it, and replies with the change alone.

    Reply: arrays "arrays" (new minus old, float32) and metrics "metrics" with "train-loss",
    "num-examples" (1 unless counts are shared), and where there is something to say
    "val-recall-at-10" and "pairs-skipped"; or an Error whose text names no data.
    """
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Replies with "val-recall-at-10" of the received model, if there is a validation split."""
    return _answer(message, context, _evaluate)


def derive_seed(seed: int, name: str, server_round: int) -> int:
    """A seed of 63 bits for one institution in one round, from the run's own."""
    digest = hashlib.sha256(f"blindsight/train/{seed}/{server_round}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _answer(
    message: Message, context: Context, work: Callable[[RecordDict, _Site], RecordDict]
) -> Message:
    try:
        return Message(work(message.content, _site(context)), reply_to=message)
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


def _train(content: RecordDict, site: _Site) -> RecordDict:
    settings, server_round = _run(content)
    model, before = _received(content, settings)
    data, skipped = _read(site, "train", settings.towers.image_size)
    if len(data) < 2:
        raise DataError("fewer than two training pairs", "add lines whose split is train")
    metrics = _measure(model, site)
    loss = train_epochs(
        model,
        data,
        settings,
        torch.Generator().manual_seed(derive_seed(settings.seed, site.name, server_round)),
        settings.local_epochs,
        ((server_round - 1) / settings.rounds, server_round / settings.rounds),
    )
    after = arrays_of(model)
    metrics["train-loss"] = loss
    metrics["num-examples"] = len(data) if site.share_counts else 1
    if site.share_counts:
        metrics["pairs-skipped"] = skipped
    change = {name: after[name] - before[name] for name in before}
    return RecordDict({"arrays": pack(change), "metrics": metrics})


def _evaluate(content: RecordDict, site: _Site) -> RecordDict:
    settings, _ = _run(content)
    model, _ = _received(content, settings)
    return RecordDict({"metrics": _measure(model, site)})


def _measure(model: TwoTowers, site: _Site) -> MetricRecord:
    data, _ = _read(site, "val", model.settings.image_size)
    if not len(data):
        return MetricRecord()
    recall = measure(Embedder(model), data.pixels, data.captions).recall_at_10
    # A recall is a fraction, and a fraction with many digits tells its denominator.
    return MetricRecord({"val-recall-at-10": recall if site.share_counts else round(recall, 2)})


def _run(content: RecordDict) -> tuple[TrainingSettings, int]:
    """The run's settings and the round's number, from the coordinator's message."""
    config = content.config_records.get("config", ConfigRecord())
    settings = TrainingSettings.from_run_config(config)
    server_round = config.get("server-round")
    if type(server_round) is not int or not 1 <= server_round <= settings.rounds:
        raise MalformedMessage(f"server-round: expected 1 to {settings.rounds}")
    return settings, server_round


def _received(content: RecordDict, settings: TrainingSettings) -> tuple[TwoTowers, Arrays]:
    """The coordinator's model, and a copy of its weights to subtract afterwards."""
    record = content.array_records.get("arrays")
    if record is None:
        raise MalformedMessage("expected the global model under the name arrays")
    model = TwoTowers(settings.towers)
    before = unpack(record, arrays_of(model))
    load_arrays(model, before)
    return model, before


def _site(context: Context) -> _Site:
    config = context.node_config
    data, name = config.get("data"), config.get("name")
    if not isinstance(data, str) or not isinstance(name, str) or not name:
        raise DataError("the institution's settings need data and name")
    # Anything but a plain true hides the counts: a misspelt setting must not reveal them.
    return _Site(name, Path(data), config.get("share-counts", True) is True)


def _read(site: _Site, split: str, image_size: int) -> tuple[TrainingSet, int]:
    try:
        status = (site.data / METADATA).stat()
    except OSError as error:
        raise DataError(f"{site.data}: no {METADATA} can be read") from error
    return _cached(site.data, split, image_size, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _cached(
    data: Path, split: str, image_size: int, changed: int, size: int
) -> tuple[TrainingSet, int]:
    """Decodes a split once a run and not once a round; ``changed`` and ``size`` notice an edit."""
    return read_split(read_pairs(data), split, image_size)
