"""A searcher among members who are expired, absent or lied about: clear words, and it goes on."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from PIL import Image

from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.directory import Directory
from client.searcher.remote import RemoteInstitution
from client.searcher.searcher import Searcher
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.directory_wire import Offer
from protocol.errors import BlindsightError, MalformedMessage, ServiceError
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.insecure_twin import InsecureTwin
from protocol.roster import Role
from tests.client.perfect import RELEASE, PerfectEncoder
from tests.protocol.relay_parties import Lab

NAMES = ("clinic", "museum")


@dataclass
class Federation:
    """Two institutions' services, and what a directory may say of them."""

    lab: Lab
    settings: dict[str, ServiceSettings] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def offer(self, name: str, **other: str | bytes) -> Offer:
        pem = self.lab.credentials(name).certificate.read_bytes()
        return replace(Offer(name, RELEASE, 20, self.addresses[name], pem), **other)  # type: ignore[arg-type]

    def expired(self, name: str, role: Role) -> Credentials:
        """What ``name`` had until ten days ago."""
        identity, folder = Identity.ephemeral(), self.lab.root / f"expired-{name}"
        then = datetime.now(UTC) - timedelta(days=40)
        hosts, life = ("localhost", "127.0.0.1"), timedelta(days=30)
        issued = self.lab.authority.issue(identity.public, name, role, hosts, life, then)
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "private-key.pem", identity.private_pem())
        write_atomically(folder / "certificate.pem", issued.pem)
        write_atomically(folder / "authority.pem", self.lab.authority.certificate.pem)
        return Credentials.in_folder(folder)

    def searcher(
        self, remotes: Sequence[RemoteInstitution], notes: dict[str, BlindsightError]
    ) -> Searcher:
        encoder = PerfectEncoder([])
        encoder._rows = self.rows
        return Searcher(encoder, remotes, InsecureTwin(), notes)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("federation")
    found = Federation(Lab(root / "lab"))
    with ExitStack() as stack:
        for number, name in enumerate(NAMES):
            data = root / name
            data.mkdir()
            rows = np.random.default_rng(number).standard_normal((20, 16)).astype(np.float32)
            found.rows[name] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            pairs = [Pair(f"{i}.png", (f"{name} {i}",)) for i in range(20)]
            for pair in pairs:
                Image.new("RGB", (8, 8)).save(data / pair.file_name)
            build_index(root / f"{name}-index", RELEASE, found.rows[name], pairs)
            found.settings[name] = ServiceSettings(
                name=name,
                data=data,
                index=root / f"{name}-index",
                credentials=found.lab.root / name,
                release=frozenset({"thumbnail"}),
            )
            found.addresses[name] = stack.enter_context(Service(found.settings[name])).address
        yield found


@contextmanager
def directory_that_says(lab: Lab, offers: Sequence[Offer]) -> Iterator[Directory]:
    """A coordinator's directory that lists what it is told to, and bob's view of it."""

    class Liar(rpc.DirectoryServicer):
        async def List(self, request, context):  # type: ignore[no-untyped-def]
            return pb.ListResponse(offers=[one.to_message() for one in offers])

    loop, ports = asyncio.new_event_loop(), []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        rpc.add_DirectoryServicer_to_server(Liar(), server)
        own = lab.credentials("coordinator").for_server()
        ports.append(server.add_secure_port("127.0.0.1:0", own))
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield Directory(f"127.0.0.1:{ports[0]}", lab.credentials("bob"), lab.roster)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


def searched(federation: Federation, offers: Sequence[Offer]) -> tuple[object, ...]:
    """Search for a picture of the museum among what the directory says; results."""
    with directory_that_says(federation.lab, offers) as directory:
        listing = directory.listing()
        remotes = [directory.connect(one, 10.0) for one in listing.offers]
        with federation.searcher(remotes, listing.notes) as searcher:
            results = searcher.search("museum 3", 3)
    assert results[0].key == ("museum", 3) and results[0].thumbnail
    assert {one.institution for one in results} == {"museum"}
    return tuple(results.notes.items())


def test_an_honest_directory_leads_to_all(federation: Federation) -> None:
    offers = [federation.offer(name) for name in NAMES]
    with directory_that_says(federation.lab, offers) as directory:
        listing = directory.listing()
        remotes = [directory.connect(one, 10.0) for one in listing.offers]
        with federation.searcher(remotes, listing.notes) as searcher:
            found = searcher.search("clinic 7", 20)
    assert found[0].key == ("clinic", 7) and not found.notes
    assert {one.institution for one in found} == set(NAMES)


@pytest.mark.parametrize("where", ["another institution", "nobody"])
def test_a_directory_that_lies_of_an_address_costs_a_note(
    federation: Federation, where: str
) -> None:
    address = federation.addresses["museum"] if where == "another institution" else "127.0.0.1:1"
    offers = [federation.offer("clinic", address=address), federation.offer("museum")]
    ((name, note),) = searched(federation, offers)  # type: ignore[misc]
    assert name == "clinic" and isinstance(note, ServiceError)
    assert note.message.startswith("clinic cannot be reached") and note.hint


def test_a_directory_that_lies_of_a_key_costs_a_note(federation: Federation) -> None:
    impostor = federation.lab.certify("clinic", "institution", Identity.ephemeral(), "impostor")
    wrong = impostor.certificate.read_bytes()
    offers = [federation.offer("clinic", certificate=wrong), federation.offer("museum")]
    ((name, note),) = searched(federation, offers)  # type: ignore[misc]
    assert name == "clinic" and isinstance(note, MalformedMessage)
    assert "in the roster, the directory says" in note.message and "lies" in note.hint


def test_one_who_is_no_institution_costs_a_note(federation: Federation) -> None:
    pem = federation.lab.credentials("eve").certificate.read_bytes()
    eve = replace(federation.offer("museum"), institution="eve", certificate=pem)
    ((name, note),) = searched(federation, [eve, federation.offer("museum")])  # type: ignore[misc]
    assert name == "eve" and "is no institution of the roster" in note.message


def test_an_institution_whose_certificate_expired_costs_a_note(federation: Federation) -> None:
    lapsed = federation.expired("clinic", "institution")
    settings = federation.settings["clinic"].model_copy(
        update={"credentials": lapsed.certificate.parent}
    )
    bob = federation.lab.credentials("bob")
    with Service(settings) as service:
        addresses = {"clinic": service.address, "museum": federation.addresses["museum"]}
        remotes = [RemoteInstitution(name, at, bob, 10.0) for name, at in addresses.items()]
        with federation.searcher(remotes, {}) as searcher:
            results = searcher.search("museum 3", 3)
    assert results[0].key == ("museum", 3)
    note = results.notes["clinic"]
    assert note.message == "clinic cannot be reached: its certificate has expired"
    assert "new one" in note.hint


def test_a_searcher_whose_certificate_expired_is_told_so(federation: Federation) -> None:
    lapsed = federation.expired("bob", "searcher")
    remotes = [
        RemoteInstitution(name, at, lapsed, 10.0) for name, at in federation.addresses.items()
    ]
    with (
        federation.searcher(remotes, {}) as searcher,
        pytest.raises(ServiceError, match="the certificate of bob expired on") as caught,
    ):
        searcher.search("museum 3", 3)
    assert "Ask the coordinator for a new one" in caught.value.hint
