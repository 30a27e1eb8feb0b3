"""Who is let in: over real TLS, by the roster as it stands."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protocol.admission import Admission
from protocol.credentials import Credentials
from protocol.errors import BlindsightError, MalformedMessage, NotAdmitted, StorageError, UsageError
from protocol.grpc_errors import ErrorInterceptor, error_from_rpc
from protocol.hosts import member_host
from protocol.identity import Identity
from protocol.roster import Role
from server.provisioning.authority import Authority
from tests.protocol.parties import AUTHORITY, DAY, ROLES, STRANGER, certificate, roster

TLS = {"ssl_tls_version": [b"TLSv1.3"]}


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    path = tmp_path / "roster.json"
    roster().write(path, AUTHORITY.identity)
    return Admission(AUTHORITY.certificate, path)


def peer(name: str, authority: Authority = AUTHORITY) -> dict[str, list[bytes]]:
    """What gRPC says of a caller."""
    return {**TLS, "x509_pem_cert": [certificate(name, authority).pem]}


def test_a_member_is_let_in_with_its_role(admission: Admission) -> None:
    assert admission.admit(peer("clinic"), "institution").name == "clinic"
    assert admission.admit(peer("bob"), "institution", "searcher").role == "searcher"
    with pytest.raises(NotAdmitted, match="museum is an institution; this is for: searcher"):
        admission.admit(peer("museum"), "searcher")


def test_strangers_and_the_expired_are_not(admission: Admission) -> None:
    with pytest.raises(NotAdmitted, match="not one of authority"):
        admission.admit(peer("bob", STRANGER), "searcher")
    with pytest.raises(NotAdmitted, match="expired"):
        admission.admit(peer("bob"), "searcher", now=certificate("bob").not_after + DAY)
    impostor = AUTHORITY.issue(Identity.ephemeral().public, "bob", "searcher").pem
    with pytest.raises(NotAdmitted, match="no member"):
        admission.admit({**TLS, "x509_pem_cert": [impostor]}, "searcher")


@pytest.mark.parametrize("pem", [[], [b""], [b"junk"], [b"\0" * 100_000]])
def test_what_is_no_certificate_is_refused(admission: Admission, pem: list[bytes]) -> None:
    with pytest.raises(NotAdmitted):
        admission.admit({**TLS, "x509_pem_cert": pem}, "searcher")


def test_an_older_tls_is_refused(admission: Admission) -> None:
    known = peer("bob")
    for version in ([b"TLSv1.2"], []):
        with pytest.raises(NotAdmitted, match=r"TLS 1\.3"):
            admission.admit(known | {"ssl_tls_version": version}, "searcher")


def test_a_revocation_counts_from_the_next_call_on(admission: Admission, tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    admission.admit(peer("bob"), "searcher")
    roster("clinic", serial=4).write(path, AUTHORITY.identity)
    with pytest.raises(NotAdmitted, match="no member"):
        admission.admit(peer("bob"), "searcher")
    roster("clinic", "bob", serial=5).write(path, AUTHORITY.identity)
    assert admission.admit(peer("bob"), "searcher").name == "bob"


def older(path: Path) -> None:
    roster(serial=2).write(path, AUTHORITY.identity)


def forged(path: Path) -> None:
    found = json.loads(path.read_bytes())
    found["members"] = found["members"][1:]
    path.write_text(json.dumps(found))


def strangers(path: Path) -> None:
    roster(serial=9).write(path, STRANGER.identity)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [older, forged, strangers, gone])
def test_a_roster_that_cannot_be_believed_lets_nobody_in(
    admission: Admission, tmp_path: Path, change: object
) -> None:
    change(tmp_path / "roster.json")  # type: ignore[operator]
    for _ in range(2):
        with pytest.raises(StorageError, match=r"roster\.json"):
            admission.admit(peer("bob"), "searcher")
    roster(serial=4).write(tmp_path / "roster.json", AUTHORITY.identity)
    admission.admit(peer("bob"), "searcher")


def test_there_is_no_admission_without_a_roster(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Admission(AUTHORITY.certificate, tmp_path / "roster.json")
    strangers(tmp_path / "roster.json")
    with pytest.raises(MalformedMessage):
        Admission(AUTHORITY.certificate, tmp_path / "roster.json")


# --- over real TLS


def credentials(folder: Path, name: str, authority: Authority = AUTHORITY) -> Credentials:
    folder.mkdir()
    identity, _ = ROLES[name]
    found = certificate(name, authority, ("127.0.0.1",))
    (folder / "private-key.pem").write_bytes(identity.private_pem())
    (folder / "certificate.pem").write_bytes(found.pem)
    (folder / "authority.pem").write_bytes(AUTHORITY.certificate.pem)
    return Credentials.in_folder(folder)


class Door(grpc.GenericRpcHandler):
    """A service that says who is asking."""

    def __init__(self, admission: Admission, role: Role) -> None:
        self._admission, self._role = admission, role

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._admission.admit(context.auth_context(), self._role).name.encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def address(admission: Admission, tmp_path: Path) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[ErrorInterceptor()])
    server.add_generic_rpc_handlers((Door(admission, "searcher"),))
    own = credentials(tmp_path / "clinic", "clinic")
    port = server.add_secure_port("127.0.0.1:0", own.for_server())
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def ask(address: str, own: Credentials, target: str = "") -> str:
    options = [("grpc.ssl_target_name_override", member_host(target))] if target else []
    with grpc.secure_channel(address, own.for_client(), options) as channel:
        try:
            return bytes(channel.unary_unary("/door/Knock")(b"", timeout=10)).decode()
        except grpc.RpcError as error:
            raise error_from_rpc(error, "the door") from error


def test_members_are_known_over_the_wire_until_they_are_revoked(
    address: str, tmp_path: Path
) -> None:
    bob, museum = (credentials(tmp_path / name, name) for name in ("bob", "museum"))
    assert ask(address, bob) == "bob"
    with pytest.raises(NotAdmitted, match="this is for: searcher"):
        ask(address, museum)
    roster("clinic", serial=4).write(tmp_path / "roster.json", AUTHORITY.identity)
    with pytest.raises(NotAdmitted, match="no member"):
        ask(address, bob)


def test_a_searcher_can_insist_on_the_member_that_it_means(address: str, tmp_path: Path) -> None:
    bob = credentials(tmp_path / "bob", "bob")
    assert ask(address, bob, "clinic") == "bob"
    with pytest.raises(BlindsightError, match="cannot be reached"):
        ask(address, bob, "museum")
