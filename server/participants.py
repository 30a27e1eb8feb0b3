"""Who is there, and who of them takes part in a round."""

import time

import numpy as np
from flwr.serverapp import Grid

from protocol.errors import TrainingError
from protocol.model.settings import TrainingSettings

_POLL_SECONDS = 0.5


def present(grid: Grid) -> dict[int, str]:
    """The institutions' names by node id, ascending."""
    return dict(sorted((node.node_id, node.name or str(node.node_id)) for node in grid.get_nodes()))


def wait_for_quorum(grid: Grid, settings: TrainingSettings) -> dict[int, str]:
    """Who is there as soon as a quorum is. Raises TrainingError when the deadline passes first."""
    started = time.monotonic()
    while len(nodes := present(grid)) < settings.quorum:
        if time.monotonic() - started > settings.deadline_seconds:
            raise TrainingError(
                f"only {len(nodes)} institutions are there after "
                f"{settings.deadline_seconds:g} s; expected {settings.quorum}",
                "start the missing institutions, or lower the quorum",
            )
        time.sleep(_POLL_SECONDS)
    return nodes


def draw(nodes: dict[int, str], settings: TrainingSettings, number: int) -> dict[int, str]:
    """The part of ``nodes`` that round ``number`` asks, in their order.

    As many as client_fraction says, but at least the quorum. It follows from the seed and the
    round, so a run that is resumed draws as it would have. It is no secret.
    """
    count = max(settings.quorum, round(settings.client_fraction * len(nodes)))
    if count >= len(nodes):
        return nodes
    generator = np.random.default_rng([settings.seed, number])
    drawn = generator.choice(len(nodes), count, replace=False)
    identifiers = list(nodes)
    return {identifiers[i]: nodes[identifiers[i]] for i in sorted(drawn.tolist())}
