"""A service behind a roster and a policy, over real TLS: who gets in, and who is held up."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from client.institution.provisioning.settings import InstitutionSettings
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.audit import AuditLog
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.errors import (
    BlindsightError,
    EpochMismatch,
    LimitReached,
    MalformedMessage,
    NotAdmitted,
    PolicyError,
    ServiceError,
    UsageError,
)
from protocol.identity import Identity
from protocol.insecure_twin import InsecureTwin
from protocol.roster import Member, Role, Roster
from protocol.wire import MAX_PROBES, IndexDescription, score_request
from server.provisioning.authority import Authority
from tests.client.unit_items import unit_vectors

RELEASE = "0123456789abcdef"
HOSTS = ("localhost", "127.0.0.1")
TWIN = InsecureTwin()
POLICY = """
[search]
searchers = ["@lab"]
groups = { lab = ["anna", "ben"] }
queries-a-day = 1000
release = ["thumbnail", "id"]
min-items = 10
"""


@dataclass
class Clinic:
    """An institution's folder and the federation around it."""

    home: Path
    authority: Authority = field(
        default_factory=lambda: Authority.create(Identity.ephemeral(), "lab")
    )
    members: dict[str, tuple[Identity, Role]] = field(default_factory=dict)
    serial: int = 0
    address: str = ""

    def enrol(self, name: str, role: Role, authority: Authority | None = None) -> Path:
        identity, _ = self.members.setdefault(name, (Identity.ephemeral(), role))
        issuer = authority or self.authority
        folder = self.home.parent / f"{name}-{id(issuer)}"
        folder.mkdir()
        certificate = issuer.issue(identity.public, name, role, HOSTS)
        (folder / "private-key.pem").write_bytes(identity.private_pem())
        (folder / "certificate.pem").write_bytes(certificate.pem)
        (folder / "authority.pem").write_bytes(self.authority.certificate.pem)
        return folder

    def write_roster(self, *without: str) -> None:
        self.serial += 1
        known = [
            Member(name, role, identity.public)
            for name, (identity, role) in self.members.items()
            if name not in without
        ]
        roster = Roster("lab", self.serial, tuple(known))
        roster.write(self.home / "roster.json", self.authority.identity)

    def policy(self, text: str) -> None:
        (self.home / "policy.toml.new").write_text(text)
        (self.home / "policy.toml.new").replace(self.home / "policy.toml")

    def settings(self, **changes: object) -> ServiceSettings:
        given = {
            "home": self.home,
            "name": "clinic",
            "data": self.home / "data",
            "index": self.home / "index",
            "credentials": self.home / "identity",
            "threads": 1,
            "metrics_port": 0,
        }
        return ServiceSettings(**(given | changes))  # type: ignore[arg-type]

    def connect(self, name: str = "anna", timeout: float = 30.0) -> RemoteInstitution:
        return RemoteInstitution("clinic", self.address, self.credentials(name), timeout)

    def credentials(self, name: str) -> Credentials:
        return Credentials.in_folder(self.home.parent / f"{name}-{id(self.authority)}")

    def audit(self) -> list[dict[str, object]]:
        return [{"event": one.event, **one.facts} for one in AuditLog(self.log).read()]

    @property
    def log(self) -> Path:
        return self.home / "audit.log"


ITEMS = unit_vectors(300, 16)
MANY = np.tile(ITEMS, (60, 1))


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    made = Clinic(tmp_path / "clinic")
    (made.home / "data").mkdir(parents=True)
    for name, role in (("anna", "searcher"), ("ben", "searcher"), ("museum", "institution")):
        made.enrol(name, role)  # type: ignore[arg-type]
    made.enrol("clinic", "institution").rename(made.home / "identity")
    made.write_roster()
    made.policy(POLICY)
    for i in range(len(ITEMS)):
        colour = (80 * (i % 3), 0, 0)
        Image.new("RGB", (32, 24), colour).save(made.home / "data" / f"{i}.png")
    pairs = [Pair(f"{i}.png", (f"caption {i}",)) for i in range(len(ITEMS))]
    build_index(made.home / "index", RELEASE, ITEMS, pairs)
    return made


@pytest.fixture
def served(clinic: Clinic) -> Iterator[tuple[Clinic, Service]]:
    with Service(clinic.settings()) as service:
        clinic.address = service.address
        yield clinic, service


def ask(remote: RemoteInstitution, item: int = 5) -> np.ndarray:
    return remote.score(remote.describe(RELEASE), ITEMS[item], TWIN, Traffic())


def question(described: IndexDescription) -> pb.ScoreRequest:
    key = TWIN.keygen(described.layout.preset)
    chunks = key.encrypt_query(described.layout.question_polynomials(ITEMS[0]))
    return score_request(described, key.public_keys(described.layout.public_keys), chunks)


def test_a_member_asks_and_fetches_what_the_policy_says(served: tuple) -> None:
    clinic, service = served
    remote = clinic.connect()
    scores = ask(remote)
    assert int(scores.argmax()) == 5
    error = scores - ITEMS @ ITEMS[5]
    assert error.std() == pytest.approx(2.0**-12 / np.sqrt(3), rel=0.2), "twelve bits by default"
    found = remote.fetch(remote.describe(RELEASE), [5], 10, Traffic())[5]
    assert (found.id, found.caption, found.original) == ("5.png", "", b"")
    assert found.thumbnail
    remote.close()
    url = f"http://127.0.0.1:{service.metrics.port}/metrics"
    with urllib.request.urlopen(url) as answer:
        metrics = answer.read().decode()
    assert 'blindsight_calls_total{code="ok",verb="score"} 1.0' in metrics
    assert "blindsight_questions_total 1.0" in metrics
    assert "blindsight_items_total 10.0" in metrics
    assert "blindsight_index_items 300.0" in metrics
    assert "anna" not in metrics
    service._exits.close()
    score, _, fetch, _ = [one for one in clinic.audit() if one["searcher"] == "anna"]
    assert (score["event"], score["allowed"], score["count"]) == ("score", True, 1)
    assert (fetch["event"], fetch["count"]) == ("fetch", 10)


def test_nobody_else_is_let_in(served: tuple, tmp_path: Path) -> None:
    clinic, _ = served
    with pytest.raises(NotAdmitted, match="museum is an institution"):
        clinic.connect("museum").describe(RELEASE)
    clinic.enrol("eve", "searcher")
    with pytest.raises(NotAdmitted, match="no member"):
        clinic.connect("eve").describe(RELEASE)
    clinic.write_roster()
    with pytest.raises(PolicyError, match="does not let eve search"):
        clinic.connect("eve").describe(RELEASE)
    stranger = Authority.create(Identity.ephemeral(), "lab")
    folder = Credentials.in_folder(clinic.enrol("anna", "searcher", stranger))
    with pytest.raises(ServiceError, match="cannot be reached"):
        RemoteInstitution("clinic", clinic.address, folder, 5).describe(RELEASE)


def test_the_revoked_and_the_policy_count_without_a_restart(served: tuple) -> None:
    clinic, service = served
    anna, ben = clinic.connect(), clinic.connect("ben")
    ask(anna), ask(ben)
    clinic.write_roster("anna")
    with pytest.raises(NotAdmitted, match="no member"):
        ask(anna)
    ask(ben)
    clinic.policy(POLICY.replace('"@lab"', '"anna"'))
    with pytest.raises(PolicyError):
        ask(ben)
    clinic.policy(POLICY.replace("searchers", "serchers"))
    with pytest.raises(PolicyError):
        ask(ben)
    assert service.metrics.registry.get_sample_value("blindsight_policy_ok") == 0
    clinic.policy(POLICY)
    ask(ben)
    assert service.metrics.registry.get_sample_value("blindsight_policy_ok") == 1
    service._exits.close()
    changes = [one for one in clinic.audit() if one["event"] == "policy"]
    assert [one["accepted"] for one in changes] == [True, False, True]
    assert "did you mean searchers" in str(changes[1]["problem"])
    assert [one["code"] for one in clinic.audit() if one["event"] == "refused"] == [
        "not_admitted",
        "policy",
    ]
    [again] = [one for one in clinic.audit() if one["event"] == "refused-again"]
    assert (again["searcher"], again["code"], again["count"]) == ("ben", "policy", 1)


def test_what_is_no_message_costs_a_refusal_and_not_the_connection(served: tuple) -> None:
    clinic, _ = served
    with grpc.secure_channel(clinic.address, clinic.credentials("anna").for_client()) as channel:
        for verb in ("Describe", "Score", "Screen", "Fetch"):
            call = channel.unary_unary(f"/blindsight.v1.Retrieval/{verb}")
            for _ in range(60):
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"\xff\xff", timeout=10)
                assert caught.value.code().name == "INVALID_ARGUMENT"
        assert rpc.RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=10).items == 300


def test_who_is_refused_on_and_on_does_not_fill_the_log(served: tuple) -> None:
    clinic, service = served
    clinic.write_roster("anna")
    anna = clinic.connect()
    for _ in range(300):
        with pytest.raises(NotAdmitted):
            anna.describe(RELEASE)
    service._exits.close()
    first, again = clinic.audit()
    assert (first["event"], again["event"], again["count"]) == ("refused", "refused-again", 299)
    known = clinic.credentials("anna").certificate
    digest = Certificate.load(known).parsed.fingerprint(hashes.SHA256()).hex()
    assert first["certificate"] == again["certificate"] == digest[:16]


def test_a_service_does_not_start_with_a_policy_that_it_cannot_read(clinic: Clinic) -> None:
    clinic.policy(POLICY.replace("searchers", "serchers"))
    with pytest.raises(UsageError, match=r"policy\.toml, line 3"):
        Service(clinic.settings())


def test_a_searcher_is_told_what_remains_of_its_own_day(served: tuple) -> None:
    clinic, _ = served
    clinic.policy(POLICY.replace("1000", "5\nitems-a-day = 25"))
    remote, traffic = clinic.connect(), Traffic()
    described = remote.describe(RELEASE)
    ask(clinic.connect("ben"))
    remote.score(described, ITEMS[0], TWIN, traffic)
    assert (traffic.questions_left, traffic.items_left) == (4, None)
    remote.screen(described, list(ITEMS[:4]), TWIN, traffic)
    remote.fetch(described, [5], 10, traffic)
    assert (traffic.questions_left, traffic.items_left) == (0, 15)
    with pytest.raises(LimitReached):
        remote.score(described, ITEMS[0], TWIN, traffic)


def test_handles_are_of_one_searcher(served: tuple) -> None:
    clinic, _ = served
    anna, ben = clinic.connect(), clinic.connect("ben")
    ask(anna), ask(ben)
    ben._grant = anna._grant
    with pytest.raises(MalformedMessage, match="not one of this searcher's"):
        ben.fetch(ben.describe(RELEASE), [5], 5, Traffic())
    with pytest.raises(MalformedMessage, match="1 to 200 different items"):
        new = clinic.connect()
        new.fetch(new.describe(RELEASE), [5], 5, Traffic())


def test_exactly_the_budget_is_answered_across_a_restart(clinic: Clinic) -> None:
    """200 questions at once to each of two runs of the service, with room for 30."""
    clinic.policy(POLICY.replace("1000", "30"))
    answered = refused = 0
    for _ in range(2):
        with Service(clinic.settings(each=64, most=64)) as service:
            clinic.address = service.address
            remote = clinic.connect()
            described = remote.describe(RELEASE)

            def once(_: int, remote: RemoteInstitution = remote, at: object = described) -> int:
                while True:
                    try:
                        remote.score(at, ITEMS[1], TWIN, Traffic())  # type: ignore[arg-type]
                        return 1
                    except LimitReached as error:
                        assert error.retry_after_ms is not None
                        if "today's 30 questions" in error.message:
                            assert "Ask again in" in error.hint
                            return 0
                        time.sleep(0.02)

            with ThreadPoolExecutor(16) as pool:
                outcomes = list(pool.map(once, range(200)))
            answered, refused = answered + sum(outcomes), refused + outcomes.count(0)
            remote.close()
    assert (answered, refused) == (30, 370)
    decisions = [one["allowed"] for one in clinic.audit() if one["event"] == "score"]
    assert decisions.count(True) == 30


def test_probes_are_screened_together_and_each_is_charged(served: tuple) -> None:
    clinic, service = served
    remote, traffic = clinic.connect(), Traffic()
    described = remote.describe(RELEASE)
    scores = remote.screen(described, list(ITEMS[:MAX_PROBES]), TWIN, traffic)
    assert scores.shape == (MAX_PROBES, 300)
    assert [int(one.argmax()) for one in scores] == list(range(MAX_PROBES))
    assert np.abs(scores - ITEMS[:MAX_PROBES] @ ITEMS.T).max() < 2.0**-11
    assert service.metrics.registry.get_sample_value("blindsight_questions_total") == MAX_PROBES
    assert remote.fetch(described, [1], 3, Traffic())[1].thumbnail
    with pytest.raises(UsageError, match="1 to 8 questions"):
        remote.screen(described, list(ITEMS[:9]), TWIN, traffic)
    channel = grpc.secure_channel(clinic.address, clinic.credentials("anna").for_client())
    for requests in ([], [question(described)] * (MAX_PROBES + 1)):
        with pytest.raises(grpc.RpcError) as caught:
            list(rpc.RetrievalStub(channel).Screen(iter(requests), timeout=20))
        assert caught.value.code().name == "INVALID_ARGUMENT"
    clinic.policy(POLICY.replace("1000", "10"))
    with pytest.raises(LimitReached, match="3 more would pass"):
        remote.screen(described, list(ITEMS[:3]), TWIN, traffic)
    channel.close()


def test_another_epoch_is_served_without_a_restart(served: tuple) -> None:
    clinic, _ = served
    remote = clinic.connect()
    before = remote.describe(RELEASE)
    ask(remote)
    rows = ITEMS[::-1].copy()
    build_index(
        clinic.home / "index", RELEASE, rows, [Pair(f"{i}.png", ("c",)) for i in range(len(rows))]
    )
    with pytest.raises(EpochMismatch):
        remote.score(before, ITEMS[0], TWIN, Traffic())
    with pytest.raises(EpochMismatch):
        remote.fetch(remote.describe(RELEASE), [1], 2, Traffic())
    assert remote.describe(RELEASE).epoch == 2
    assert int(ask(remote, 0).argmax()) == 299


def test_health_is_told_and_reflection_is_off(served: tuple) -> None:
    clinic, _ = served
    with grpc.secure_channel(clinic.address, clinic.credentials("anna").for_client()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "blindsight.v1.Retrieval"):
            found = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([b""]), timeout=10))
        assert caught.value.code().name == "UNIMPLEMENTED"


# --- attacks


def raw(clinic: Clinic, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
    """A connection of a member that speaks HTTP/2 itself."""
    known = clinic.credentials("anna")
    context = ssl.create_default_context(cafile=str(known.authority))
    context.load_cert_chain(known.certificate, known.private_key)
    context.maximum_version = most
    context.set_alpn_protocols(["h2"])
    host, port = clinic.address.split(":")
    plain = socket.create_connection((host, int(port)), 10)
    return context.wrap_socket(plain, server_hostname=host)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def describe_frames() -> bytes:
    """The preface and a call of Describe, its header fields as literals (RFC 9113, RFC 7541)."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/blindsight.v1.Retrieval/Describe",
        ":authority": "clinic",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"")
        + frame(1, 4, 1, block)
        + frame(0, 1, 1, bytes(5))
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_is_answered_below_tls_1_3(served: tuple, version: ssl.TLSVersion) -> None:
    clinic, _ = served
    with raw(clinic, version) as connection:
        connection.sendall(describe_frames())
        connection.settimeout(10)
        found = b""
        while b"grpc-status" not in found and (more := connection.recv(65536)):
            found += more
    assert (RELEASE.encode() in found) == (version == ssl.TLSVersion.TLSv1_3)
    assert (b"expected a connection over TLS 1.3" in found) == (version == ssl.TLSVersion.TLSv1_2)


def closed(one: socket.socket, seconds: float) -> bool:
    """Whether the other side closes it within ``seconds``."""
    one.settimeout(seconds)
    try:
        while one.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_half_open_connections_are_limited_and_end(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.institution.service._HANDSHAKE_MS", 3000)
    with Service(clinic.settings(connections=20)) as service, ExitStack() as stack:
        clinic.address = service.address
        remote = clinic.connect()
        ask(remote)
        host, port = clinic.address.split(":")
        since = time.monotonic()
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(60)
        ]
        with ThreadPoolExecutor(60) as pool:
            at_once = list(pool.map(closed, idle, [1.5] * 60))
        assert 38 <= at_once.count(True) <= 45, "what is beyond the limit is closed as it comes"
        ask(remote)
        with ThreadPoolExecutor(60) as pool:
            assert all(pool.map(closed, idle, [10.0] * 60)), "and the others without a handshake"
        assert 2 < time.monotonic() - since < 9
        ask(clinic.connect("ben"))


def anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@pytest.fixture
def process(clinic: Clinic) -> Iterator[tuple[Clinic, subprocess.Popen[bytes]]]:
    """The real process, with answers that are longer than what gRPC holds for a reader."""
    pairs = [Pair(f"{i}.png", ("c",)) for i in range(len(MANY))]
    build_index(clinic.home / "index", RELEASE, MANY, pairs)
    settings = InstitutionSettings(name="clinic", coordinator="fleet.example.org:8443")
    settings.save(clinic.home / "institution.toml")
    command = [sys.executable, "-m", "simulations.cli", "institution", "serve"]
    flags = ["--home", str(clinic.home), "--port", "0", "--threads", "1", "--seconds", "5"]
    with (
        (clinic.home / "stderr").open("wb") as talk,
        subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=talk) as started,
    ):
        try:
            assert started.stdout is not None
            clinic.address = json.loads(started.stdout.readline())["address"]
            yield clinic, started
        finally:
            started.kill()


def test_fuzz_half_open_connections_and_slow_readers_hold_nobody_up(process: tuple) -> None:
    clinic, service = process
    draw, ben = np.random.default_rng(7), clinic.connect("ben")
    ask(ben)
    described = ben.describe(RELEASE)
    before = anonymous_bytes(service.pid)
    host, port = clinic.address.split(":")
    # Half-open: plain TCP, TLS without HTTP/2, and a call that never ends.
    idle = [socket.create_connection((host, int(port)), 10) for _ in range(50)]
    idle += [raw(clinic) for _ in range(20)]
    for one in idle[50:60]:
        one.sendall(describe_frames()[:-9])
    # Slow readers: answers that nobody reads, within what one searcher may have under way.
    channel = grpc.secure_channel(clinic.address, clinic.credentials("anna").for_client())
    stub = rpc.RetrievalStub(channel)
    slow = [stub.Score(question(described), timeout=60) for _ in range(6)]
    never = threading.Event()
    nothing = (question(described) for _ in iter(never.wait, True))
    stuck = stub.Screen(nothing, timeout=60)
    ask(ben)
    # Random and mutated bytes: on plain TCP, inside TLS, and as messages of every verb.
    good = question(described).SerializeToString()
    verbs = [channel.unary_unary(f"/blindsight.v1.Retrieval/{verb}")
             for verb in ("Describe", "Score", "Fetch", "Screen", "Nothing")]  # fmt: skip
    for number in range(120):
        noise = bytearray(good if number % 2 else draw.bytes(int(draw.integers(2000))))
        for _ in range(int(draw.integers(1, 20))):
            if noise:
                noise[int(draw.integers(len(noise)))] = int(draw.integers(256))
        with pytest.raises(grpc.RpcError) as caught:
            verbs[number % 5](bytes(noise[: int(draw.integers(1, len(noise) + 2))]), timeout=10)
        assert caught.value.code().name != "DEADLINE_EXCEEDED"
    for _ in range(30):
        with socket.create_connection((host, int(port)), 10) as plain:
            plain.sendall(draw.bytes(500))
        with raw(clinic) as inside:
            whole = bytearray(describe_frames())
            for _ in range(3):
                whole[int(draw.integers(24, len(whole)))] = int(draw.integers(256))
            inside.sendall(whole)
    since = time.perf_counter()
    for _ in range(5):
        ask(ben)
    assert time.perf_counter() - since < 5
    assert service.poll() is None
    assert anonymous_bytes(service.pid) < before + (100 << 20)
    with pytest.raises(grpc.RpcError) as caught:
        list(stuck)
    assert caught.value.code().name == "CANCELLED", "the service takes its thread back"
    never.set()
    ask(clinic.connect())  # and those of the readers that do not read
    assert anonymous_bytes(service.pid) < before + (100 << 20)
    for call in slow:
        call.cancel()
    for one in idle:
        one.close()
    channel.close()


def test_a_stopped_service_ends_what_is_under_way_and_leaves_whole_books(process: tuple) -> None:
    clinic, service = process
    remote = clinic.connect()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, remote) for _ in range(4)]
        asked[0].result()
        os.kill(service.pid, signal.SIGTERM)
        for one in asked:
            try:
                assert one.result().shape == (len(MANY),)
            except BlindsightError as error:
                assert isinstance(error, ServiceError), error
    assert service.wait(20) == 0
    lines = [json.loads(line) for line in (clinic.home / "stderr").read_text().splitlines()]
    assert any(line.get("verb") == "score" and line["code"] == "ok" for line in lines)
    assert [one["event"] for one in clinic.audit()].count("score") >= 1
