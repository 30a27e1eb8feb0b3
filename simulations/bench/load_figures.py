"""What a service under load did: answers a second, percentiles of their times, memory."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Asked:
    """What one question came to: its searcher, milliseconds, and "ok" or the error's code."""

    name: str
    milliseconds: float
    code: str


def figures(asked: list[Asked], seconds: float, memory: list[int]) -> dict[str, Any]:
    """Return the figures of one run of ``seconds``, its ``memory`` in bytes."""
    answered = [one for one in asked if one.code == "ok"]
    by_name = {
        name: [one.milliseconds for one in answered if one.name == name]
        for name in sorted({one.name for one in asked})
    }
    return {
        "answered": len(answered),
        "a_second": len(answered) / seconds,
        "ms": _percentiles([one.milliseconds for one in answered]),
        "codes": dict(Counter(one.code for one in asked)),
        "by_searcher": {
            name: {"answered": len(times), "ms": _percentiles(times)}
            for name, times in by_name.items()
        },
        "memory_mb": [round(one / 1e6, 1) for one in memory],
    }


def _percentiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    found = np.percentile(times, (50, 95, 99))
    return {name: float(one) for name, one in zip(("p50", "p95", "p99"), found, strict=True)}


def table(data: dict[str, Any]) -> str:
    """Return the three runs as a table."""
    rows = [f"{'':<22}{'answered':>9}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"]

    def row(title: str, answered: int, rate: float, ms: dict[str, float]) -> None:
        told = "".join(f"{ms[one]:>9.0f}" for one in ("p50", "p95", "p99")) if ms else ""
        rows.append(f"{title:<22}{answered:>9}{rate:>10.2f}{told}")

    for title, key in (("together", "together"), ("one a pass", "one_a_pass")):
        found = data[key]
        row(title, found["answered"], found["a_second"], found["ms"])
    mixed = data["greedy_and_modest"]
    for title, name in (("greedy", "searcher-0"), ("modest", "searcher-1")):
        found = mixed["by_searcher"].get(name, {"answered": 0, "ms": {}})
        share = found["answered"] / max(1, mixed["answered"])
        row(title, found["answered"], share * mixed["a_second"], found["ms"])
    memory = data["together"]["memory_mb"]
    each = (data[key]["service_cpu_ms"] for key in ("together", "one_a_pass"))
    rows.append(
        "processor ms of the service for a question: {:.0f} together, {:.0f} one a pass; ".format(
            *each
        )
        + f"micro-batching gain {data['micro_batching_gain']:.2f}"
    )
    rows.append(
        f"memory {memory[0]:.0f} MB first, {memory[-1]:.0f} MB last, {max(memory):.0f} most"
    )
    rows.append(f"codes {json.dumps(data['together']['codes'])}")
    return "\n".join(rows)
