"""What every party checks before it starts: its files, its clock, its disk, the coordinator."""

import http.client
import shutil
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from protocol.certificates import Certificate
from protocol.errors import BlindsightError
from protocol.hosts import endpoint
from protocol.identity import Identity
from protocol.provisioning.enrolment import own_certificate
from protocol.provisioning.home import Home
from protocol.supervision import processes

_SECONDS = 10.0
_SOON_DAYS = 30
# Far below what certificates and Flower's signatures (five minutes) forgive, far above a network.
_SKEW_SECONDS = 60.0


@dataclass(frozen=True)
class Check:
    """One finding; ``fix`` is empty where all is well."""

    name: str
    found: str
    fix: str = ""


def refused(name: str, error: BlindsightError) -> Check:
    """A check that failed because reading did."""
    return Check(name, error.message, error.hint or "See the message.")


def check_identity(home: Home, now: datetime | None = None) -> list[Check]:
    """Key, certificate and roster: there, closed to others, of one federation, and valid now."""
    checks = [_check_permissions(home)]
    try:
        identity = Identity.load(home.credentials.private_key)
        checks.append(Check("key", identity.public.fingerprint))
        certificate = own_certificate(home, now)
        checks.append(_check_certificate(certificate, identity, now))
        roster = home.read_roster()
        member = roster.find(identity.public)
        if member is None:
            fix = "Ask the coordinator: this key was revoked, or roster.json is an old one."
            checks.append(Check("roster", f"number {roster.serial}: this key is not in it", fix))
        else:
            found = f"{roster.federation}, number {roster.serial}: {member.role} {member.name}"
            checks.append(Check("roster", found))
    except BlindsightError as error:
        checks.append(refused("identity", error))
    return checks


def check_coordinator(
    authority: Path, host: str, port: int, now: datetime | None = None
) -> list[Check]:
    """Whether the coordinator answers over its TLS, and how far the two clocks are apart."""
    where = endpoint(host, port)
    fix = f"Is it up, and does your firewall let you out to {where}? No proxy is used."
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        connection = http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        fix = "Is this the right address, and is the clock of this machine right?"
        return [Check("coordinator", f"{where}: {error.verify_message}", fix)]
    except (OSError, http.client.HTTPException) as error:
        return [Check("coordinator", f"{where} does not answer: {error}"[:300], fix)]
    checks = [Check("coordinator", f"{where} answers")]
    if answer.status != 200:
        fix = "Its proxy answers, but nothing behind it: ask the coordinator."
        checks = [Check("coordinator", f"{where} answers with status {answer.status}", fix)]
    return [*checks, _check_clock(answer.headers.get("Date"), now or datetime.now(UTC))]


def check_disk(path: Path, gigabytes: float) -> Check:
    """Whether there is room for what a party keeps."""
    free = shutil.disk_usage(path).free / 1e9
    fix = "" if free >= gigabytes else f"Free some space: {gigabytes:g} GB are needed in {path}."
    return Check("disk of the folder", f"{free:.1f} GB free", fix)


def check_ports(home: Home, host: str, *ports: tuple[str, int]) -> list[Check]:
    """Whether each named port can be listened on; those of processes that are up are in use."""
    if processes(home.root / "state") is not None:
        return [Check(f"port {port}", f"{what}: up") for what, port in ports]
    return [_check_port(host, what, port) for what, port in ports]


def _check_permissions(home: Home) -> Check:
    """Secrets in the folder are for their owner alone."""
    secret = [home.root, *(home.root.rglob("private-key.pem"))]
    for path in secret:
        try:
            mode = path.stat().st_mode & 0o777
        except OSError as error:
            return Check("permissions", f"{path}: {error.strerror}", "Name a party's folder.")
        if mode & 0o077:
            fix = f"chmod go= {path}; if others may have read it, make a new key."
            return Check("permissions", f"{path} is open to others (mode {mode:04o})", fix)
    return Check("permissions", "for the owner alone")


def _check_certificate(certificate: Certificate, identity: Identity, now: datetime | None) -> Check:
    if certificate.identity != identity.public:
        fix = "Install the startup kit that belongs to this key."
        return Check("certificate", "it is of another key than the one beside it", fix)
    days = (certificate.not_after - (now or datetime.now(UTC))).days
    fix = "Ask the coordinator now: blindsight federation approve --renew."
    found = f"until {certificate.not_after:%Y-%m-%d}, {days} days"
    return Check("certificate", found, fix if days < _SOON_DAYS else "")


def _check_clock(date: str | None, now: datetime) -> Check:
    try:
        theirs = parsedate_to_datetime(date or "")
        seconds = (now - theirs).total_seconds()
    except (ValueError, TypeError):
        return Check("clock", "the coordinator does not say what time it has")
    if abs(seconds) <= _SKEW_SECONDS:
        return Check("clock", f"{abs(seconds):.0f} s from the coordinator's")
    side = "ahead of" if seconds > 0 else "behind"
    fix = "Set the clock by NTP (timedatectl set-ntp true); if it is right, tell the coordinator."
    return Check("clock", f"{abs(seconds) / 60:.0f} minutes {side} the coordinator's", fix)


def _check_port(host: str, what: str, port: int) -> Check:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        fix = f"Free {host}:{port} for {what}, or choose another in the settings."
        return Check(f"port {port}", f"{what}: {host}: {error.strerror}", fix)
    return Check(f"port {port}", f"{what}: free")
