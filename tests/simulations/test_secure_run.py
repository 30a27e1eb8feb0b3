"""Whole runs under secure aggregation, in the in-process runtime: the coordinator's messages."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.institution.aggregation import Aggregation
from client.institution.app import app as client_app
from client.institution.pairs import read_pairs, write_pairs
from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, TrainingError, UsageError
from protocol.model.masking import (
    EVALUATE_TOTALS,
    MASKED,
    RECORD,
    TRAIN_TOTALS,
    contribution_of,
    totals_of,
)
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Sums
from protocol.model.update import arrays_of, pack
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import Contribution
from server.coordinator import TrainingResult, coordinate
from server.round import EVERYBODY, RoundReport
from simulations.grid import InProcessGrid, run_in_process
from simulations.members import member_name, throw_away_members
from simulations.partition import parse_partition, partition
from simulations.scenes import write_scenes
from tests.server.learners import INITIAL, SETTINGS, features

SECURE = replace(SETTINGS, secure_aggregation=True, rounds=3, quorum=2, clipping_range=1.0)
NAMES = ("a", "b", "c", "d")
SIZE = sum(values.size for values in INITIAL.values())
Cheat = Callable[[Message, Context, Message], Message | None]
STEP = 0.125


@pytest.fixture(scope="module")
def members() -> Iterator[Path]:
    with throw_away_members(len(NAMES)) as folder:
        yield folder


def _learners(cheats: dict[str, Cheat]) -> ClientApp:
    """Institution number i moves every weight by i steps in round 1, by as many more each round.

    ``cheats`` are told every message and the honest reply to it, by name.
    """
    app = ClientApp()

    def answer(work: Callable[[Message, Context, Aggregation], RecordDict]) -> object:
        def reply(message: Message, context: Context) -> Message:
            part = Aggregation.of(context, None, bool(context.node_config.get("hides")), 2)
            try:
                said = Message(work(message, context, part), reply_to=message)
            except MalformedMessage as error:
                said = Message(Error(2, error.message), reply_to=message)
            cheat = cheats.get(str(context.node_config["name"]))
            return (cheat and cheat(message, context, said)) or said

        return reply

    def train(message: Message, context: Context, part: Aggregation) -> RecordDict:
        entered = part.enter(message.content, "train")
        number = NAMES.index(str(context.node_config["name"])) + 1
        update = np.full(SIZE, STEP * number, np.float32)
        weight = entered.weight(10 * number)
        said = {"weight": weight, "train-loss": number, "val-recall-at-10": 0.5, "measured": 1}
        if number == 1:
            said |= {"val-recall-at-10": 0, "measured": 0}  # it has no validation split
        return entered.reply(Contribution(update, totals_of(TRAIN_TOTALS, said), weight))

    def evaluate(message: Message, context: Context, part: Aggregation) -> RecordDict:
        entered = part.enter(message.content, "evaluate")
        number = NAMES.index(str(context.node_config["name"])) + 1
        said = {"val-recall-at-10": number / 10, "measured": 1}
        empty = np.zeros(0, np.float32)
        return entered.reply(Contribution(empty, totals_of(EVALUATE_TOTALS, said)))

    def statistics(message: Message, context: Context, part: Aggregation) -> RecordDict:
        entered = part.enter(message.content, "statistics")
        found = features(str(context.node_config["name"]))
        return entered.reply(contribution_of(Sums.of(found, not entered.roll.equal)))

    app.train()(answer(train))  # type: ignore[arg-type]
    app.evaluate()(answer(evaluate))  # type: ignore[arg-type]
    app.query("statistics")(answer(statistics))  # type: ignore[arg-type]
    for action in ("advertise", "share", "agree", "unmask"):
        app.query(action)(
            answer(lambda m, c, part, action=action: getattr(part, action)(m.content))  # type: ignore[arg-type, misc]
        )
    return app


def _run(
    members: Path, settings: TrainingSettings = SECURE, hides: str = "", **cheats: Cheat
) -> TrainingResult:
    nodes = [
        {
            "name": name,
            "hides": name in hides,
            "identity": str(members / member_name(number)),
            "roster": str(members / "roster.json"),
            "audit": str(members / f"{name}.log"),
        }
        for number, name in enumerate(NAMES, start=1)
    ]
    roster = Roster.read(
        members / "roster.json", Certificate.load(members / "authority.pem").identity
    )
    with InProcessGrid(_learners(cheats), nodes, workers=4) as grid:
        return coordinate(grid, settings, roster=roster)


def _moved(result: TrainingResult) -> float:
    steps = [
        (v - INITIAL[name]).ravel().astype(float) for name, v in arrays_of(result.model).items()
    ]
    found = np.concatenate(steps)
    np.testing.assert_allclose(found, found.mean(), atol=1e-5)
    return float(found.mean()) / STEP


def _mean(numbers: str, equal: bool = False) -> float:
    found = [NAMES.index(name) + 1 for name in numbers]
    return sum(n * n for n in found) / sum(found) if not equal else sum(found) / len(found)


def _kind(message: Message, kind: str, number: int = 0) -> bool:
    config = message.content.config_records["config"]
    return message.metadata.message_type == kind and config["server-round"] in (number, number or 1)


def test_a_run_gives_the_weighed_mean_and_nothing_of_one_institution(members: Path) -> None:
    result = _run(members)
    assert _moved(result) == pytest.approx(3 * _mean("abcd"), abs=1e-4)
    first, second, _ = result.reports
    for report in result.reports:
        assert report.counted and report.masked is not None and report.masked.failure is None
        assert report.masked.examples == 100 and report.train_loss == pytest.approx(2.5, abs=1e-5)
        assert report.val_recall_at_10 == pytest.approx(0.5, abs=1e-5)
        assert report.bytes_up == sum(one.bytes_up for one in report.institutions)
        assert 0 < report.masked.bytes < 30_000 and report.bytes_down > 4 * 4 * SIZE
        for one in report.institutions:
            assert (one.train_loss, one.val_recall_at_10, one.examples, one.dropped) == (
                (None,) * 4
            )
    # Keys of the next round come with the last reply of this one.
    assert first.masked is not None and first.masked.exchanges == 4
    assert second.masked is not None and second.masked.exchanges == 3
    assert result.recalls == {EVERYBODY: pytest.approx(0.25, abs=1e-5)}
    assert (members / "a.log").read_text().count("sum-unmasked") == 4


def test_one_that_hides_its_count_makes_all_weigh_the_same(members: Path) -> None:
    result = _run(members, replace(SECURE, standardise=True), hides="b")
    assert _moved(result) == pytest.approx(3 * _mean("abcd", equal=True), abs=1e-4)
    assert all(one.masked is not None and one.masked.examples is None for one in result.reports)
    assert result.statistics is not None
    # All have equally many, so the union's mean is the mean of their means.
    union = np.concatenate([features(name) for name in NAMES])
    np.testing.assert_allclose(result.statistics.mean, union.mean(0), rtol=1e-5)
    np.testing.assert_allclose(result.statistics.std, union.std(0), rtol=1e-4)


def _fails(kind: str, number: int) -> Cheat:
    def cheat(message: Message, context: Context, said: Message) -> Message | None:
        if not _kind(message, kind, number):
            return None
        return Message(Error(2, "crashed"), reply_to=message)

    return cheat


def _fails_always(message: Message, context: Context, said: Message) -> Message | None:
    if message.metadata.message_type != "train":
        return None
    return Message(Error(2, "crashed"), reply_to=message)


def _crashes(kind: str, number: int) -> Cheat:
    """The node is started anew: nothing of what it kept is left."""

    def cheat(message: Message, context: Context, said: Message) -> Message | None:
        if not _kind(message, kind, number):
            return None
        context.state.clear()
        return Message(Error(2, "crashed"), reply_to=message)

    return cheat


def _late(message: Message, context: Context, said: Message) -> Message | None:
    if _kind(message, "train", 2):
        time.sleep(1.2)
    return None


def _shorter(message: Message, context: Context, said: Message) -> Message | None:
    if not _kind(message, "train", 2):
        return None
    short = {"update": np.zeros(SIZE - 1, np.uint32), "totals": np.zeros(6, np.uint64)}
    return Message(RecordDict({MASKED: pack(short)}), reply_to=message)


def _empty(message: Message, context: Context, said: Message) -> Message | None:
    if not _kind(message, "train", 2):
        return None
    return Message(RecordDict({RECORD: ConfigRecord({"parcels": b""})}), reply_to=message)


@pytest.mark.parametrize(
    ("cheat", "why", "exchanges"),
    [
        (_fails("train", 2), "crashed", 4),
        (_crashes("train", 2), "crashed", 4),
        (_fails("query.share", 2), "crashed", 3),
        (_crashes("query.share", 2), "crashed", 3),
        (_late, "no reply within the deadline", 4),
        (_shorter, "array update: expected uint32", 4),
        (_empty, "arrays under the name masked", 4),
    ],
)
def test_who_drops_out_misses_the_round_and_is_in_the_next(
    members: Path, cheat: Cheat, why: str, exchanges: int
) -> None:
    settings = replace(SECURE, deadline_seconds=1.0 if cheat is _late else 20.0)
    result = _run(members, settings, b=cheat)
    expected = 2 * _mean("abcd") + _mean("acd")
    assert _moved(result) == pytest.approx(expected, abs=1e-4)
    (dropped,) = result.reports[1].dropped
    assert dropped.name == "b" and why in str(dropped.dropped)
    masked = result.reports[1].masked
    assert masked is not None and masked.exchanges == exchanges and masked.examples == 80
    assert not result.reports[2].dropped


def test_who_fails_after_its_vector_still_counts(members: Path) -> None:
    """Of four shares one may be missing. Its keys of the next round are asked for anew."""
    result = _run(members, b=_fails("query.unmask", 2))
    assert not any(report.dropped for report in result.reports)
    assert _moved(result) == pytest.approx(3 * _mean("abcd"), abs=1e-4)
    exchanges = [report.masked.exchanges for report in result.reports if report.masked]
    assert exchanges == [4, 3, 4]


def test_too_few_signatures_end_the_round_before_anything_is_revealed(members: Path) -> None:
    result = _run(members, b=_fails("query.agree", 2), d=_fails("train", 2))
    assert [report.counted for report in result.reports] == [True, False, True]
    masked = result.reports[1].masked
    assert masked is not None and masked.exchanges == 3
    assert masked.failure == "2 institutions agreed to the rest, expected at least 3"


def test_a_round_without_enough_vectors_does_not_count_and_says_why(members: Path) -> None:
    result = _run(members, a=_fails("train", 2), b=_fails("train", 2))
    assert [report.counted for report in result.reports] == [True, False, True]
    assert _moved(result) == pytest.approx(2 * _mean("abcd"), abs=1e-4)
    masked = result.reports[1].masked
    assert masked is not None and masked.failure == "2 masked vectors arrived, expected at least 3"
    assert {one.name for one in result.reports[1].dropped} == set(NAMES)
    with pytest.raises(TrainingError, match=r"round 3: 0 usable replies.*a: error: crashed"):
        _run(members, replace(SECURE, rounds=9), a=_fails_always, b=_fails_always)


def test_a_sum_that_cannot_be_is_refused(members: Path) -> None:
    def garbage(message: Message, context: Context, said: Message) -> Message | None:
        if not _kind(message, "train", 2):
            return None
        words = {
            "update": np.full(SIZE, 2**30, np.uint32),
            "totals": np.zeros(6, np.uint64),
        }
        return Message(RecordDict({MASKED: pack(words)}), reply_to=message)

    result = _run(members, b=garbage)
    assert [report.counted for report in result.reports] == [True, False, True]
    assert "broke the rules" in str(result.reports[1].masked)


def test_settings_that_exclude_each_other_are_refused() -> None:
    for compression in ("int8", "float16", "top-k:0.1"):
        with pytest.raises(MalformedMessage, match="compression: expected none") as caught:
            TrainingSettings(secure_aggregation=True, compression=compression)
        assert "set compression to none" in caught.value.hint
    for wrong in ({"clipping_range": 0.0}, {"max_weight": 0}, {"reconstruction_threshold": 0.4}):
        with pytest.raises(MalformedMessage):
            TrainingSettings(**wrong)  # type: ignore[arg-type]
    with InProcessGrid(ClientApp(), [{}]) as grid, pytest.raises(UsageError, match="roster"):
        coordinate(grid, SECURE)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("homes")
    write_scenes(root / "all", 160, 3, 0, lambda done: None)
    folder = read_pairs(root / "all")
    shares = partition(folder, parse_partition("iid"), 3, 0)
    for name, pairs in shares.items():
        write_pairs(root / name, pairs, folder)
    return {name: root / name for name in shares}


TRAINING = TrainingSettings(rounds=1, local_epochs=1)


def test_the_same_model_as_without_up_to_quantisation(homes: dict[str, Path]) -> None:
    plain = run_in_process(homes, TRAINING)
    masked = run_in_process(homes, replace(TRAINING, secure_aggregation=True))
    step = TRAINING.clipping_range / (2**31 // 3)
    weight = min(one.examples or 0 for one in plain.reports[0].institutions)
    for ours, theirs in zip(masked.model.parameters(), plain.model.parameters(), strict=True):
        # Rounded once a weight, and once more to float32.
        most = step / 2 * TRAINING.max_weight / weight + 2e-7 * theirs.abs().max().item()
        assert (ours - theirs).abs().max().item() <= most
    found, expected = masked.reports[0], plain.reports[0]
    assert found.train_loss == pytest.approx(expected.train_loss, abs=1e-5)
    assert found.val_recall_at_10 == pytest.approx(expected.val_recall_at_10, abs=1e-5)
    assert found.masked is not None
    assert found.masked.examples == sum(one.examples or 0 for one in expected.institutions)
    assert found.bytes_up < 1.01 * expected.bytes_up
    hidden = run_in_process(homes, replace(TRAINING, secure_aggregation=True), share_counts=False)
    assert hidden.reports[0].masked is not None and hidden.reports[0].masked.examples is None


def test_the_policy_of_an_institution_refuses_a_sum_of_too_few(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    for secure, minimum, why in (
        (True, 4, "expected at least 4, got 3"),
        (False, 3, "secure-aggregation: this institution's policy allows True"),
    ):
        policy.write_text(f'[training]\nactions = ["train"]\nmin-institutions = {minimum}\n')
        settings = replace(TRAINING, secure_aggregation=secure)
        reports: list[RoundReport] = []
        with pytest.raises(TrainingError) as caught:
            run_in_process(homes, settings, own={"policy": str(policy)}, on_round=reports.append)
        said = [caught.value.message, *(str(report) for report in reports)]
        assert any(why in one.replace("true", "True") for one in said)


def test_secrets_of_a_round_that_failed_here_are_dropped() -> None:
    record = ConfigRecord({"keys": b"secret", "held": b"secret", "unmasked": "{}"})
    context = Context(1, 1, {}, RecordDict({"masking": record}), {})
    with InProcessGrid(client_app, [{}]):  # a message needs somebody who writes it
        message = Message(RecordDict({"config": ConfigRecord()}), 1, "train")
    assert client_app(message=message, context=context).has_error()
    assert dict(context.state.config_records["masking"]) == {"unmasked": "{}"}
