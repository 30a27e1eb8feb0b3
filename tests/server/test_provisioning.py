"""Who is let into a federation, and through which door: by the commands and by a real nginx."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.institution.provisioning.home import InstitutionFolder
from protocol.certificates import Certificate
from protocol.errors import StorageError, UsageError
from protocol.files import open_exclusively
from protocol.identity import Identity
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.kit import Kit
from server.provisioning.federation import Federation, renew_coordinator, write_proxy
from server.provisioning.home import CoordinatorHome
from server.provisioning.preflight import examine_coordinator
from server.provisioning.proxy import FLEET, nginx_configuration
from server.provisioning.settings import FederationSettings
from simulations.cli import app
from tests.protocol.parties import BOB, CLINIC, MUSEUM, full_disk, modes

HOST = "fleet.example.org"


def request(identity: Identity, name: str, *hosts: str) -> CertificateRequest:
    return CertificateRequest.make(identity, name, hosts)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    settings = FederationSettings(name="lab", host=HOST)
    return Federation.create(CoordinatorHome(tmp_path / "coordinator"), settings)


def test_a_federation_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = CoordinatorHome(tmp_path / "deep/coordinator")
        federation = Federation.create(home, FederationSettings(name="lab", host=HOST))
    finally:
        os.umask(before)
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert all(mode in (0o600, 0o700) for mode in modes(home.root).values())
    certificate = Certificate.load(home.credentials.certificate)
    certificate.check_issued_by(federation.authority.certificate)
    assert certificate.hosts == (HOST, "localhost", "127.0.0.1")
    assert [one.name for one in federation.roster().members] == ["coordinator"]
    assert [one.event for one in home.audit.read()] == [
        "federation-created", "coordinator-certified",
    ]  # fmt: skip


def test_a_federation_is_never_replaced_but_an_attempt_is_finished(federation: Federation) -> None:
    home, key = federation.home, federation.home.authority_key.read_bytes()
    with pytest.raises(UsageError, match="already"):
        Federation.create(home, federation.settings)
    home.settings.unlink()  # as if it had been interrupted: this is written last
    again = Federation.create(home, federation.settings)
    assert home.authority_key.read_bytes() == key
    assert again.authority.identity.public == federation.authority.identity.public


def test_an_approved_party_gets_a_kit_and_stands_in_the_roster(federation: Federation) -> None:
    hosts = ("clinic.example.org", "192.0.2.7")
    done = federation.approve(request(CLINIC, "clinic", *hosts), "institution", hosts[:1])
    assert done.serial == 2 and done.certificate.hosts == hosts[:1]
    kit = Kit.load(done.kit)
    assert (kit.name, kit.role, kit.coordinator) == ("clinic", "institution", f"{HOST}:8443")
    assert kit.read_roster() == federation.roster()
    assert kit.certificate.identity == CLINIC.public
    secrets = [federation.authority.identity.private_pem(), federation.home.key().private_pem()]
    assert not any(one.splitlines()[1] in done.kit.read_bytes() for one in secrets)
    entry = list(federation.home.audit.read())[-1]
    assert (entry.event, entry.facts["member"], entry.facts["roster"]) == (
        "member-approved", "clinic", 2,
    )  # fmt: skip
    assert federation.approve(request(BOB, "bob"), "searcher").serial == 3


def test_hosts_are_those_that_the_coordinator_confirms(federation: Federation) -> None:
    asking = request(CLINIC, "clinic", "clinic.example.org", HOST)
    with pytest.raises(UsageError, match="are these its own"):
        federation.approve(asking, "institution")
    with pytest.raises(UsageError, match="does not ask"):
        federation.approve(asking, "institution", ["museum.example.org"])
    with pytest.raises(UsageError, match="coordinator's host"):
        federation.approve(asking, "institution", [HOST])
    assert federation.roster().serial == 1
    assert federation.approve(asking, "institution", []).certificate.hosts == ()


def test_nobody_is_enrolled_twice(federation: Federation) -> None:
    federation.approve(request(CLINIC, "clinic"), "institution")
    before = federation.home.roster.read_bytes()
    for identity, name, role, said in (
        (CLINIC, "clinic", "institution", "with this key"),
        (MUSEUM, "clinic", "institution", "enrolled already, with key"),
        (CLINIC, "museum", "institution", "as institution clinic"),
        (CLINIC, "clinic", "searcher", "as institution clinic"),
        (MUSEUM, "coordinator", "institution", "the coordinator's own"),
        (MUSEUM, "authority", "institution", "the coordinator's own"),
        (federation.home.key(), "museum", "institution", "as coordinator coordinator"),
        (federation.authority.identity, "museum", "institution", "the coordinator's own"),
    ):
        with pytest.raises(UsageError, match=said):
            federation.approve(request(identity, name), role)  # type: ignore[arg-type]
    assert federation.home.roster.read_bytes() == before


def test_a_renewal_changes_the_certificate_alone(federation: Federation) -> None:
    first = federation.approve(request(CLINIC, "clinic"), "institution")
    again = federation.approve(request(CLINIC, "clinic"), "institution", renew=True)
    assert again.serial == first.serial == federation.roster().serial
    assert again.certificate.parsed.serial_number != first.certificate.parsed.serial_number
    assert Kit.load(again.kit).certificate == again.certificate
    for identity, name, role in (
        (MUSEUM, "clinic", "institution"),
        (CLINIC, "museum", "institution"),
        (CLINIC, "clinic", "searcher"),
    ):
        with pytest.raises(UsageError, match="to renew"):
            federation.approve(request(identity, name), role, renew=True)  # type: ignore[arg-type]
    old = Certificate.load(federation.home.credentials.certificate)
    assert renew_coordinator(federation).parsed.serial_number != old.parsed.serial_number


def test_a_revoked_party_is_out_and_may_come_back_with_a_new_key(federation: Federation) -> None:
    federation.approve(request(CLINIC, "clinic"), "institution")
    member, roster = federation.revoke("clinic")
    assert member.identity == CLINIC.public and roster.serial == 3
    assert federation.roster().find(CLINIC.public) is None
    assert list(federation.home.audit.read())[-1].event == "member-revoked"
    for name in ("clinic", "coordinator", "nobody", "../x"):
        with pytest.raises(UsageError, match="no institution"):
            federation.revoke(name)
    assert federation.approve(request(MUSEUM, "clinic"), "institution").serial == 4


def test_two_approvals_at_once_do_not_lose_one(federation: Federation) -> None:
    lock = federation.home.root / "authority/lock"
    with open_exclusively(lock), pytest.raises(StorageError, match="another process"):
        federation.approve(request(CLINIC, "clinic"), "institution")
    assert federation.approve(request(CLINIC, "clinic"), "institution").serial == 2


def test_a_full_disk_approves_nobody_and_loses_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if not full_disk(folder, 256):
        pytest.skip("needs to mount a small disk")
    try:
        home = CoordinatorHome(folder)
        federation = Federation.create(home, FederationSettings(name="lab", host=HOST))
        federation.approve(request(CLINIC, "clinic"), "institution")
        with pytest.raises(OSError, match="No space"), (folder / "fill").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StorageError, match="no space left"):
            federation.approve(request(BOB, "bob"), "searcher")
        assert federation.roster().serial == 2 and federation.roster().named("clinic")
        (folder / "fill").unlink()
        assert federation.approve(request(BOB, "bob"), "searcher").serial == 3
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_without_a_federation_and_mixed_files_are_named(
    federation: Federation, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="there is no federation"):
        Federation(CoordinatorHome(tmp_path))
    key = federation.home.authority_key
    key.unlink()
    Identity.create(key)
    with pytest.raises(UsageError, match="not of the key beside it"):
        assert Federation(federation.home).authority
    (check,) = (one for one in examine_coordinator(federation.home.root) if one.name == "authority")
    assert check.fix


# --- the commands, from a founded federation to a revoked member


def run(*words: object) -> dict[str, Any]:
    """What a command says under --json; an error as it is."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.exit_code == 0) is (found["status"] == "ok")
    return found


def test_two_parties_join_by_the_commands(tmp_path: Path) -> None:
    at, clinic, bob = tmp_path / "at", tmp_path / "clinic", tmp_path / "bob"
    made = run("federation", "init", "--home", at, "--name", "lab", "--host", HOST)["data"]
    asked = run(
        "institution", "request", "--home", clinic, "--name", "clinic", "--host", "127.0.0.1"
    )["data"]
    approve = ["federation", "approve", asked["request"], "--home", at, "--role", "institution"]
    assert "was not compared" in run(*approve)["message"]
    wrong = run(*approve, "--fingerprint", made["authority"])
    assert wrong["error_code"] == "usage" and "not the one given" in wrong["message"]
    told = ["--fingerprint", asked["fingerprint"]]
    approved = run(*approve, *told, "--host", "127.0.0.1")["data"]
    assert approved["hosts"] == ["127.0.0.1"]
    assert "enrolled already" in run(*approve, *told, "--host", "127.0.0.1")["message"]
    install = ["install", approved["kit"], "--home", clinic, "--fingerprint", made["authority"]]
    assert run("institution", *install)["data"]["coordinator"] == f"{HOST}:8443"

    asked = run("searcher", "request", "--home", bob, "--name", "bob")["data"]
    approve = ["federation", "approve", asked["request"], "--home", at, "--role", "searcher"]
    approved = run(*approve, "--fingerprint", asked["fingerprint"])["data"]
    install = ["install", approved["kit"], "--home", bob, "--fingerprint", made["authority"]]
    assert run("searcher", *install)["data"]["roster"]["joined"] == ["bob", "clinic", "coordinator"]

    update = ["institution", "update", at / "roster.json", "--home", clinic]
    assert run(*update)["data"] == {"serial": 3, "joined": ["bob"], "left": []}
    rows = run("federation", "roster", "--home", at)["data"]["members"]
    assert [row["name"] for row in rows] == ["bob", "clinic", "coordinator"]
    assert all(len(row["fingerprint"]) == 79 and row["expires"] for row in rows)
    assert run("federation", "revoke", "bob", "--home", at)["data"]["serial"] == 4
    assert run(*update)["data"]["left"] == ["bob"]
    assert run("searcher", "update", at / "roster.json", "--home", bob)["data"]["left"] == ["bob"]
    assert run("federation", "renew", "--home", at)["data"]["hosts"][0] == HOST
    for home in (at, clinic, bob):
        assert len(list(InstitutionFolder(home).audit.read())) >= 3


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--name", "Lab"), ("--host", "a b"), ("--port", "0"), ("--listen", "x;y"), ("--port", "a")],
)
def test_bad_settings_found_no_federation(tmp_path: Path, flag: str, value: str) -> None:
    words = {"--home": str(tmp_path / "at"), "--name": "lab", "--host": HOST} | {flag: value}
    done = CliRunner().invoke(app, ["federation", "init", *chain(*words.items())])
    assert done.exit_code == 2
    assert not (tmp_path / "at").exists()


# --- nginx


class Superlink:
    """Stands where the superlink would: answers everything, and says what arrived."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own = home.credentials
        context.load_cert_chain(own.certificate, own.private_key)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH')}:/usr/sbin")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Superlink, int, Path]]:
    if NGINX is None:
        pytest.skip("needs nginx")
    home = CoordinatorHome(tmp_path_factory.mktemp("door") / "at")
    settings = FederationSettings(name="lab", host=HOST, listen="127.0.0.1", port=free_port())
    Federation.create(home, settings)
    superlink = Superlink(home)
    write_proxy(home, settings.model_copy(update={"superlink_port": superlink.server.server_port}))
    words = [NGINX, "-p", f"{home.root}/", "-c", str(home.proxy), "-g", "daemon off;"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    for _ in range(200):
        with socket.socket() as one:
            if not one.connect_ex(("127.0.0.1", settings.port)):
                break
        time.sleep(0.02)
    yield superlink, settings.port, home.credentials.authority
    process.terminate()
    process.communicate(timeout=20)
    superlink.server.shutdown()
    superlink.server.server_close()


def knock(door: tuple[Superlink, int, Path], path: str, version: Any = None) -> int:
    """The status for ``path``, sent as it stands: no client tidies it."""
    _, port, authority = door
    context = ssl.create_default_context(cafile=str(authority))
    if version is not None:
        context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        secure = context.wrap_socket(plain, server_hostname=HOST)
        head = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Length: 0", "Connection: close"]
        secure.sendall("\r\n".join([*head, "", ""]).encode())
        status = int(secure.makefile("rb").readline().split()[1])
        secure.close()
    return status


def test_what_a_node_needs_passes(door: tuple[Superlink, int, Path]) -> None:
    for path in [f"/v1/fleet/{name}" for name in FLEET] + ["/health"]:
        assert knock(door, path) == 200
        assert door[0].asked[-1] == path


SHUT = (
    *("/", "/docs", "/openapi.json", "/health/x", "/v1/fleet", "/v1/fleet/", "/v1/fleet/other"),
    *("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"),
    *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/%72egister-node"),
    *("/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/V1/fleet/get-run"),
    *("/v1/fleet//register-node", "/v1/fleet/register-node/", "/v1/fleet/get-run/../register-node"),
    *("/v1/fleet/get-run/../../control/start-run", "/v1/fleet/get-run%0a", "/v1/fleet/get-run/x"),
)


@pytest.mark.parametrize("path", SHUT)
def test_everything_else_is_shut(door: tuple[Superlink, int, Path], path: str) -> None:
    before = list(door[0].asked)
    assert knock(door, path) in (400, 404)
    assert door[0].asked == before


def test_no_older_tls_is_spoken(door: tuple[Superlink, int, Path]) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        knock(door, "/health", ssl.TLSVersion.TLSv1_2)


def test_every_path_that_is_open_is_one_of_flowers() -> None:
    """Notices when another version of Flower asks for something else."""
    from flwr.superlink.routers.fleet.router import router

    theirs = {route.path.removeprefix("/v1/fleet/") for route in router.routes}  # type: ignore[attr-defined]
    assert theirs == {*FLEET, "register-node", "unregister-node"}


def test_nginx_conf_holds_no_path_outside_the_folder(federation: Federation) -> None:
    text = nginx_configuration(federation.settings)
    assert str(federation.home.root) not in text
    assert "daemon" not in text and "ssl_protocols TLSv1.3;" in text
    assert f"server 127.0.0.1:{federation.settings.superlink_port};" in text
