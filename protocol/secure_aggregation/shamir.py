"""Secret sharing over a prime field (Shamir, "How to Share a Secret", CACM 22(11), 1979).

Any ``threshold`` shares give the secret; fewer say nothing of it, whatever their holders compute.
"""

from collections.abc import Callable, Mapping

from protocol.errors import MalformedMessage
from protocol.secure_aggregation.fields import expect_size

#: The least prime above 2^256, so that every 32 bytes are an element.
PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int, random: Callable[[int], bytes]) -> list[bytes]:
    """Share i (from 0) belongs to the point i + 1; 33 bytes each.

    ``random`` gives bytes from the operating system. Raises ValueError for a secret that is not 32
    bytes or a threshold beyond ``count``.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError(f"expected 32 bytes and 1 to {count} shares, got {threshold}")
    # 48 bytes modulo a prime of 257 bits: uniform but for 2^-127.
    drawn = [int.from_bytes(random(48), "big") % PRIME for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret, "big")]
    return [
        _evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in range(1, count + 1)
    ]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, 32 bytes, of exactly as many shares as its threshold, by their points.

    Raises MalformedMessage when these shares are not of one secret; that they are, only a
    commitment to the secret can say.
    """
    total = 0
    for point, share in shares.items():
        numerator = denominator = 1
        for other in shares:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        total += read_share(share) * numerator * pow(denominator, -1, PRIME)
    total %= PRIME
    if total >= 1 << (8 * SECRET_BYTES):
        raise MalformedMessage("shares: they are not of one secret")
    return total.to_bytes(SECRET_BYTES, "big")


def read_share(share: bytes) -> int:
    """The element of the field. Raises MalformedMessage for anything else."""
    value = int.from_bytes(expect_size(share, SHARE_BYTES, "share"), "big")
    if value >= PRIME:
        raise MalformedMessage("share: it is no element of the field")
    return value


def _evaluate(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value
