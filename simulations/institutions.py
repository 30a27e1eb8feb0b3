"""Deals captioned images out to institutions, each with a folder of its own."""

import re
from collections.abc import Mapping
from pathlib import Path

from client.institution.pairs import Pair, PairFolder, read_pairs, write_pairs
from protocol.errors import UsageError
from protocol.terminal import progress
from simulations.partition import parse_partition, partition, take
from simulations.scenes import write_scenes
from simulations.settings import SimulationSettings

SCENE_INSTITUTIONS = 4


def settle_institutions(settings: SimulationSettings, source: Path, homes: Path) -> PairFolder:
    """Write ``homes/<name>/data`` for every institution; return the folder dealt out.

    Without a data folder, scenes are drawn into ``source`` first.
    """
    scheme = parse_partition(settings.partition)
    if settings.data is None:
        sites = settings.institutions or SCENE_INSTITUTIONS
        with progress("drawing scenes", settings.scenes) as show:
            write_scenes(source, settings.scenes, sites, settings.seed, show)
    folder = take(read_pairs(settings.data or source), settings.limit, settings.seed)
    shares = by_name(partition(folder, scheme, settings.institutions, settings.seed))
    with progress("dealing out images", len(shares)) as show:
        for done, (name, pairs) in enumerate(shares.items(), 1):
            write_pairs(homes / name / "data", pairs, folder)
            show(done)
    return folder


def by_name(shares: Mapping[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Shares under names fit for folders; raises UsageError where two sites would have one name."""
    named = {institution_name(site): pairs for site, pairs in shares.items()}
    if len(named) != len(shares):
        raise UsageError(
            f"two sites would have the same name: {sorted(map(institution_name, shares))}",
            "Names keep letters, digits, dots and dashes only; rename a site.",
        )
    return named


def institution_name(site: str) -> str:
    """Return a name fit for folders and the wire: lower case, at most 63 characters."""
    name = re.sub(r"[^a-z0-9._-]+", "-", site.strip().lower()).strip("-._")[:63]
    if not name:
        raise UsageError(f"site {site!r} has no letter or digit to name an institution by")
    return name
