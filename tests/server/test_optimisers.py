"""The coordinator's optimisers against Flower's own, on the same replies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays, pack
from server.averaging import mean_change
from server.optimisers import optimiser_of
from server.optimisers.adaptive import BETA2, TAU
from server.replies import Update
from simulations.grid import InProcessGrid

RATE, MOMENTUM, ROUNDS = 0.05, 0.8, 6
SETTINGS = TrainingSettings(server_learning_rate=RATE, server_momentum=MOMENTUM)
EXAMPLES = (30, 10, 7)
SHAPES = {"matrix": (5, 4), "one": (1,), "none": ()}


def _arrays(seed: list[int], scale: float) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(generator.normal(0, scale, shape), np.float32)
        for name, shape in SHAPES.items()
    }


INITIAL = _arrays([0], 1.0)


def _change(number: int, institution: int) -> Arrays:
    return _arrays([number, institution], 0.01)


def _ours(name: str, settings: TrainingSettings = SETTINGS) -> list[Arrays]:
    """The weights after each round."""
    optimiser = optimiser_of(INITIAL, replace(settings, optimiser=name))
    current, found = INITIAL, []
    for number in range(1, ROUNDS + 1):
        updates = [
            Update(_change(number, institution), examples, 0.0, None, None, None)
            for institution, examples in enumerate(EXAMPLES)
        ]
        current = optimiser.step(current, mean_change(updates))
        assert all(type(values) is np.ndarray for values in current.values())
        assert all(values.dtype == np.float32 for values in current.values())
        assert {name: values.shape for name, values in current.items()} == SHAPES
        found.append(current)
    return found


def _theirs(strategy: FedAvg) -> list[Arrays]:
    """The same of a strategy of Flower's, which takes weights; in float64, to compare closely."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays, config = message.content["arrays"], message.content["config"]
        assert isinstance(arrays, ArrayRecord)
        institution = int(str(context.node_config["name"]))
        change = _change(int(str(config["server-round"])), institution)
        weights = {name: Array(np.asarray(arrays[name].numpy() + change[name])) for name in SHAPES}
        metrics = MetricRecord({"num-examples": EXAMPLES[institution]})
        content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
        return Message(content, reply_to=message)

    found: list[Arrays] = []

    def watch(number: int, arrays: ArrayRecord) -> None:
        if number:
            found.append({name: arrays[name].numpy() for name in SHAPES})

    wide = pack({name: values.astype(np.float64) for name, values in INITIAL.items()})
    with InProcessGrid(app, [{"name": str(i)} for i in range(len(EXAMPLES))]) as grid:
        strategy.start(grid, wide, num_rounds=ROUNDS, evaluate_fn=watch)
    return found


def _assert_close(ours: list[Arrays], theirs: list[Arrays]) -> None:
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in SHAPES:
            np.testing.assert_allclose(mine[name], other[name], atol=1e-6, err_msg=str(number))


def test_fedavg_and_fedavgm_are_flowers() -> None:
    plain = replace(SETTINGS, server_learning_rate=1.0)
    _assert_close(_ours("fedavg", plain), _theirs(FedAvg(fraction_evaluate=0)))
    strategy = FedAvgM(fraction_evaluate=0, server_learning_rate=RATE, server_momentum=MOMENTUM)
    _assert_close(_ours("fedavgm"), _theirs(strategy))


class _PaperAdam(FedAdam):
    """Flower's FedAdam without its correction of the bias, which algorithm 2 does not have."""

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        later = server_round + 1.0
        self.eta = RATE * (1 - MOMENTUM**later) / math.sqrt(1 - BETA2**later)
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(("name", "kind"), [("fedadam", _PaperAdam), ("fedyogi", FedYogi)])
def test_fedadam_and_fedyogi_are_flowers_but_for_how_they_begin(
    name: str, kind: type[FedAdam] | type[FedYogi]
) -> None:
    strategy = kind(fraction_evaluate=0, eta=RATE, beta_1=MOMENTUM, beta_2=BETA2, tau=TAU)
    # The paper begins with v at tau squared, Flower with nothing.
    strategy.m_t = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    strategy.v_t = {name: np.full(shape, TAU**2) for name, shape in SHAPES.items()}
    _assert_close(_ours(name), _theirs(strategy))


def test_the_first_step_of_fedadam_by_hand() -> None:
    optimiser = optimiser_of({"a": np.zeros(1, np.float32)}, replace(SETTINGS, optimiser="fedadam"))
    found = optimiser.step({"a": np.ones(1, np.float32)}, {"a": np.array([-0.5])})
    v = 0.99 * 1e-6 + 0.01 * 0.25
    assert found["a"][0] == pytest.approx(1 - 0.05 * 0.2 * 0.5 / (math.sqrt(v) + 1e-3), rel=1e-6)


def test_the_step_is_reckoned_in_float64() -> None:
    optimiser = optimiser_of({"a": np.zeros(1, np.float32)}, replace(SETTINGS, optimiser="fedavgm"))
    current = {"a": np.ones(1, np.float32)}
    for _ in range(3):
        current = optimiser.step(current, {"a": np.array([1e-9])})
    assert optimiser.state["velocity"]["a"][0] == pytest.approx(1e-9 * (1 + 0.8 + 0.64), rel=1e-12)
