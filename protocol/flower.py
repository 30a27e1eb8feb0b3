"""How Flower's processes are started: without calling home, and with a secret between them.

Flower is not imported here. What is switched off, and why, is in docs/security.md: telemetry, the
check for updates, and the installation of an app's dependencies at run time, which is code from
outside beside the data.
"""

import os
import secrets
import sys
from pathlib import Path

from protocol.errors import ServiceError
from protocol.files import storage_error

_OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}
_DIRECT = "127.0.0.1,localhost"
_SECRET_BYTES = 48


def environment(home: Path) -> dict[str, str]:
    """The environment here, for a process of Flower's, with a Flower folder of its own.

    Loopback is reached without any proxy that the environment may name.
    """
    scripts = Path(sys.executable).parent
    direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), _DIRECT)))
    return {
        **os.environ,
        **_OFF,
        "FLWR_HOME": str(home),
        "NO_PROXY": direct,
        "no_proxy": direct,
        # An executor starts flwr-serverapp and flwr-clientapp by their names.
        "PATH": os.pathsep.join((str(scripts), os.environ.get("PATH", os.defpath))),
    }


def program(name: str) -> str:
    """The full path of one of Flower's commands, of this very installation. Raises ServiceError."""
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise ServiceError(f"{path} is missing", "Install Flower: pip install 'flwr==1.41.*'.")
    return str(path)


def shared_secret(path: Path) -> Path:
    """A file (mode 0600) with a fresh secret between a node or superlink and its executor.

    Whoever knows it may take their tasks; it is replaced at each start. Raises StorageError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
    except OSError as error:
        raise storage_error(path, error) from error
    return path
