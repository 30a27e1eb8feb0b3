"""What is checked before a party starts: each problem is found, and says what to do."""

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.provisioning.home import Home
from protocol.provisioning.preflight import (
    Check,
    check_coordinator,
    check_disk,
    check_identity,
    check_ports,
)
from protocol.provisioning.toml_settings import Endpoint, Name, Port, TomlSettings, settings_of
from protocol.provisioning.unit import service_unit
from tests.protocol.parties import (
    AUTHORITY,
    CLINIC,
    DAY,
    MUSEUM,
    NOW,
    STRANGER,
    certificate,
    roster,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A folder in which all is well."""
    made = Home(tmp_path / "clinic")
    made.prepare()
    made.folder("identity")
    own = made.credentials
    own.private_key.write_bytes(CLINIC.private_pem())
    own.private_key.chmod(0o600)
    own.certificate.write_bytes(certificate("clinic", hosts=("127.0.0.1",)).pem)
    own.authority.write_bytes(AUTHORITY.certificate.pem)
    roster().write(made.roster, AUTHORITY.identity)
    return made


def problems(checks: list[Check]) -> dict[str, str]:
    """What is wrong, by name."""
    return {one.name: f"{one.found} / {one.fix}" for one in checks if one.fix}


def test_a_folder_in_which_all_is_well(home: Home) -> None:
    checks = check_identity(home)
    assert problems(checks) == {}
    assert {one.name for one in checks} == {"permissions", "key", "certificate", "roster"}
    assert CLINIC.public.fingerprint in {one.found for one in checks}


def open_key(home: Home) -> None:
    home.credentials.private_key.chmod(0o644)


def open_folder(home: Home) -> None:
    home.root.chmod(0o750)


def other_key(home: Home) -> None:
    home.credentials.private_key.write_bytes(MUSEUM.private_pem())


def no_certificate(home: Home) -> None:
    home.credentials.certificate.unlink()


def foreign_certificate(home: Home) -> None:
    home.credentials.certificate.write_bytes(certificate("clinic", STRANGER).pem)


def revoked(home: Home) -> None:
    roster("bob", serial=4).write(home.roster, AUTHORITY.identity)


def changed_roster(home: Home) -> None:
    found = json.loads(home.roster.read_bytes())
    del found["members"][0]
    home.roster.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (open_key, "permissions", "mode 0644"),
        (open_folder, "permissions", "mode 0750"),
        (other_key, "certificate", "another key"),
        (no_certificate, "identity", "certificate.pem cannot be read"),
        (foreign_certificate, "identity", "not one of authority"),
        (revoked, "roster", "this key is not in it"),
        (changed_roster, "identity", "did not sign"),
    ],
)
def test_each_problem_is_found(
    home: Home, change: Callable[[Home], None], name: str, said: str
) -> None:
    change(home)
    assert said in problems(check_identity(home))[name]


def test_dates_are_looked_at(home: Home) -> None:
    end = certificate("clinic").not_after
    assert "--renew" in problems(check_identity(home, end - 29 * DAY))["certificate"]
    assert not problems(check_identity(home, end - 32 * DAY))
    assert "expired" in problems(check_identity(home, end + DAY))["identity"]
    assert "clock" in problems(check_identity(home, NOW - DAY))["identity"]


# --- the coordinator and its clock


class Coordinator:
    """Answers /health over TLS, with a date of our choice."""

    def __init__(self, home: Home) -> None:
        self.date, self.status = format_datetime(datetime.now(UTC), usegmt=True), 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(outer.status)
                self.send_header("Date", outer.date)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.credentials.certificate, home.credentials.private_key)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(self, home: Home, host: str = "127.0.0.1") -> dict[str, str]:
        return problems(check_coordinator(home.credentials.authority, host, self.port))


@pytest.fixture
def coordinator(home: Home) -> Iterator[Coordinator]:
    made = Coordinator(home)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_coordinator_that_answers(home: Home, coordinator: Coordinator) -> None:
    assert coordinator.ask(home) == {}


@pytest.mark.parametrize(("hours", "said"), [(1, "60 minutes behind"), (-1, "60 minutes ahead")])
def test_a_clock_that_is_an_hour_off(
    home: Home, coordinator: Coordinator, hours: int, said: str
) -> None:
    theirs = datetime.now(UTC) + timedelta(hours=hours)
    coordinator.date = format_datetime(theirs, usegmt=True)
    found = coordinator.ask(home)
    assert set(found) == {"clock"}
    assert said in found["clock"] and "NTP" in found["clock"]


@pytest.mark.parametrize("date", ["", "yesterday", "9" * 500, "Mon, 99 Jan 2026 00:00:00 GMT"])
def test_a_date_that_is_none_is_no_crash(home: Home, coordinator: Coordinator, date: str) -> None:
    coordinator.date = date
    assert coordinator.ask(home) == {}


def test_a_coordinator_that_is_ill_another_or_away(home: Home, coordinator: Coordinator) -> None:
    coordinator.status = 502
    assert "status 502" in coordinator.ask(home)["coordinator"]
    assert (
        "localhost" in coordinator.ask(home, "localhost")["coordinator"]
    )  # not in its certificate
    home.credentials.authority.write_bytes(STRANGER.certificate.pem)
    assert "certificate" in coordinator.ask(home)["coordinator"]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    away = problems(check_coordinator(home.credentials.authority, "127.0.0.1", port))
    assert "does not answer" in away["coordinator"] and "firewall" in away["coordinator"]


# --- the machine


def test_disk_and_ports(home: Home) -> None:
    assert not check_disk(home.root, 0.0).fix
    assert "Free some space" in check_disk(home.root, 1e9).fix
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        taken = check_ports(home, "127.0.0.1", ("the node", port))
        assert "in use" in taken[0].found and "Free" in taken[0].fix
    assert not check_ports(home, "127.0.0.1", ("the node", port))[0].fix
    assert check_ports(home, "192.0.2.1", ("the node", port))[0].fix  # no address of this machine


# --- settings and units


class Settings(TomlSettings):
    """Some."""

    name: Name
    coordinator: Endpoint
    port: Port = 7


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    made = settings_of(Settings, name="clinic", coordinator="a.example:1")
    made.save(tmp_path / "a.toml")
    assert Settings.load(tmp_path / "a.toml") == made
    assert (tmp_path / "a.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "clinic"\ncoordinator = x', "line 2"),
        ('name = "clinic"', "coordinator: Field required"),
        ('name = "a"\ncoordinator = "a:1"\nprot = 3', "prot"),
        ('name = "A"\ncoordinator = "a:1"', "name: 'A' is no name"),
        ('name = "a"\ncoordinator = "a:0"', "coordinator: expected HOST:PORT"),
        ('name = "a"\ncoordinator = "a:1"\nport = 65536', "port"),
        ("a = " + "[" * 9000, ""),
        ("\udcff", "utf-8"),
        ("#" * 70_000, "at most"),
    ],
)
def test_settings_that_are_wrong_name_what_is(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"a\.toml") as caught:
        Settings.load(tmp_path / "a.toml")
    assert said in caught.value.message
    assert "name, coordinator, port" in caught.value.hint
    with pytest.raises(UsageError, match="port"):
        settings_of(Settings, name="a", coordinator="a:1", port="x")


def test_a_unit_runs_our_command_and_can_write_one_folder_alone(tmp_path: Path) -> None:
    place = tmp_path / 'a "b" 100%'
    text = service_unit("Some", place, "institution", "up")
    quoted = str(place).replace('"', '\\"').replace("%", "%%")
    assert f'"institution" "up" "--home" "{quoted}"\n' in text
    assert f'ReadWritePaths="{quoted}"\n' in text
    assert "UMask=0077" in text and "RestartSec=20" in text
    with pytest.raises(UsageError, match="systemd"):
        service_unit("Some", tmp_path / "a\nExecStart=/bin/evil", "institution", "up")


def test_systemd_understands_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "blindsight-institution.service"
    path.write_text(service_unit("Some", tmp_path / 'a "b" $c 100%', "institution", "up"))
    try:
        done = subprocess.run(
            ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs systemd-analyze")
    assert path.name not in done.stderr and done.returncode == 0, done.stderr
