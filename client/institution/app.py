"""The institution's side of training, as a Flower ClientApp: glue around ``training``.

What leaves: the change of what learns, compressed as the run says; the training loss; the recall
of the received model on the institution's own validation split; where the run standardises, sums
of its image features; and, where its own settings allow, how many pairs it trained on, skipped,
and how many captions were cut. Of private training neither the loss nor these counts leave, and
what it has cost only where the policy says so. With secure aggregation all else leaves under
masks, and only its sum over institutions is ever read. What arrives is checked as any foreign
bytes are, and against the institution's own policy.

The institution's own settings (``node_config``): ``data``, the folder of pairs; ``name``;
``simulation``, true where there is no policy because nobody is to be protected;
``share-counts``, true unless it says otherwise; ``group-key``; ``public-captions``, a file of
texts; ``synonyms``; ``cache`` and ``state``, folders that it alone reads; ``policy``, the file of
what it allows, which then decides about counts; those of ``client.institution.aggregation``; and
the encoders that it holds, by the keys of ``protocol.model.pretrained``.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.institution.aggregation import Refusal, give_up
from client.institution.evaluation import relevance, retrieve
from client.institution.pairs import stamp
from client.institution.policy import Action
from client.institution.privacy.budget import pay
from client.institution.reading import Frozen, Held, Source
from client.institution.residual import Residuals, run_of
from client.institution.site import Site, audit_of
from client.institution.training import plan_of, train_epochs
from client.institution.training_set import FeatureSet
from protocol.clipping import clip_update
from protocol.errors import (
    BlindsightError,
    BudgetError,
    DataError,
    MalformedMessage,
    PolicyError,
    StorageError,
    TrainingError,
    UsageError,
)
from protocol.model import statistics
from protocol.model.compression import codec_of
from protocol.model.compression.codec import require_finite
from protocol.model.masking import EVALUATE_TOTALS, TRAIN_TOTALS, contribution_of, totals_of
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics, Sums
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, flatten, load_arrays, unpack_model
from protocol.secure_aggregation.contribution import Contribution

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
    BudgetError: "the round would exceed the institution's privacy budget",
    TrainingError: "training gave no usable update",
    UsageError: "the institution's own settings do not fit the run",
}


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


@app.query("advertise")
def advertise(message: Message, context: Context) -> Message:
    """Begins a session of secure aggregation: see ``client.institution.masking``."""
    return _answer(message, context, lambda m, c, site: site.aggregation(c).advertise(m.content))


@app.query("share")
def share(message: Message, context: Context) -> Message:
    """Deals shares of the session's secrets, to institutions of its own roster alone."""
    return _answer(message, context, lambda m, c, site: site.aggregation(c).share(m.content))


@app.query("agree")
def agree(message: Message, context: Context) -> Message:
    """Signs the list of those whose masked vectors arrived."""
    return _answer(message, context, lambda m, c, site: site.aggregation(c).agree(m.content))


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Reveals the shares that unmask the sum, and nothing less."""
    return _answer(message, context, lambda m, c, site: site.aggregation(c).unmask(m.content))


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
    message: Message, context: Context, work: Callable[[Message, Context, Site], RecordDict]
) -> Message:
    facts = {"message": message.metadata.message_type, "round": message.metadata.group_id}
    audit = audit_of(context.node_config)
    try:
        reply = Message(work(message, context, Site.of(context)), reply_to=message)
        if audit is not None:  # before it leaves, and it does not leave if this fails
            audit.record("answered", **facts, run=str(context.run_id))
        return reply
    except Exception as error:
        if not isinstance(error, Refusal):
            give_up(context)
        _log.warning("training failed here, and the coordinator is told so: %s", error)
        _log.debug("where it failed", exc_info=True)
        reason = _reason(error)
        if audit is not None:
            with suppress(StorageError):  # nothing leaves but the reason
                audit.record("refused", **facts, run=str(context.run_id), why=reason[:500])
        return Message(Error(_RAISED, reason), reply_to=message)


def _reason(error: Exception) -> str:
    if isinstance(error, Refusal | PolicyError):
        return f"{error.code}: {error.message}"
    for kind, sentence in _REASONS.items():
        if isinstance(error, kind):
            return f"{kind.code}: {sentence}"
    code = error.code if isinstance(error, BlindsightError) else BlindsightError.code
    return f"{code}: {type(error).__name__}"


def _train(message: Message, context: Context, site: Site) -> RecordDict:
    run = _received(message.content, site, "train")
    settings = run.settings
    masked = None
    if settings.secure_aggregation:
        masked = site.aggregation(context).enter(message.content, "train")
    held = _read(site, "train", run)
    if len(held.data) < 2:
        raise DataError("fewer than two training pairs", "add lines whose split is train")
    metrics = _measure(site, run)
    seed = derive_seed(settings.seed, site.name, run.number)
    plan = plan_of(held.data, settings) if settings.privacy_noise else None
    spending = None if plan is None else plan.spending(settings.local_epochs)
    config = message.content.config_records["config"]
    spent = pay(site.budget, site.state, settings, run_of(config), run.number, spending)
    if spent is not None and site.audit is not None:
        site.audit.record("privacy-charged", round=run.number, epsilon=spent)
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
    if settings.central_noise:
        change = clip_update(change, settings.central_clip)
    # Units, not pairs: how many pairs a unit has is protected. Central noise weighs all the same.
    examples = len(held.data) if plan is None else plan.units
    examples = 1 if settings.central_noise else examples
    if masked is not None:
        require_finite(change)
        weight = masked.weight(examples)
        said = {**_total(metrics), "weight": weight}
        if plan is None:
            said["train-loss"] = loss
        if plan is None and not masked.roll.equal:
            said |= {"pairs-skipped": held.skipped, "captions-cut": held.cut}
        reply = masked.reply(Contribution(flatten(change), totals_of(TRAIN_TOTALS, said), weight))
        if site.share_epsilon and spent is not None:  # its own, beside the sum
            reply["metrics"] = MetricRecord({"privacy-epsilon": spent})
        return reply
    residuals = Residuals(context.state, site.state, run_of(config))
    codec = codec_of(settings.compression)
    record, residual = codec.encode(
        change, residuals.load(run.number, run.before), np.random.default_rng(seed)
    )
    residuals.save(run.number, residual)
    if plan is None:
        metrics["train-loss"] = loss
    metrics["num-examples"] = examples if site.share_counts else 1
    if site.share_epsilon and spent is not None:
        metrics["privacy-epsilon"] = spent
    if site.share_counts and plan is None:
        metrics["pairs-skipped"] = held.skipped
        metrics["captions-cut"] = held.cut
    return RecordDict({"arrays": record, "metrics": metrics})


def _evaluate(message: Message, context: Context, site: Site) -> RecordDict:
    run = _received(message.content, site, "evaluate")
    if not run.settings.secure_aggregation:
        return RecordDict({"metrics": _measure(site, run)})
    masked = site.aggregation(context).enter(message.content, "evaluate")
    totals = totals_of(EVALUATE_TOTALS, _total(_measure(site, run)))
    return masked.reply(Contribution(np.zeros(0, np.float32), totals))


def _summarise(message: Message, context: Context, site: Site) -> RecordDict:
    settings, number = _settings(message.content, 0)
    site.allow(settings, "statistics")
    model = _starting(site, settings)
    held = _read(site, "train", _Run(settings, number, model, {}))
    if not isinstance(held.data, FeatureSet):
        raise MalformedMessage("features are standardised of frozen encoders alone")
    if len(held.data) < MIN_SUMMARISED:
        raise DataError(f"fewer than {MIN_SUMMARISED} training pairs: their sum would tell of each")
    features = held.data.plain_images()
    if not settings.secure_aggregation:
        return Sums.of(features, site.share_counts).to_content()
    masked = site.aggregation(context).enter(message.content, "statistics")
    return masked.reply(contribution_of(Sums.of(features, not masked.roll.equal)))


def _total(metrics: MetricRecord) -> dict[str, object]:
    """What was measured, as it stands in a sum: with how many measured it."""
    return {**metrics, "measured": int("val-recall-at-10" in metrics)}


def _measure(site: Site, run: _Run) -> MetricRecord:
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


def _received(content: RecordDict, site: Site, action: Action) -> _Run:
    """The coordinator's model, and a copy of what it learns to subtract afterwards."""
    settings, number = _settings(content, 1)
    site.allow(settings, action)
    record = content.array_records.get("arrays")
    if record is None:
        raise MalformedMessage("expected the global model under the name arrays")
    model = _starting(site, settings)
    before = unpack_model(record, arrays_of(model))
    load_arrays(model, before)
    if settings.standardise:
        said = content.array_records.get(statistics.RECORD)
        if said is None:
            raise MalformedMessage(f"expected {statistics.RECORD}, for this run standardises")
        found = Statistics.from_record(said, model.image.width)
        model.standardise(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    return _Run(settings, number, model, before)


def _starting(site: Site, settings: TrainingSettings) -> TwoTowers:
    held = load_pretrained(replace(site.encoders, dim=settings.towers.dim))
    return held.agree(settings.towers).start(settings)


def _read(site: Site, split: str, run: _Run) -> Held:
    return _held(site.source, split, stamp(site.source.data), Frozen(run.model, run.settings))


@lru_cache(maxsize=64)
def _held(source: Source, split: str, changed: object, frozen: Frozen) -> Held:
    """Reads a split once a run and not once a round; ``changed`` notices an edit."""
    return source.read(split, frozen.model, frozen.settings)


@lru_cache(maxsize=4)
def load_pretrained(choice: EncoderChoice) -> Pretrained:
    """Loads encoders once a process and not once a round."""
    return Pretrained.load(choice)
