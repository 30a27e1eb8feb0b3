"""Tickets: who may fetch for a while, without the service keeping anything between calls.

A ticket is 16 random bytes, the epoch, and when it ends. The secret that goes with it is an HMAC
of it and of the searcher's public key, under a key that lives as long as the service: so a ticket
that was changed, or is somebody else's, stands for another secret, and no handle fits it.
"""

import hmac
import os
import struct
import time
from collections.abc import Callable

from protocol.errors import EpochMismatch, MalformedMessage
from protocol.handles import SECRET_BYTES, TICKET_BYTES, Grant

LIFE_SECONDS = 900.0
_REST = struct.Struct("<QQ")
_NONCE_BYTES = TICKET_BYTES - _REST.size


class Tickets:
    """Issues and checks the tickets of one run of the service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` counts seconds. Not the time of day: that may be set back."""
        self._clock = clock
        self._key = os.urandom(32)

    def issue(self, searcher: bytes, epoch: int) -> Grant:
        """Grant fetches from ``epoch`` to who has the public key ``searcher`` (DER)."""
        ends = round(1000 * (self._clock() + LIFE_SECONDS))
        ticket = os.urandom(_NONCE_BYTES) + _REST.pack(epoch, ends)
        return Grant(ticket, self._secret(searcher, ticket))

    def check(self, searcher: bytes, ticket: bytes, epoch: int) -> Grant:
        """The grant that ``searcher`` was given; handles show whether there was one.

        Raises MalformedMessage for another length or one that has ended, EpochMismatch.
        """
        if len(ticket) != TICKET_BYTES:
            raise MalformedMessage(
                f"items are fetched with the ticket of {TICKET_BYTES} bytes that came with an "
                f"answer, got {len(ticket)} bytes",
                "Search again.",
            )
        issued, ends = _REST.unpack(ticket[_NONCE_BYTES:])
        if issued != epoch:
            raise EpochMismatch(
                f"the ticket is for epoch {issued}, the index is at epoch {epoch}", "Search again."
            )
        if 1000 * self._clock() >= ends:
            raise MalformedMessage("the ticket has ended", "Search again.")
        return Grant(ticket, self._secret(searcher, ticket))

    def _secret(self, searcher: bytes, ticket: bytes) -> bytes:
        return hmac.digest(self._key, searcher + ticket, "sha256")[:SECRET_BYTES]
