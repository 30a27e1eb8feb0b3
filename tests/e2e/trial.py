"""Runs a federation of real processes once, by the commands; prints what was found as JSON.

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
import time
from pathlib import Path
from typing import Any

import psutil

CONTROL = ("list-nodes", "list-runs", "start-run", "register-node", "stop-run")
RUNTIME = ("acquire-task", "pull-messages")


def blindsight(*words: object) -> dict[str, Any]:
    """The data of a command that must succeed."""
    command = [sys.executable, "-m", "simulations.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)["data"]
    return found


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
        found["trained"] = blindsight(
            "train", "--home", coordinator, "--rounds", 1, "--local-epochs", 1
        )
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
