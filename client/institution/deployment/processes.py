"""An institution's processes: its node in the federation, the node's executor, its service.

The node dials out; nothing listens to the outside but the service, where there is an index.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from client.institution import reach
from client.institution.deployment.place import Place
from client.institution.deployment.releases import check_served
from protocol import flower
from protocol.child import Program
from protocol.errors import UsageError
from protocol.health import problem_of
from protocol.hosts import from_here
from protocol.supervision import Supervisor, listens, require_free, require_none, stopping
from protocol.terminal import say

_LOOK_SECONDS = 10.0
#: What the end of a node's log says, and what it means. Flower's codes: its exit codes and errors.
_MEANINGS = (
    ("code: 2004", "the coordinator refused it: it does not know this institution's key (not yet "
     "approved, or revoked), or counts on the node that was here before for up to a minute"),
    ("Exit Code: 303", "it was to connect without TLS"),
    ("Exit Code: 305", "the coordinator refused this institution's key"),
    ("blindsight: ", ""),
)  # fmt: skip


def up(place: Place, on_ready: Callable[[], None]) -> None:
    """Run them until SIGTERM or Ctrl-C. The coordinator may come later, go and come again.

    Raises ServiceError for a port that is taken, UsageError for a folder that is not there,
    PolicyError for an index of a release that the federation has not signed.
    """
    require_none(place.state)
    if not place.data.is_dir():
        raise UsageError(f"{place.data}: there is no such folder", "See data in institution.toml.")
    check_served(place)
    hint = "End what uses it, or change the port in institution.toml."
    require_free("127.0.0.1", place.institution.node_port, "the node", hint)
    if place.index is not None:
        require_free(
            place.institution.service_host, place.institution.service_port, "the service", hint
        )
    with stopping() as stop:
        watch = threading.Thread(target=_watch_coordinator, args=(place, stop), daemon=True)
        watch.start()
        Supervisor(place.state, programs(place)).run(stop, on_ready)


def programs(place: Place) -> list[Program]:
    """The processes in the order of their start."""
    secret = flower.shared_secret(place.state / "superexec.secret")
    module = "client.institution.deployment.node"
    node = Program(
        "node",
        (sys.executable, "-m", module, str(place.root), str(secret)),
        place.log("node"),
        flower.environment(place.state / "node"),
        ready=lambda: listens("127.0.0.1", place.institution.node_port),
        explain=explain,
    )
    executor = Program(
        "executor",
        (
            # By its path, so that no package of this project is loaded with it.
            sys.executable, "-P", str(Path(__file__).with_name("executor.py")),
            "--insecure",  # loopback
            "--runtime-api-address", f"127.0.0.1:{place.institution.node_port}",
            "--superexec-auth-secret-file", str(secret),
        ),
        place.log("executor"),
        # Seconds between two looks for work; Flower's default is 1.
        flower.environment(place.state / "executor")
        | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
    )  # fmt: skip
    service = _service(place)
    return [node, executor, *([] if service is None else [service]), *reach.program(place)]


def explain(tail: str) -> str | None:
    """Why a node ended, by the end of its log; None when it does not say."""
    for sign, meaning in _MEANINGS:
        if sign in tail:
            said = tail[tail.rindex(sign) :].partition("\n")[0]
            return meaning or said.removeprefix(sign)
    return None


def _service(place: Place) -> Program | None:
    if place.index is None:
        return None
    settings, module = place.institution, "client.institution.deployment.scoring"
    return Program(
        "service",
        (sys.executable, "-m", module, json.dumps(place.service(), default=str)),
        place.log("service"),
        flower.environment(place.state / "service"),
        ready=lambda: listens(from_here(settings.service_host), settings.service_port),
        explain=explain,
    )


def _watch_coordinator(place: Place, stop: threading.Event) -> None:
    """Say when the coordinator cannot be reached, and when it can again: the node keeps trying."""
    host, port = place.coordinator
    before: str | None = None
    while not stop.is_set():
        found = problem_of(host, port, place.authority)
        if found != before:
            say(f"coordinator {host}:{port}: {found or 'it answers'}"
                + ("; the node keeps trying" if found else ""))  # fmt: skip
        before = found
        stop.wait(_LOOK_SECONDS)
