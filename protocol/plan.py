"""How wide a chunk should be: what every choice of d2 costs, and which is best for a goal.

A wider chunk makes a question shorter (d1 = d/d2 ciphertexts) and a reply longer (a block holds
N/d2 items), so the best one depends on how many items there are, and on the network.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

from protocol.errors import UsageError
from protocol.packing import CHUNK_WIDTHS, Layout
from protocol.params import Preset

Goal = Literal["bytes", "latency"]
GOALS: tuple[Goal, ...] = ("bytes", "latency")


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one core, as ``blindsight bench score`` measures them; and the network.

    The defaults are of a 2-core x86-64 machine with AVX-512. They are for choosing a layout, not
    for promising a time.
    """

    up_mbit: float = 100.0
    down_mbit: float = 100.0
    threads: int = 1
    """Threads that score."""
    scan: float = 4.8e-7
    """For a coordinate of an item, and prime."""
    transform: float = 0.016
    """For a transform while masking: keys + 2 of them for a prime and block."""
    expand: float = 0.33
    """For a ciphertext that an institution expands."""
    encrypt: float = 1.35
    """For a ciphertext that a searcher makes."""
    decrypt: float = 0.45
    """For a block that a searcher decrypts."""

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a network or a machine that cannot be."""
        if not all(0 < rate < inf for rate in (self.up_mbit, self.down_mbit)):
            raise UsageError(
                f"bandwidths are above 0 Mbit/s and finite, got {self.up_mbit} up, "
                f"{self.down_mbit} down"
            )
        if self.threads < 1:
            raise UsageError(f"at least one thread scores, got {self.threads}")


@dataclass(frozen=True)
class Plan:
    """One layout and what a question costs with it; times in milliseconds."""

    layout: Layout
    costs: Costs

    @property
    def total_bytes(self) -> int:
        """Bytes up and down."""
        return self.layout.upload_bytes + self.layout.download_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the packed records, on disk and read for every question."""
        layout, primes = self.layout, len(self.layout.preset.data_moduli)
        return 4 * primes * layout.preset.ring_degree * layout.chunks * layout.blocks

    @property
    def server_ms(self) -> float:
        """What the institution computes."""
        layout, costs = self.layout, self.costs
        primes = len(layout.preset.data_moduli)
        transforms = layout.blocks * primes * (layout.public_keys + 2)
        scanned = self.index_bytes / 4 * costs.scan
        work = scanned + transforms * costs.transform
        return (layout.chunks + layout.public_keys) * costs.expand + work / costs.threads

    @property
    def searcher_ms(self) -> float:
        """What the searcher computes."""
        layout = self.layout
        ciphertexts = layout.chunks + layout.public_keys
        return ciphertexts * self.costs.encrypt + layout.blocks * self.costs.decrypt

    @property
    def network_ms(self) -> float:
        """What the bytes take on the stated network."""
        bits_up, bits_down = 8 * self.layout.upload_bytes, 8 * self.layout.download_bytes
        return bits_up / self.costs.up_mbit / 1e3 + bits_down / self.costs.down_mbit / 1e3

    @property
    def latency_ms(self) -> float:
        """All of it, one after the other."""
        return self.server_ms + self.searcher_ms + self.network_ms


def plans(preset: Preset, dim: int, items: int, costs: Costs) -> list[Plan]:
    """Return a plan for each chunk width, narrow to wide."""
    return [Plan(Layout(preset, dim, width, items), costs) for width in CHUNK_WIDTHS]


def best(choices: list[Plan], goal: str) -> Plan:
    """Return the plan with the fewest bytes or the shortest time; or raise UsageError."""
    if goal not in GOALS:
        raise UsageError(f"a goal is one of {', '.join(GOALS)}, got {goal[:40]!r}")
    if goal == "bytes":
        return min(choices, key=lambda one: one.total_bytes)
    return min(choices, key=lambda one: one.latency_ms)
