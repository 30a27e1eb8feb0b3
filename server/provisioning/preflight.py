"""What a coordinator checks before ``coordinator up``: its folder, nginx, ports."""

import os
import shutil
from pathlib import Path

from protocol.errors import BlindsightError
from protocol.identity import Identity
from protocol.provisioning.preflight import (
    Check,
    check_disk,
    check_identity,
    check_ports,
    refused,
)
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.proxy import nginx_configuration

# Objects of a round lie in the superlink's database, and files of SQLite never shrink.
_DISK_GB = 5.0


def examine_coordinator(root: Path) -> list[Check]:
    """Every check of a coordinator; a folder without a federation is one that failed."""
    home = CoordinatorHome(root)
    try:
        federation = Federation(home)
    except BlindsightError as error:
        return [refused("federation", error)]
    settings = federation.settings
    return [
        *check_identity(home),
        _check_authority(federation),
        _check_proxy(federation),
        check_disk(root, _DISK_GB),
        *check_ports(home, settings.listen, ("nginx", settings.port)),
        *check_ports(home, settings.listen, ("the directory", settings.directory_port)),
        *check_ports(home, "127.0.0.1", ("the superlink", settings.superlink_port)),
    ]


def _check_authority(federation: Federation) -> Check:
    try:
        federation.authority_certificate.check_authority()
        federation.roster()
        protected = Identity.is_encrypted(federation.home.authority_key)
        if not protected:  # nobody is asked for a passphrase here
            assert federation.authority
    except BlindsightError as error:
        return refused("authority", error)
    keys = "its key has a passphrase" if protected else "its key has no passphrase"
    return Check("authority", f"{federation.public.fingerprint}; {keys}")


def _check_proxy(federation: Federation) -> Check:
    searched = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    if shutil.which("nginx", path=searched) is None:
        fix = "Install it: apt install nginx-light (Debian, Ubuntu) or dnf install nginx (Fedora)."
        return Check("nginx", "not installed", fix)
    try:
        same = federation.home.proxy.read_text() == nginx_configuration(federation.settings)
    except (OSError, UnicodeError):
        same = False
    fix = "Write it again: blindsight federation renew."
    return Check("nginx", *(("as federation.toml has it",) if same else ("changed", fix)))
