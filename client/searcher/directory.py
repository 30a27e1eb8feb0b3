"""Which institutions can be asked, and connections to them that only they can answer.

The directory is asked and not believed. What it says of an institution counts only with a
certificate of the federation's authority for that name and for the very key that the searcher's own
roster has. That one certificate is then all that TLS accepts at the other end: at an address or at
the end of the relay there is the roster's institution, or no connection. gRPC in Python does not
show a client its peer's certificate, and asking for it beforehand would be another connection; so
TLS itself is given the one certificate that may answer. A key that was revoked or replaced is in no
roster, however long its certificate is valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from client.searcher.remote import RemoteInstitution
from client.searcher.tunnel import Tunnel
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.directory_wire import MAX_LIST_BYTES, Offer, parse_list_response
from protocol.errors import BlindsightError, MalformedMessage, UsageError
from protocol.grpc_errors import error_from_rpc
from protocol.pipe import coordinator_channel
from protocol.roster import Roster

_CALL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Listing:
    """What the directory said: the offers that hold, and why the others do not, by name."""

    offers: tuple[Offer, ...]
    notes: dict[str, BlindsightError]


class Directory:
    """The directory and the relay of one coordinator, as one searcher uses them."""

    def __init__(self, address: str, credentials: Credentials, roster: Roster) -> None:
        """``address`` is host:port; ``roster`` is the one that this searcher believes."""
        self._address, self._credentials, self._roster = address, credentials, roster
        self._authority = Certificate.load(credentials.authority)

    def listing(self) -> Listing:
        """Ask for the offers, and check each against the roster. Raises BlindsightError."""
        with coordinator_channel(self._address, self._credentials, MAX_LIST_BYTES) as channel:
            try:
                message = rpc.DirectoryStub(channel).List(pb.ListRequest(), timeout=_CALL_SECONDS)
            except grpc.RpcError as error:
                raise error_from_rpc(error, f"the directory {self._address}") from error
        offers: list[Offer] = []
        notes: dict[str, BlindsightError] = {}
        for offer in parse_list_response(message):
            try:
                self.check(offer)
                offers.append(offer)
            except MalformedMessage as error:
                notes[offer.institution] = error
        return Listing(tuple(offers), notes)

    def check(self, offer: Offer) -> None:
        """Raise MalformedMessage unless the roster knows the institution by this very key."""
        certificate, member = offer.read_certificate(), self._roster.named(offer.institution)
        hint = "Install the federation's current roster; if it is, the directory lies."
        if member is None or member.role != "institution":
            raise MalformedMessage(f"{offer.institution} is no institution of the roster", hint)
        if certificate.name != member.name or certificate.identity != member.identity:
            raise MalformedMessage(
                f"{member.name} has key {member.identity.fingerprint[:9]}… in the roster, the "
                f"directory says {certificate.identity.fingerprint[:9]}…",
                hint,
            )
        certificate.check_issued_by(self._authority)

    def connect(self, offer: Offer, timeout: float) -> RemoteInstitution:
        """A connection that the institution itself answers, directly or through the relay.

        Calls take at most ``timeout`` seconds. Raises MalformedMessage as ``check`` does.
        """
        self.check(offer)
        tunnel = None
        if offer.by_relay:
            tunnel = Tunnel(self._address, offer.institution, self._credentials)
        return RemoteInstitution(
            offer.institution,
            offer.address,
            self._credentials,
            timeout,
            certificate=offer.certificate,
            tunnel=tunnel,
        )


def chosen(offers: Sequence[Offer], names: Sequence[str]) -> list[Offer]:
    """The offers of these institutions; all, if none is named. Raises UsageError."""
    known = {one.institution: one for one in offers}
    missing = [name for name in names if name not in known]
    if missing:
        raise UsageError(
            f"the directory does not list {', '.join(missing)}",
            f"It lists: {', '.join(known) or 'nobody'}.",
        )
    return [known[name] for name in names] if names else list(offers)
