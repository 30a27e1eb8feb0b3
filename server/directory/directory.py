"""The directory: institutions say what they offer, searchers ask who is there.

Nothing that it says has to be believed. A searcher takes an institution's certificate from here,
and holds it against its own roster before it speaks to an address (client.searcher.directory): a
directory that lies can hide an institution, or send a searcher to an address where nobody has that
institution's key.
"""

from typing import Any

from protocol.admission import Admission
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.directory_wire import Offer, list_response
from protocol.errors import NotAdmitted
from server.directory.answering import Context, abort
from server.directory.offers import OfferBook


class DirectoryServicer(rpc.DirectoryServicer):
    """Serves one book of offers to the members of one roster."""

    def __init__(self, book: OfferBook, admission: Admission, seconds: float) -> None:
        self._book, self._admission, self._seconds = book, admission, seconds

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        """Take an institution's offer, under its own name and with its own certificate alone."""
        try:
            peer: Any = context.auth_context()
            member = self._admission.admit(peer, "institution")
            offer = Offer.from_message(request.offer)
            if offer.institution != member.name:
                raise NotAdmitted(f"{member.name} cannot offer for {offer.institution}")
            if offer.read_certificate().identity != member.identity:
                raise NotAdmitted(f"the certificate in the offer is not {member.name}'s")
            self._book.register(offer)
        except Exception as error:
            await abort(error, context)
        return pb.RegisterResponse(seconds=int(self._seconds))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """Tell a searcher of all offers of institutions that are members still."""
        try:
            peer: Any = context.auth_context()
            self._admission.admit(peer, "searcher")
            roster = self._admission.roster()
            return list_response(
                [one for one in self._book.current()
                 if (member := roster.named(one.institution)) is not None
                 and member.identity == Certificate.read(one.certificate).identity]
            )  # fmt: skip
        except Exception as error:
            await abort(error, context)
