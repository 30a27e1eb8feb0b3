"""A whole run with institutions that learn: who is asked, when it ends, what is sent."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from protocol.errors import TrainingError
from protocol.model.statistics import Statistics, Sums
from protocol.model.update import pack, unpack_model
from server.coordinator import TrainingResult, coordinate
from server.participants import draw
from simulations.grid import InProcessGrid
from tests.server.learners import INITIAL, NAMES, SETTINGS, WIDTH, bits, features, learners, run


def _names(result: TrainingResult) -> list[list[str]]:
    return [[found.name for found in report.institutions] for report in result.reports]


def test_a_part_of_the_institutions_is_drawn_and_all_evaluate() -> None:
    settings = replace(SETTINGS, client_fraction=0.5, rounds=12)
    result = run(settings)
    drawn = _names(result)
    assert all(len(names) == 2 and names == sorted(names) for names in drawn)
    assert {name for names in drawn for name in names} == set(NAMES)
    assert len({tuple(names) for names in drawn}) > 2
    assert drawn == _names(run(settings)) != _names(run(replace(settings, seed=4)))
    assert set(result.recalls) == set(NAMES)


@pytest.mark.parametrize(
    ("fraction", "quorum", "nodes", "expected"),
    [(0.0, 2, 5, 2), (0.7, 2, 10, 7), (1.0, 1, 5, 5), (0.1, 3, 20, 3), (0.9, 2, 2, 2)],
)
def test_as_many_are_drawn_as_the_fraction_says_or_the_quorum(
    fraction: float, quorum: int, nodes: int, expected: int
) -> None:
    settings = replace(SETTINGS, client_fraction=fraction, quorum=quorum)
    names = {node * 7: str(node) for node in range(nodes)}
    for number in (1, 2):
        drawn = draw(names, settings, number)
        assert len(drawn) == expected and drawn.items() <= names.items()
        assert list(drawn) == sorted(drawn)


def _scripted(recalls: list[float], evaluated: list[float]) -> TrainingResult:
    """A run whose institutions report these recalls round by round; each round adds 1."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = message.content.config_records["config"]["server-round"]
        assert isinstance(number, int)
        received = unpack_model(message.content.array_records["arrays"], INITIAL)
        change = {name: np.ones_like(values) for name, values in received.items()}
        metrics = {"train-loss": 1.0, "num-examples": 9, "val-recall-at-10": recalls[number - 1]}
        content = RecordDict({"arrays": pack(change), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        received = unpack_model(message.content.array_records["arrays"], INITIAL)
        steps = round(float(received["logit_bias"][0]))
        evaluated.append(steps)
        scores = dict(enumerate([*recalls[: SETTINGS.rounds], LAST]))
        metrics = MetricRecord({"val-recall-at-10": scores[steps]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    with InProcessGrid(app, [{"name": "a"}, {"name": "b"}], workers=1) as grid:
        return coordinate(grid, replace(SETTINGS, patience=2))


LAST = 0.35


@pytest.mark.parametrize(
    ("recalls", "rounds", "best"),
    [
        # Round r reports of the model after r - 1 rounds: here 0.5 is that of two rounds.
        ([0.1, 0.2, 0.5, 0.4, 0.3, 0.9], 5, 2),
        ([0.5, 0.1, 0.5], 3, 0),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.31], 6, 6),
        ([0.1, 0.2, 0.1, 0.4, 0.2, 0.41], 6, 5),
    ],
)
def test_patience_ends_a_run_and_the_best_model_is_the_result(
    recalls: list[float], rounds: int, best: int
) -> None:
    evaluated: list[float] = []
    result = _scripted(recalls, evaluated)
    assert len(result.reports) == rounds
    assert result.model.logit_bias.item() == best
    # Not the last model of a run that was ended: nobody would use it.
    assert set(evaluated) == {best} | ({6} if rounds == 6 else set())
    assert result.recalls == dict.fromkeys("ab", LAST if best == 6 else recalls[best])


@pytest.mark.parametrize("compression", ["none", "float16", "int8", "top-k:0.05", "top-k:0.5"])
def test_updates_are_compressed_and_the_bytes_are_told(compression: str) -> None:
    plain, result = run(SETTINGS), run(replace(SETTINGS, compression=compression))
    ratio = {"none": 1.0, "float16": 0.6, "int8": 0.27, "top-k:0.05": 0.08, "top-k:0.5": 0.3}
    for mine, theirs in zip(result.reports, plain.reports, strict=True):
        assert mine.counted and not mine.dropped
        assert mine.bytes_up == sum(found.bytes_up for found in mine.institutions)
        assert mine.bytes_up <= ratio[compression] * theirs.bytes_up
        assert len({found.bytes_up for found in mine.institutions}) == 1 or "top" in compression
    if compression == "top-k:0.05":
        return  # six rounds are too few for all of it to arrive
    moved = np.concatenate([v.detach().numpy().ravel() for v in result.model.parameters()])
    exact = np.concatenate([v.detach().numpy().ravel() for v in plain.model.parameters()])
    assert np.abs(moved - exact).mean() < 0.05


def test_statistics_are_those_of_the_union_and_reach_the_model() -> None:
    result = run(replace(SETTINGS, standardise=True, rounds=1))
    union = np.concatenate([features(name) for name in NAMES])
    head = result.model.image_head
    np.testing.assert_allclose(head.mean.numpy(), union.mean(0), rtol=1e-6)
    np.testing.assert_allclose(head.std.numpy(), union.std(0), rtol=1e-5)
    assert result.statistics is not None and bits(result) != bits(run(replace(SETTINGS, rounds=1)))


def _with_statistics(answers: list[Sums | None]) -> TrainingResult:
    app = learners()
    other = ClientApp()

    @other.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        sums = answers[int(str(context.node_config["number"]))]
        if sums is None:
            return Message(RecordDict({"statistics": ArrayRecord()}), reply_to=message)
        return Message(sums.to_content(), reply_to=message)

    @other.train()
    def train(message: Message, context: Context) -> Message:
        return app(message=message, context=context)

    @other.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return app(message=message, context=context)

    nodes = [{"name": NAMES[number], "number": number} for number in range(len(answers))]
    with InProcessGrid(other, nodes) as grid:
        return coordinate(grid, replace(SETTINGS, standardise=True, rounds=1))


def test_bad_statistics_are_left_out_and_too_few_end_the_run() -> None:
    good = [Sums.of(features(name)) for name in "ab"]
    expected = Statistics.combine(good).mean
    zeros = np.zeros(WIDTH)
    for bad in (
        None,
        Sums(0, zeros, zeros),
        Sums(20, zeros + np.nan, zeros),
        Sums(20, zeros + 20, zeros + 19),
        Sums(20, np.zeros(WIDTH + 1), np.zeros(WIDTH + 1)),
    ):
        result = _with_statistics([*good, bad])
        np.testing.assert_array_equal(result.model.image_head.mean.numpy(), expected)
        with pytest.raises(TrainingError, match=r"statistics: 1 usable replies.*b: "):
            _with_statistics([good[0], bad])
