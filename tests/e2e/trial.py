"""Runs a federation of real processes once, by the commands; prints what was found as JSON.

Its run is stopped and resumed; one that asks for an update by itself is refused; nodes come that
have no business there.

``python -m tests.e2e.trial DIR``: a program of its own, so that it can be put where there is no
network but loopback.
"""

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from client.institution.deployment.processes import explain
from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.installation import install
from client.institution.provisioning.settings import InstitutionSettings
from protocol import flower
from protocol.audit import AuditLog
from protocol.files import write_atomically
from protocol.health import problem_of
from protocol.hosts import parse_endpoint
from protocol.provisioning.enrolment import request_certificate
from protocol.supervision import processes
from server.deployment.place import Place
from server.deployment.run import TrainingRun
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.settings import FederationSettings
from simulations.poc.poc import Poc

CONTROL = ("list-nodes", "list-runs", "start-run", "register-node", "stop-run")
RUNTIME = ("acquire-task", "pull-messages")


def blindsight(*words: object) -> dict[str, Any]:
    """The data of a command that must succeed."""
    command = [sys.executable, "-m", "simulations.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)["data"]
    return found


def refusal(*words: object) -> dict[str, Any]:
    """The envelope of a command that must fail."""
    command = [sys.executable, "-m", "simulations.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def stopped_and_resumed(coordinator: Path) -> dict[str, Any]:
    """Train two rounds; stop the run after the first, then go on with it."""
    words = ("train", "--home", coordinator, "--rounds", 2, "--local-epochs", 1)
    found: dict[str, Any] = {}

    def watch() -> None:
        found["while_stopped"] = refusal(*words)

    watching = threading.Thread(target=watch)
    watching.start()
    place, deadline = Place.open(coordinator), time.monotonic() + 150
    while True:
        run = TrainingRun.latest(place.runs)
        if run is not None and run.reports():
            break
        assert time.monotonic() < deadline and watching.is_alive(), "no round was trained"
        time.sleep(0.1)
    found["stop"] = blindsight("stop", "--home", coordinator)
    watching.join(60)
    found["before"] = len(run.reports())
    found["trained"] = blindsight("train", "--home", coordinator, "--resume")
    return found


def strangers(folder: Path, poc: Poc) -> dict[str, Any]:
    """How a node ends whose authority is another, and one whose certificate has expired."""
    place = Place.open(poc.coordinator)
    elsewhere = FederationSettings(name="poc", host="127.0.0.1")
    foreign = Federation.create(CoordinatorHome(folder / "elsewhere"), elsewhere)
    homes = {
        "foreign": member(foreign, folder / "stranger", "stranger", place),
        "expired": member(Federation(CoordinatorHome(poc.coordinator)), folder / "late", "late",
                          place),
    }  # fmt: skip
    authority = Federation(CoordinatorHome(poc.coordinator)).authority
    begin = datetime.now(UTC) - timedelta(days=400)
    late = authority.issue(homes["expired"].key().public, "late", "institution", now=begin)
    write_atomically(place.member("late") / "certificate.pem", late.pem)
    # It believes in an authority that did not sign the proxy's certificate.
    host, port = parse_endpoint(place.federation.coordinator)
    found: dict[str, Any] = {
        "of_proxy": problem_of(host, port, homes["foreign"].credentials.authority)
    }
    write_atomically(homes["foreign"].credentials.authority, place.authority.read_bytes())
    time.sleep(4)  # the coordinator looks at its roster every three seconds
    nodes = {name: start_node(home) for name, home in homes.items()}
    for name, node in nodes.items():
        said, _ = node.communicate(timeout=100)
        found[name] = {"code": node.returncode, "why": explain(said.decode(errors="replace"))}
    return found


def member(federation: Federation, root: Path, name: str, place: Place) -> InstitutionFolder:
    """An institution of ``federation`` that dials the coordinator of ``place``."""
    home = InstitutionFolder(root)
    request = request_certificate(home, name, [])
    kit = federation.approve(request, "institution", []).kit
    install(home.root, kit, federation.public.fingerprint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    home.settings.unlink()
    InstitutionSettings(name=name, coordinator=place.federation.coordinator, node_port=port).save(
        home.settings
    )
    return home


def start_node(home: InstitutionFolder) -> subprocess.Popen[bytes]:
    """The node alone, as the institution's supervisor starts it."""
    secret = flower.shared_secret(home.root / "state/superexec.secret")
    words = ["-m", "client.institution.deployment.node", str(home.root), str(secret)]
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=flower.environment(home.root / "state/node"),
    )


def revoked(poc: Poc) -> str | None:
    """Why a node ends for good whose institution was revoked while it was at work."""
    home = poc.institutions[0]
    blindsight("federation", "revoke", home.name, "--home", poc.coordinator)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in (processes(home / "state") or {"processes": []})["processes"]:
            # It ends by itself first, and is refused when it comes again.
            if one["name"] == "node" and "refused it" in (one["last_end"] or ""):
                return str(one["last_end"])
        time.sleep(0.2)
    return None


def refused_alone(poc: Poc) -> dict[str, Any]:
    """What a run is told that asks one institution for its update by itself."""
    found = refusal(
        "train", "--home", poc.coordinator, "--rounds", 1, "--quorum", 1,
        "--client-fraction", 0.01, "--no-secure-aggregation",
    )  # fmt: skip
    audits = [AuditLog(InstitutionFolder(home).audit.path) for home in poc.institutions]
    lines = [one.facts for log in audits for one in log.read() if one.event == "refused"]
    return {"said": found, "audited": [str(one["why"]) for one in lines]}


def answer(address: str, authority: Path, path: str) -> int:
    """The status of a POST from outside, signed by nobody."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=context)
    try:
        connection.request("POST", path, b"", {"content-type": "application/protobuf"})
        return connection.getresponse().status
    finally:
        connection.close()


def sent_nowhere() -> int:
    """How many packets had no route; a look-up of a name is one."""
    four = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    names, values = (line for line in four if line[0] == "Ip:")
    six = re.search(r"Ip6OutNoRoutes\s+(\d+)", Path("/proc/net/snmp6").read_text())
    return int(values[names.index("OutNoRoutes")]) + (int(six[1]) if six else 0)


def alive(folder: Path) -> list[str]:
    """The processes that work with a folder."""
    lines = (" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line and "tests.e2e.trial" not in line]


def main(folder: Path) -> None:
    """Bring it up, train, look at it from outside, take it down."""
    coordinator, before, began = folder / "coordinator", sent_nowhere(), time.monotonic()
    found: dict[str, Any] = {}
    try:
        blindsight("poc", "up", "--dir", folder, "--institutions", 3, "--scenes", 120)
        found["up"] = time.monotonic() - began
        found |= stopped_and_resumed(coordinator)
        found["status"] = blindsight("status", "--home", coordinator)
        found["logs"] = sorted(blindsight("logs", "--home", coordinator))
        address = found["status"]["address"]
        authority = coordinator / "identity" / "authority.pem"
        found["paths"] = {
            path: answer(address, authority, path)
            for path in (
                *(f"/v1/control/{name}" for name in CONTROL),
                *(f"/v1/runtime/{name}" for name in RUNTIME),
                "/openapi.json", "/docs", "/v1/fleet/register-node", "/v1/fleet/pull-messages",
            )
        }  # fmt: skip
        roster = json.loads((coordinator / "roster.json").read_text())
        found["roster"] = json.dumps(roster)
        release = Path(found["trained"]["release"])
        found["files"] = sorted(one.name for one in release.iterdir())
        poc = Poc.open(folder)
        found["alone"] = refused_alone(poc)
        found["strangers"] = strangers(folder / "strangers", poc)
        found["revoked"] = revoked(poc)
        found["audit"] = blindsight("audit", "verify", "--home", coordinator)
    finally:
        found["down"] = blindsight("poc", "down", "--dir", folder, "--delete")
        found["left"] = alive(folder)
        found["there"] = folder.exists()
        found["sent_nowhere"] = sent_nowhere() - before
        found["links"] = [name for _, name in socket.if_nameindex()]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
