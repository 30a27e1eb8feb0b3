"""CKKS parameter sets: values that are checked when they are made (docs/protocol.md section 2).

A preset's name says what it gives. There is no way to make an unchecked one.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log2, prod, sqrt

from protocol.errors import UnknownPreset, UsageError

MAX_MODULUS_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214}
"""Largest log2(QP) for 128-bit security, ternary secrets (Bossuat et al. 2024, table 5.2)."""

ERROR_STDDEV = sqrt(10.5)
"""Of a fresh error: centred binomial over 21 pairs of bits, as SEAL draws it."""

TAIL = 6.0
"""Computation noise is bounded by this many standard deviations (2e-9 a coefficient)."""


@dataclass(frozen=True)
class Preset:
    """One CKKS parameter set of the rotation-free scheme.

    ``moduli`` are the primes of SEAL's coefficient modulus; the last one is SEAL's special
    prime, which this scheme never computes with but which counts for security. A question is
    encoded at scale ``2**query_scale_bits``, items at ``2**item_scale_bits``; every score
    coefficient is flooded with uniform noise of ``±2**flood_bits`` before it leaves. A reply is
    switched down to the first prime and then rounded to ``c0_bits`` and ``c1_bits`` a coefficient.
    """

    name: str
    ring_degree: int
    moduli: tuple[int, ...]
    query_scale_bits: int
    item_scale_bits: int
    flood_bits: int
    c0_bits: int
    c1_bits: int

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` unless secure, exact in 64 bits, and free of wrap-around."""
        if self.ring_degree not in MAX_MODULUS_BITS:
            raise UsageError(f"ring degree {self.ring_degree} is not one of {MAX_MODULUS_BITS}")
        for modulus in self.moduli:
            if not 2 <= modulus < 1 << 27:
                raise UsageError(f"preset {self.name}: {modulus} is not a prime below 2^27")
        bits = log2(prod(self.moduli))
        if bits > MAX_MODULUS_BITS[self.ring_degree]:
            raise UsageError(
                f"preset {self.name}: a modulus of {bits:.1f} bits is below 128-bit security; "
                f"at ring degree {self.ring_degree} at most {MAX_MODULUS_BITS[self.ring_degree]}"
            )
        if len(self.moduli) < 2 or len(set(self.moduli)) != len(self.moduli):
            raise UsageError(f"preset {self.name}: two or more different primes are needed")
        for modulus in self.moduli:
            if not _is_prime(modulus) or modulus % (2 * self.ring_degree) != 1:
                raise UsageError(
                    f"preset {self.name}: {modulus} is not a prime that is 1 modulo "
                    f"{2 * self.ring_degree}"
                )
        if 2.0**self.score_scale_bits * 1.9 + 2.0**self.flood_bits > self.data_modulus / 2:
            raise UsageError(f"preset {self.name}: a score of 1.9 would wrap around the modulus")
        if max(self.c0_bits, self.c1_bits) >= self.reply_modulus.bit_length():
            raise UsageError(f"preset {self.name}: a reply is rounded to less than its prime")
        if self.circuit_privacy_bits(1) < 8:
            raise UsageError(f"preset {self.name}: flooding does not cover computation noise")

    @cached_property
    def data_moduli(self) -> tuple[int, ...]:
        """The primes that residues are kept under."""
        return self.moduli[:-1]

    @cached_property
    def data_modulus(self) -> int:
        """Their product, Q."""
        return prod(self.data_moduli)

    @cached_property
    def reply_modulus(self) -> int:
        """The prime that a reply is switched down to."""
        return self.moduli[0]

    @cached_property
    def reply_moduli(self) -> tuple[int, int]:
        """What the coefficients of c0 and of c1 are rounded to in a reply."""
        return 1 << self.c0_bits, 1 << self.c1_bits

    @property
    def score_scale_bits(self) -> int:
        """log2 of the scale of a score before it is switched down."""
        return self.query_scale_bits + self.item_scale_bits

    @cached_property
    def reply_scale(self) -> float:
        """The scale of a score in a reply, after switching down to ``reply_modulus``."""
        return float(2**self.score_scale_bits / (self.data_modulus // self.reply_modulus))

    @cached_property
    def score_capacity_bits(self) -> float:
        """Bits that one flooded score coefficient can carry, whatever the searcher sends."""
        return log2(self.data_modulus) - self.flood_bits - 1

    def coarse_bits(self, score_bits: int) -> int:
        """log2 of half the coarse steps that leave a score ``score_bits`` bits; below 0: none.

        A step is 2^(flood_bits + 1); docs/protocol.md section 6.4.
        """
        return self.score_scale_bits - score_bits - self.flood_bits - 1

    def noise_bound(self, chunk_width: int) -> float:
        """Bound of the computation noise in a score coefficient (docs/protocol.md section 6.1)."""
        items_in_block = self.ring_degree / chunk_width
        return TAIL * ERROR_STDDEV * 2.0**self.item_scale_bits * sqrt(items_in_block)

    def circuit_privacy_bits(self, chunk_width: int) -> float:
        """-log2 of the statistical distance that flooding leaves, for one score."""
        return self.flood_bits + 1 - log2(self.noise_bound(chunk_width))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(sqrt(number)) + 1))


PRIVATE = Preset("private", 4096, (134111233, 134176769, 67043329, 67084289), 60, 18, 58, 21, 25)
"""The default: three data primes (80 bits), 30 bits and more between flooding and noise."""

FAST = Preset("fast", 4096, (134111233, 134176769, 67084289), 37, 15, 34, 21, 25)
"""Two data primes (54 bits): two thirds of the work, some 10 bits of flooding."""

PRESETS = {preset.name: preset for preset in (PRIVATE, FAST)}


def preset_by_name(name: str) -> Preset:
    """Return the preset called ``name``; raise :class:`UnknownPreset` if there is none."""
    if name not in PRESETS:
        raise UnknownPreset(
            f"parameter set {name[:40]!r} is unknown; expected one of {', '.join(PRESETS)}",
            "Bring both sides to the same version of Blindsight.",
        )
    return PRESETS[name]
