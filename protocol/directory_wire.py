"""Messages of the directory and the relay to native values and back (docs/protocol.md 10).

An offer is what somebody says of an institution. That it speaks for the institution of that name
only its certificate shows, which a searcher checks against the roster that it holds itself.
"""

import re
from dataclasses import dataclass

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.certificates import MAX_BYTES, Certificate
from protocol.errors import MalformedMessage, UsageError
from protocol.hosts import endpoint, parse_endpoint
from protocol.roster import MAX_MEMBERS, check_name
from protocol.wire import MAX_ITEMS

PORT = 8444
"""Where a coordinator serves directory and relay, unless its settings say otherwise."""

FRAME_BYTES = 256 << 10
"""Payload of one frame, at most. Longer frames would only keep more of them in memory."""

MAX_FRAME_BYTES = FRAME_BYTES + 64
"""A frame as a message."""

ATTACHED = "blindsight-attached"
"""Initial metadata of Attach: the relay knows the institution from now on."""

CALL_BYTES = 16
MAX_OFFER_BYTES = MAX_BYTES + 1024
MAX_LIST_BYTES = 16 << 20
"""What a searcher takes: 4,096 offers of some 1.5 kB and room to spare."""

RELEASE_ID = re.compile(r"[0-9a-f]{16}")
"""A release id, and a folder's name: nothing else is ever joined to a path."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an institution lets be known of itself; ``address`` is "" where the relay is the way."""

    institution: str
    release_id: str
    items: int
    address: str
    certificate: bytes

    def __post_init__(self) -> None:
        """Raise MalformedMessage for a value of another form."""
        try:
            check_name(self.institution)
            if self.address and endpoint(*parse_endpoint(self.address)) != self.address:
                raise UsageError(f"{self.address!r:.80} is not the usual form of an address")
        except UsageError as error:
            raise MalformedMessage(f"offer: {error.message}") from error
        if not RELEASE_ID.fullmatch(self.release_id):
            raise MalformedMessage(
                f"offer: a release id has 16 hexadecimal digits, got {self.release_id!r:.80}"
            )
        if not 0 <= self.items <= MAX_ITEMS:
            raise MalformedMessage(f"offer: expected at most {MAX_ITEMS} items, got {self.items}")
        if len(self.certificate) > MAX_BYTES:
            raise MalformedMessage(f"offer: a certificate has at most {MAX_BYTES:,} bytes")

    @property
    def by_relay(self) -> bool:
        """Whether it is reached by the coordinator's relay."""
        return not self.address

    def read_certificate(self) -> Certificate:
        """Parse the certificate: nothing is verified by it. Raises MalformedMessage."""
        return Certificate.read(self.certificate)

    def to_message(self) -> pb.Offer:
        """Return the message of this offer."""
        return pb.Offer(
            institution=self.institution,
            release_id=self.release_id,
            items=self.items,
            address=self.address,
            certificate=self.certificate,
        )

    @classmethod
    def from_message(cls, message: pb.Offer) -> "Offer":
        """Check a foreign offer. Raises MalformedMessage."""
        return cls(
            message.institution,
            message.release_id,
            message.items,
            message.address,
            message.certificate,
        )


def list_response(offers: list[Offer]) -> pb.ListResponse:
    """Return the message of all offers, in order of name."""
    ordered = sorted(offers, key=lambda one: one.institution)
    return pb.ListResponse(offers=[one.to_message() for one in ordered])


def parse_list_response(message: pb.ListResponse) -> list[Offer]:
    """Check foreign offers: one for each name, in order. Raises MalformedMessage."""
    if len(message.offers) > MAX_MEMBERS:
        raise MalformedMessage(f"expected at most {MAX_MEMBERS} offers, got {len(message.offers)}")
    offers = [Offer.from_message(one) for one in message.offers]
    names = [one.institution for one in offers]
    if names != sorted(set(names)):
        raise MalformedMessage("expected offers in order of name, one for each")
    return offers


def connect_frame(institution: str) -> pb.RelayFrame:
    """The first frame of a searcher's end."""
    return pb.RelayFrame(institution=institution)


def accept_frame(call: bytes) -> pb.RelayFrame:
    """The first frame of an institution's end."""
    return pb.RelayFrame(call=call)


def parse_connect(frame: pb.RelayFrame) -> str:
    """The institution that a first frame names. Raises MalformedMessage."""
    if frame.call or frame.payload:
        raise MalformedMessage("relay: expected a first frame that names an institution alone")
    try:
        return check_name(frame.institution)
    except UsageError as error:
        raise MalformedMessage(f"relay: {error.message}") from error


def parse_call(call: bytes) -> bytes:
    """The name of a call, as IncomingCall and a first frame have it. Raises MalformedMessage."""
    if len(call) != CALL_BYTES:
        raise MalformedMessage(f"relay: a call's name has {CALL_BYTES} bytes, got {len(call)}")
    return call


def parse_accept(frame: pb.RelayFrame) -> bytes:
    """The call that a first frame names. Raises MalformedMessage."""
    if frame.institution or frame.payload:
        raise MalformedMessage("relay: expected a first frame that names a call alone")
    return parse_call(frame.call)


def parse_payload(frame: pb.RelayFrame) -> bytes:
    """The bytes of a later frame. Raises MalformedMessage."""
    if frame.institution or frame.call:
        raise MalformedMessage("relay: expected a frame with a payload alone")
    if not 0 < len(frame.payload) <= FRAME_BYTES:
        raise MalformedMessage(
            f"relay: a payload has 1 to {FRAME_BYTES} bytes, got {len(frame.payload)}"
        )
    return frame.payload
