"""The coordinator's side of training, as a Flower ServerApp: glue around ``coordinate``.

Run-config: the keys of TrainingSettings, and ``releases``, the folder that the finished model
is written to (left out: it is not written).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from flwr.app import ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from protocol.errors import UsageError
from protocol.model.release import write_release
from protocol.model.settings import TrainingSettings
from protocol.model.update import arrays_of, pack
from server.coordinator import OnRound, coordinate

app = ServerApp()

_on_round: ContextVar[OnRound | None] = ContextVar("on_round", default=None)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, writes the release, and leaves arrays and release id in ``context.state``."""
    settings = TrainingSettings.from_run_config(context.run_config)
    releases = context.run_config.get("releases", "")
    if not isinstance(releases, str):
        raise UsageError(f"releases: expected a folder, got {releases!r}")
    result = coordinate(grid, settings, _on_round.get())
    context.state["arrays"] = pack(arrays_of(result.model))
    context.state["recalls"] = MetricRecord(dict(result.recalls))
    if releases:
        release = write_release(Path(releases), result.model, result.metrics)
        context.state["release"] = ConfigRecord({"release-id": release.release_id})


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
