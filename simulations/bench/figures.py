"""From what was measured to the figures that are reported."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from client.searcher.traffic import Traffic
from simulations.bench.faiss_peer import Found
from simulations.bench.peer import Peer


def figures(
    here: list[Traffic],
    served: list[Traffic],
    ahead: list[Traffic],
    found: list[Found],
    peers: list[Peer],
    items: int,
) -> dict[str, Any]:
    """What follows from the measurements, with every peer beside this engine.

    ``served`` and ``ahead`` are questions to a service, without and with keys made ahead.
    """
    server = median(one.milliseconds["server"] for one in here)
    faiss = median(one.seconds for one in found)
    each = 1e3 * server / items
    plain = Peer("FAISS IndexFlatIP", 1e6 * faiss / items, "the whole index", 1)
    rows = [
        asdict(one) | {"over_server": None if one.microseconds is None else one.microseconds / each}
        for one in (plain, *peers)
    ]
    over = {row["name"]: row["over_server"] for row in rows}
    return {
        "server_over_faiss": server / (1e3 * faiss),
        "tenseal_mm_over_server": over.get("TenSEAL mm"),
        "tenseal_dot_over_server": over.get("TenSEAL dot"),
        "server_ms": server,
        "query_ms": median(sum(one.milliseconds.values()) for one in served),
        "query_ahead_ms": median(sum(one.milliseconds.values()) for one in ahead),
        "upload_bytes": int(median(one.upload_bytes for one in served)),
        "download_bytes": int(median(one.download_bytes for one in served)),
        "phases": {
            "in_process": _phases(here),
            "over_grpc": _phases(served),
            "ahead": _phases(ahead),
        },
        "peers": rows,
    }


def _phases(asked: Sequence[Traffic]) -> dict[str, dict[str, float]]:
    times = {phase: [one.milliseconds[phase] for one in asked] for phase in asked[0].milliseconds}
    return {
        phase: {"median_ms": median(each), "min_ms": min(each)} for phase, each in times.items()
    }
