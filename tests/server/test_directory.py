"""The directory over real mutual TLS: who may say and ask what, and what a restart keeps."""

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from client.institution.offer import register
from client.searcher.directory import Directory, chosen
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.directory_wire import Offer
from protocol.errors import (
    BlindsightError,
    MalformedMessage,
    NotAdmitted,
    ServiceError,
    StorageError,
    UsageError,
)
from protocol.identity import Identity
from protocol.pipe import coordinator_channel
from server.directory.directory import DirectoryServicer
from server.directory.offers import OfferBook
from tests.protocol.relay_parties import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def offer_of(lab: Lab, name: str, address: str = "") -> Offer:
    pem = lab.credentials(name).certificate.read_bytes()
    return Offer(name, "0123456789abcdef", 1200, address, pem)


def offered(at: str, credentials: Credentials, offer: Offer) -> None:
    with coordinator_channel(at, credentials) as channel:
        register(channel, offer)


def test_what_is_registered_is_listed_also_after_a_restart(lab: Lab) -> None:
    clinic, museum = offer_of(lab, "clinic"), offer_of(lab, "museum", "museum.example.org:9443")
    with lab.coordinator() as at:
        offered(at, lab.credentials("museum"), museum)
        offered(at, lab.credentials("clinic"), replace(clinic, items=100))
        offered(at, lab.credentials("clinic"), clinic)
        listing = Directory(at, lab.credentials("bob"), lab.roster).listing()
        assert listing.offers == (clinic, museum)
    with lab.coordinator() as at:
        listing = Directory(at, lab.credentials("bob"), lab.roster).listing()
    assert listing.offers == (clinic, museum)
    assert chosen(listing.offers, []) == [clinic, museum]
    assert chosen(listing.offers, ["museum"]) == [museum]
    with pytest.raises(UsageError, match="does not list harbour"):
        chosen(listing.offers, ["museum", "harbour"])


def test_strangers_revoked_members_and_other_roles_are_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    with lab.coordinator() as at:
        clinic = offer_of(lab, "clinic")
        offered(at, lab.credentials("clinic"), clinic)
        with pytest.raises(NotAdmitted, match="bob is a searcher"):
            offered(at, lab.credentials("bob"), clinic)
        with pytest.raises(NotAdmitted, match="museum cannot offer for clinic"):
            offered(at, lab.credentials("museum"), clinic)
        with pytest.raises(NotAdmitted, match="not museum's"):
            offered(at, lab.credentials("museum"), replace(clinic, institution="museum"))
        with pytest.raises(NotAdmitted, match="clinic is an institution"):
            Directory(at, lab.credentials("clinic"), lab.roster).listing()
        stranger = Lab(tmp_path / "other").credentials("bob")
        mixed = Credentials(
            stranger.certificate, stranger.private_key, lab.credentials("bob").authority
        )
        for one in (stranger, mixed):
            with pytest.raises(ServiceError, match="cannot be reached"):
                Directory(at, one, lab.roster).listing()
        before = lab.roster
        lab.revoke("clinic")
        with pytest.raises(NotAdmitted, match="no member"):
            offered(at, lab.credentials("clinic"), clinic)
        assert Directory(at, lab.credentials("bob"), before).listing().offers == ()
        lab.revoke("bob")
        with pytest.raises(NotAdmitted, match="no member"):
            Directory(at, lab.credentials("bob"), before).listing()


def test_the_coordinator_is_held_to_its_own_certificate(lab: Lab) -> None:
    from client.searcher.remote import RemoteInstitution

    with lab.coordinator() as at:
        impostor = RemoteInstitution("clinic", at, lab.credentials("bob"), 5)
        with pytest.raises(ServiceError, match="clinic cannot be reached"):
            impostor.describe("0123456789abcdef")
        impostor.close()


class Liar(DirectoryServicer):
    """A directory that says what a test wants."""

    said: list[Offer]

    def __init__(self, *_: object) -> None:
        pass

    async def List(self, request: object, context: object) -> pb.ListResponse:
        return pb.ListResponse(offers=[one.to_message() for one in self.said])


def listed_by_a_liar(lab: Lab, offers: list[Offer]) -> tuple[list[Offer], dict[str, object]]:
    async def run() -> tuple[list[Offer], dict[str, object]]:
        server = grpc.aio.server()
        liar = Liar()
        liar.said = offers
        rpc.add_DirectoryServicer_to_server(liar, server)
        port = server.add_secure_port("127.0.0.1:0", lab.credentials("coordinator").for_server())
        await server.start()
        try:
            directory = Directory(f"127.0.0.1:{port}", lab.credentials("bob"), lab.roster)
            found = await asyncio.to_thread(directory.listing)
            return list(found.offers), dict(found.notes)
        finally:
            await server.stop(0)

    return asyncio.run(run())


def test_a_directory_that_lies_of_keys_is_noticed(lab: Lab, tmp_path: Path) -> None:
    good = offer_of(lab, "museum")
    own = lab.certify("clinic", "institution", Identity.ephemeral(), "impostor")
    elsewhere = Lab(tmp_path / "other").credentials("clinic")
    for wrong in (
        own.certificate.read_bytes(),  # the authority's, for a key that was replaced since
        elsewhere.certificate.read_bytes(),
        lab.credentials("museum").certificate.read_bytes(),
        b"",
        b"no certificate",
    ):
        bad = replace(offer_of(lab, "clinic"), certificate=wrong)
        offers, notes = listed_by_a_liar(lab, [bad, good])
        assert offers == [good]
        assert isinstance(notes.pop("clinic"), MalformedMessage) and not notes
    bob = replace(offer_of(lab, "bob"), institution="bob")
    assert "bob" in listed_by_a_liar(lab, [bob])[1]
    with pytest.raises(MalformedMessage, match="one for each"):
        listed_by_a_liar(lab, [good, good])


def test_offers_expire_and_are_kept_whole(tmp_path: Path, lab: Lab) -> None:
    now = [1000.0]
    path = tmp_path / "offers.json"
    book = OfferBook(path, 900, lambda: now[0])
    clinic, museum = offer_of(lab, "clinic"), offer_of(lab, "museum")
    book.register(clinic)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    now[0] += 600
    book.register(museum)
    written = path.read_bytes()
    book.register(museum)
    assert path.read_bytes() == written, "renewed a moment ago"
    assert book.current() == [clinic, museum]
    now[0] += 301
    assert book.current() == [museum]
    assert OfferBook(path, 900, lambda: now[0]).current() == [museum]
    assert OfferBook(path, 900, lambda: now[0] + 900).current() == []
    # A clock that was an age ahead when they were written, and is right again.
    now[0] -= 10**6
    again = OfferBook(path, 900, lambda: now[0])
    assert again.current() == [clinic, museum]
    again.register(clinic)
    now[0] += 901
    again.register(museum)
    assert again.current() == [museum]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 2, "offers": []}', b'{"format": 1, "offers": [{}]}']
)
def test_a_damaged_book_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "offers.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"offers\.json is damaged"):
        OfferBook(path, 900)


def test_a_port_in_use_is_named(lab: Lab) -> None:
    from server.directory.service import CoordinatorService

    async def again(at: str) -> BlindsightError:
        with pytest.raises(ServiceError, match=f"{at}.*in use") as caught:
            CoordinatorService(
                lab.credentials("coordinator"),
                lab.root / "roster.json",
                lab.root / "offers.json",
                at,
            )
        return caught.value

    with lab.coordinator() as at:
        import threading

        said: list[BlindsightError] = []
        thread = threading.Thread(target=lambda: said.append(asyncio.run(again(at))))
        thread.start()
        thread.join()
        assert said
