"""A systemd unit that keeps one of our commands running, confined to the party's folder."""

import getpass
import sys
from pathlib import Path

from protocol.errors import UsageError


def service_unit(description: str, home: Path, *command: str) -> str:
    """The text of a unit that runs ``blindsight COMMAND --home HOME`` as whoever calls this.

    Written where it runs: a unit is a command, and none is taken from another party.
    """
    home = home.resolve()
    program = Path(sys.executable).with_name("blindsight")
    words = (str(program), *command, "--home", str(home))
    start = " ".join(_quoted(word).replace("$", "$$") for word in words)
    return f"""\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
User={getpass.getuser()}
ExecStart={start}
# A node that ended uncleanly is refused by the coordinator for about a minute.
Restart=always
RestartSec=20
TimeoutStopSec=60
UMask=0077
Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
Environment=HF_HUB_OFFLINE=1 ORT_DISABLE_TELEMETRY=1
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
ReadWritePaths={_quoted(str(home))}

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str) -> str:
    if not word.isprintable():
        raise UsageError(f"{word!r} cannot stand in a systemd unit", "Choose a plainer path.")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word}"'
