"""The coordinator's side of training, as a Flower ServerApp: glue around ``coordinate``.

Run-config: the keys of TrainingSettings; ``releases``, the folder that the finished model is
written to; ``checkpoints``, the folder that every round is saved in (either left out or empty:
nothing is written); ``resume``, true to go on after the last round saved there; ``roster``, the
file that says who is an institution, and ``identity``, the folder with the key of the authority
that signed it (secure aggregation needs both); and the encoders that the run builds on, by the keys
of ``protocol.model.pretrained``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp

from protocol.certificates import Certificate
from protocol.errors import UsageError
from protocol.model.adapters import merge
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.release import write_release
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import RECORD
from protocol.model.update import arrays_of, pack
from protocol.roster import Roster
from server.coordinator import OnRound, coordinate

app = ServerApp()

_on_round: ContextVar[OnRound | None] = ContextVar("on_round", default=None)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, writes the release, and leaves arrays and release id in ``context.state``.

    There too: "recalls", and "statistics" where features are standardised.
    """
    config = context.run_config
    settings = TrainingSettings.from_run_config(config)
    releases, checkpoints = _folder(config, "releases"), _folder(config, "checkpoints")
    resume = config.get("resume", False)
    if type(resume) is not bool:
        raise UsageError(f"resume: expected true or false, got {resume!r:.40}")
    if resume and checkpoints is None:
        raise UsageError("resume: expected the folder of checkpoints, got none", "name it")
    dim = settings.towers.dim if "towers" in config else None
    held = Pretrained.load(EncoderChoice.from_config(config, dim))
    if dim is None:  # `flwr run`: the encoders that are named say what the towers are
        settings = replace(settings, towers=held.settings)
    model = held.agree(settings.towers).start(settings)
    result = coordinate(
        grid, settings, _on_round.get(), checkpoints, resume, model, _roster(config)
    )
    context.state["arrays"] = pack(arrays_of(result.model))
    context.state["recalls"] = MetricRecord(dict(result.recalls))
    if result.statistics is not None:
        context.state[RECORD] = result.statistics.to_record()
    if releases is not None:
        release = write_release(releases, merge(result.model), result.metrics)
        context.state["release"] = ConfigRecord({"release-id": release.release_id})


def _roster(config: UserConfig) -> Roster | None:
    identity, roster = _folder(config, "identity"), _folder(config, "roster")
    if identity is None or roster is None:
        return None
    return Roster.read(roster, Certificate.load(identity / "authority.pem").identity)


def _folder(config: UserConfig, key: str) -> Path | None:
    value = config.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key}: expected a folder, got {value!r:.40}")
    return Path(value) if value else None


@contextmanager
def listening(on_round: OnRound) -> Iterator[None]:
    """Within it, a run of ``app`` in this thread tells ``on_round`` of each round.

    Flower hands a ServerApp nothing but scalars, and a callable is none.
    """
    token = _on_round.set(on_round)
    try:
        yield
    finally:
        _on_round.reset(token)
