"""The coordinator's processes: Flower's superlink, its executor, and nginx before them.

The superlink listens on loopback alone and keeps its state in a database; its tasks run in
processes of their own (``--isolation process``), which only the executor's secret can fetch. So a
killed superlink is started again, and a run in progress goes on.
"""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace

from protocol import flower
from protocol.certificates import Certificate
from protocol.child import Program
from protocol.errors import BlindsightError, ServiceError
from protocol.health import problem_of
from protocol.hosts import from_here
from protocol.roster import Member, Roster
from protocol.supervision import Supervisor, require_free, require_none, stopping
from protocol.terminal import say
from server.deployment.control import Control
from server.deployment.place import Place
from server.directory import process as directory

_LOOK_SECONDS = 3.0
_SYSTEM = os.pathsep.join(("/usr/sbin", "/usr/local/sbin"))


def up(place: Place, on_ready: Callable[[], None]) -> None:
    """Run them until SIGTERM or Ctrl-C; ``on_ready`` is called when institutions may come.

    Raises ServiceError for a port that is taken, a program that is missing or does not start.
    """
    require_none(place.state)
    settings = place.federation
    hint = "End what uses it, or change the port in federation.toml and nginx.conf."
    require_free("127.0.0.1", settings.superlink_port, "the superlink", hint)
    require_free(settings.listen, settings.port, "nginx", hint)
    require_free(settings.listen, settings.directory_port, "the directory", hint)
    with stopping() as stop:

        def ready() -> None:
            keeper = threading.Thread(target=_keep_enrolled, args=(place, stop), daemon=True)
            keeper.start()
            on_ready()

        Supervisor(place.state, programs(place)).run(stop, ready)


def programs(place: Place) -> list[Program]:
    """The processes in the order of their start."""
    secret = flower.shared_secret(place.state / "superexec.secret")
    address, port = place.superlink, place.federation.superlink_port
    superlink = Program(
        "superlink",
        (
            flower.program("flower-superlink"),
            "--isolation", "process",
            "--superexec-auth-secret-file", str(secret),
            "--database", str(place.state / "superlink.db"),
            "--ssl-ca-certfile", str(place.authority),
            "--ssl-certfile", str(place.credentials.certificate),
            "--ssl-keyfile", str(place.credentials.private_key),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1",
            "--port", str(port),
        ),
        place.log("superlink"),
        flower.environment(place.state / "superlink"),
        ready=lambda: problem_of("127.0.0.1", port, place.authority) is None,
    )  # fmt: skip
    executor = Program(
        "executor",
        (
            flower.program("flower-superexec"),
            "--runtime-api-address", address,
            "--root-certificates", str(place.authority),
            "--superexec-auth-secret-file", str(secret),
        ),
        place.log("executor"),
        # Seconds between two looks for work; Flower's default is 1.
        flower.environment(place.state / "executor")
        | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
    )  # fmt: skip
    host = from_here(place.federation.listen)
    nginx = Program(
        "nginx",
        (find_nginx(), "-p", f"{place.root}/", "-c", str(place.proxy), "-g",
         "daemon off;"),
        place.log("nginx"),
        {"PATH": os.defpath},
        ready=lambda: problem_of(host, place.federation.port, place.authority, "localhost") is None,
    )  # fmt: skip
    return [superlink, executor, nginx, directory.program(place)]


def _keep_enrolled(place: Place, stop: threading.Event) -> None:
    """Make the roster's institutions nodes, now and whenever they are others than before."""
    seen: Roster | None = None
    while not stop.is_set():
        try:
            found = admitted(place)
            if found != seen:
                enrol(place, found)
                seen = found
                for member in set(place.read_roster().members) - set(found.members):
                    say(f"{member.name} is not let in: its certificate is not valid now")
        except (BlindsightError, OSError) as error:
            say(f"the roster: {error}")
        stop.wait(_LOOK_SECONDS)


def admitted(place: Place) -> Roster:
    """The roster without the institutions whose certificate is not valid now.

    A node shows the superlink its key alone, and keys do not expire. Raises UsageError,
    MalformedMessage for a roster that cannot be believed.
    """
    roster = place.read_roster()
    there = [one for one in roster.members if one.role != "institution" or _valid(place, one)]
    return replace(roster, members=tuple(there))


def enrol(place: Place, roster: Roster) -> None:
    """Register who is new in the roster with the superlink, unregister who left; both audited."""
    with Control(place.superlink, place.authority) as control:
        came, went = control.enrol(roster)
    audit = place.audit
    for name in came:
        audit.record("node-registered", name=name)
    for name in went:
        audit.record("node-unregistered", name=name)


def _valid(place: Place, member: Member) -> bool:
    try:
        certificate = Certificate.load(place.member(member.name) / "certificate.pem")
        certificate.check_dates()
    except BlindsightError:
        return False
    return certificate.identity == member.identity


def find_nginx() -> str:
    """The program nginx. Raises ServiceError, saying how to get it."""
    searched = os.pathsep.join((os.environ.get("PATH", os.defpath), _SYSTEM))
    found = shutil.which("nginx", path=searched)
    if found is None:
        raise ServiceError(
            "nginx is not installed: it stands between the network and the superlink",
            "Install it: apt install nginx-light (Debian, Ubuntu) or dnf install nginx (Fedora).",
        )
    return found
