"""A real coordinator's process: enrolled parties, its memory, and callers who misbehave."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.institution.deployment.place import Place
from client.institution.index_writer import build_index
from client.institution.offer import register
from client.institution.pairs import Pair
from client.institution.provisioning.installation import install
from client.institution.provisioning.settings import InstitutionSettings
from client.institution.reach import program
from client.institution.relay_link import RelayLink
from client.searcher.profile import Profile
from client.searcher.settings import SearcherSettings, keep_settings, settings_path
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.directory_wire import FRAME_BYTES, Offer, connect_frame
from protocol.pipe import coordinator_channel
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.enrolment import install_kit, request_certificate
from protocol.provisioning.home import Home
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.settings import FederationSettings

pytestmark = pytest.mark.e2e


@dataclass
class Coordinator:
    """The process, its address, and the homes of its members."""

    process: subprocess.Popen[str]
    address: str
    clinic: Home
    bob: Profile

    def memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return 1024 * int(fields["RssAnon"].split()[0])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    root = tmp_path_factory.mktemp("federation")
    home = CoordinatorHome(root / "coordinator")
    settings = FederationSettings(
        name="lab", host="127.0.0.1", listen="127.0.0.1", directory_port=free_port()
    )
    federation = Federation.create(home, settings)
    fingerprint = federation.authority.identity.public.fingerprint
    for name, role in (("clinic", "institution"), ("bob", "searcher")):
        party = Home(root / name)
        request_certificate(party, name, [])
        done = federation.approve(CertificateRequest.load(party.request), role)  # type: ignore[arg-type]
        if role == "institution":
            install(party.root, done.kit, fingerprint)
        else:
            kit, _ = install_kit(party, done.kit, "searcher", fingerprint)
            keep_settings(party, kit.coordinator)
    bob = Profile.open(root / "bob")
    address = f"127.0.0.1:{settings.directory_port}"
    SearcherSettings(directory=address, timeout=20.0).save(settings_path(bob))
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations.cli", "coordinator", "serve", "--home", home.root],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    assert json.loads(process.stdout.readline()) == {"address": address}
    yield Coordinator(process, address, Home(root / "clinic"), bob)
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()


@pytest.fixture
def served(coordinator: Coordinator) -> Iterator[Coordinator]:
    """With the clinic attached: its service swallows and answers with what it is asked for."""

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(int(request)):
            yield bytes(1 << 20)

    method = grpc.unary_stream_rpc_method_handler(stream)
    server = grpc.server(ThreadPoolExecutor(8))
    handlers = grpc.method_handlers_generic_handler("lab", {"Stream": method})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_secure_port("127.0.0.1:0", coordinator.clinic.credentials.for_server())
    server.start()
    link = RelayLink(coordinator.address, coordinator.clinic.credentials, ("127.0.0.1", port))
    thread = threading.Thread(target=link.keep)
    thread.start()
    with coordinator_channel(coordinator.address, coordinator.clinic.credentials) as channel:
        pem = coordinator.clinic.credentials.certificate.read_bytes()
        register(channel, Offer("clinic", "0123456789abcdef", 1200, "", pem))
    until(lambda: link.attached)
    yield coordinator
    link.close()
    thread.join(20)
    server.stop(0).wait()
    assert not thread.is_alive()


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def megabytes(coordinator: Coordinator, count: int) -> int:
    """How many megabytes come of ``count``, through the relay."""
    (remote,), _ = coordinator.bob.connections(["clinic"])
    stream = remote._channel.unary_stream("/lab/Stream")(str(count).encode(), timeout=60)
    came = sum(len(one) for one in stream) >> 20
    remote.close()
    return came


def test_an_institution_registers_and_attaches_by_itself(coordinator: Coordinator) -> None:
    home = coordinator.clinic.root
    rows = np.eye(16, dtype=np.float32).repeat(10, axis=0)
    build_index(
        home / "index",
        "fedcba9876543210",
        rows,
        [Pair(f"{i}.png", ("a",)) for i in range(len(rows))],
    )
    settings = InstitutionSettings.load(home / "institution.toml")
    port = int(coordinator.address.rpartition(":")[2])
    changes = {"reach": "relay", "directory_port": port, "service_port": free_port()}
    settings.model_copy(update=changes).save(home / "institution.toml")
    (found,) = program(Place.open(home))
    said = home / "reach.log"
    with said.open("wb") as talk:
        process = subprocess.Popen(found.command, env=dict(found.environment), stderr=talk)
    try:
        directory = coordinator.bob.directory()

        def listed() -> bool:
            offers = [one for one in directory.listing().offers if one.institution == "clinic"]
            return [(one.release_id, one.items) for one in offers] == [("fedcba9876543210", 100)]

        until(listed)
        until(lambda: f"relay {coordinator.address}: attached" in said.read_text())
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_the_command_lists_who_can_be_asked(served: Coordinator) -> None:
    command = [sys.executable, "-m", "simulations.cli", "searcher", "institutions"]
    done = subprocess.run(
        [*command, "--home", served.bob.root, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["data"] == {
        "institutions": [
            {"institution": "clinic", "release_id": "0123456789abcdef", "items": 1200,
             "reach": "relay"}
        ],
        "refused": {},
    }  # fmt: skip


def test_memory_stays_flat_while_much_passes(served: Coordinator) -> None:
    assert megabytes(served, 5) == 5
    before, most = served.memory(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], served.memory())

    thread = threading.Thread(target=watch)
    thread.start()
    assert megabytes(served, 60) == 60
    done.set()
    thread.join()
    assert most[0] - before < 8 << 20, f"{(most[0] - before) / 1e6:.1f} MB more"


def test_readers_who_do_not_read_cost_no_memory(served: Coordinator) -> None:
    assert megabytes(served, 5) == 5
    before = served.memory()
    written = [0] * 4
    stop = threading.Event()

    def writes(number: int) -> Iterator[pb.RelayFrame]:
        yield connect_frame("clinic")
        # A TLS record that never ends: the service waits for the rest of a ClientHello, then
        # hangs up, so what follows has nobody who reads it.
        while not stop.is_set() and written[number] < 50 << 20:
            written[number] += FRAME_BYTES
            yield pb.RelayFrame(payload=os.urandom(FRAME_BYTES))

    with ExitStack() as stack:
        silent = socket.socket()
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # takes connections, and never reads
        stack.callback(silent.close)
        deaf = RelayLink(served.address, served.clinic.credentials, silent.getsockname())
        thread = threading.Thread(target=deaf.keep)
        thread.start()
        until(lambda: deaf.attached)
        channel = stack.enter_context(coordinator_channel(served.address, served.bob.credentials))
        calls = [rpc.RelayStub(channel).Connect(writes(number)) for number in range(4)]
        time.sleep(1.5)
        stalled = list(written)
        time.sleep(0.5)
        assert written == stalled, "writers wait for a reader"
        assert all(0 < one < 16 << 20 for one in written), written
        assert served.memory() - before < 24 << 20
        stop.set()
        for call in calls:
            call.cancel()
        deaf.close()
        thread.join(20)


def test_half_open_connections_keep_nobody_out(served: Coordinator) -> None:
    host, _, port = served.address.rpartition(":")
    with ExitStack() as stack:
        before = served.memory()
        for number in range(200):
            one = stack.enter_context(socket.create_connection((host, int(port))))
            if number % 2:
                one.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(20))
        assert megabytes(served, 2) == 2
        assert served.memory() - before < 64 << 20
