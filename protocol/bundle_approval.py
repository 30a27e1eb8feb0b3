"""A reviewer's word that a bundle of code may run beside data, signed.

It travels with the run as a text: for each reviewer the public key and the signature in
hexadecimal digits with a colon between them, by commas. Institutions decide for themselves whose
word counts.
"""

from collections.abc import Iterator

from protocol.errors import MalformedMessage
from protocol.identity import Identity, PublicIdentity

_PURPOSE = "bundle"
MAX_TEXT = 16_384


def approve(sha256: str, reviewer: Identity) -> str:
    """One approval of the bundle with this hash, 64 hexadecimal digits."""
    signature = reviewer.sign(_PURPOSE, bytes.fromhex(sha256))
    return f"{reviewer.public.der.hex()}:{signature.hex()}"


def approved_by(sha256: str, approvals: str) -> Iterator[PublicIdentity]:
    """Whose valid signatures are among ``approvals``; anything else in it counts for nothing."""
    for one in approvals.split(",") if len(approvals) <= MAX_TEXT else ():
        key, _, signature = one.strip().partition(":")
        try:
            identity = PublicIdentity.read(bytes.fromhex(key))
            if identity.verifies(_PURPOSE, bytes.fromhex(sha256), bytes.fromhex(signature)):
                yield identity
        except (ValueError, MalformedMessage):
            continue
