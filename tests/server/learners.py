"""Institutions that learn without data: each pulls the model towards weights of its own.

Run as a program, it forks for each line of its input, JSON [checkpoints, settings], a process
that trains with them, and tells on its output who they are, how far they come and what they end
with: so that a test can kill them.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.institution.residual import Residuals, run_of
from protocol.model.compression import codec_of
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import RECORD, Statistics, Sums
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, unpack_model
from server.coordinator import OnRound, TrainingResult, coordinate
from simulations.grid import InProcessGrid

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
SETTINGS = TrainingSettings(rounds=6, quorum=2, deadline_seconds=20.0, seed=3, towers=TINY)
INITIAL = arrays_of(TwoTowers.initial(TINY, SETTINGS.seed))
WIDTH = TwoTowers.initial(TINY, SETTINGS.seed).image.width
NAMES = ("a", "b", "c", "d")


def features(name: str) -> np.ndarray:
    """The image features of an institution, float32 [20, WIDTH]."""
    return np.random.default_rng(ord(name)).normal(ord(name), 2, (20, WIDTH)).astype(np.float32)


def learners() -> ClientApp:
    """Replies as an institution does, with everything that a resumed run depends on."""
    app = ClientApp()

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        sums = Sums.of(features(str(context.node_config["name"])))
        return Message(sums.to_content(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        settings = TrainingSettings.from_run_config(config)
        if settings.standardise:
            Statistics.from_record(message.content.array_records[RECORD], WIDTH)
        received = unpack_model(message.content.array_records["arrays"], INITIAL)
        number, state = config["server-round"], context.node_config.get("state")
        assert isinstance(number, int)
        name = ord(str(context.node_config["name"]))
        generator = np.random.default_rng([name, number])
        change: Arrays = {
            key: (0.3 * (name / 100 - values) + generator.normal(0, 0.01, values.shape)).astype(
                "f4"
            )
            for key, values in received.items()
        }
        residuals = Residuals(context.state, Path(str(state)) if state else None, run_of(config))
        record, left = codec_of(settings.compression).encode(
            change, residuals.load(number, received), generator
        )
        residuals.save(number, left)
        time.sleep(0.005)
        metrics = _recall(received) | {"train-loss": 1.0, "num-examples": name}
        content = RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        received = unpack_model(message.content.array_records["arrays"], INITIAL)
        metrics = MetricRecord(_recall(received))
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _recall(received: Arrays) -> dict[str, float | int]:
    return {"val-recall-at-10": float(1 / (1 + np.abs(received["logit_scale"] - 1).sum()))}


def run(
    settings: TrainingSettings,
    checkpoints: Path | None = None,
    on_round: OnRound | None = None,
    resume: bool = True,
) -> TrainingResult:
    """A run of four such institutions that keep their state beside the checkpoints."""
    nodes: list[dict[str, Any]] = [{"name": name} for name in NAMES]
    for node in nodes if checkpoints is not None else []:
        node["state"] = str(checkpoints / node["name"])
    with InProcessGrid(learners(), nodes, workers=2) as grid:
        return coordinate(grid, settings, on_round, checkpoints, resume and checkpoints is not None)


def bits(result: TrainingResult) -> str:
    """The hash of a finished model: weights and statistics."""
    values = [value.numpy().tobytes() for value in result.model.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def main() -> None:
    """See the head of this file."""
    for line in sys.stdin:
        checkpoints, changes = json.loads(line)
        process = os.fork()
        if not process:
            settings = replace(SETTINGS, **changes)
            said = run(settings, Path(checkpoints), lambda report: _say("round", report.number))
            _say("model", bits(said))
            os._exit(0)
        _say("process", process)
        os.waitpid(process, 0)
        _say("ended", process)


def _say(*words: object) -> None:
    # In one write: two processes speak here.
    os.write(sys.stdout.fileno(), f"{' '.join(map(str, words))}\n".encode())


if __name__ == "__main__":
    main()
