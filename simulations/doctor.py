"""Checks a machine before it is trusted with anything: each problem with its fix."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from protocol.errors import BlindsightError, UsageError
from protocol.provisioning.preflight import Check
from protocol.terminal import Outcome

_PACKAGES = {
    "flwr": "1.41",
    "torch": "2.14",
    "torchvision": "0.29",
    "transformers": "5",
    "tenseal": "0.3.18",
    "faiss-cpu": "1.15",
    "grpcio": "1.81",
    "numba": "0.68",
    "numpy": "2",
    "cryptography": "50",
}
_INSTALL = "Run make demo, or: pip install -c constraints.txt -e ."
_DISK_GB, _MEMORY_GB = 2.0, 3.0


class UnhealthyMachine(BlindsightError):
    """At least one check failed."""

    code = "unhealthy"
    exit_code = 7


def examine(role: str | None = None, home: Path | None = None) -> Outcome:
    """Run every check of this machine, and of the party whose folder ``home`` is.

    Raises :class:`UnhealthyMachine` if one fails, UsageError for an unknown role.
    """
    party = _party(role, home)
    checks = [check for look in _LOOKS for check in look()] + party()
    lines = [
        f"{'ok ' if not one.fix else 'BAD'}  {one.name:<22} {one.found}"
        + (f"\n       what to do: {one.fix}" if one.fix else "")
        for one in checks
    ]
    bad = [one for one in checks if one.fix]
    if bad:
        raise UnhealthyMachine("\n".join([f"{len(bad)} problems", *lines]), bad[0].fix)
    data = {"checks": [{"name": one.name, "found": one.found} for one in checks]}
    return Outcome("\n".join(lines), data)


def _party(role: str | None, home: Path | None) -> Callable[[], list[Check]]:
    """The checks of a role, from its own room."""
    if role is None and home is None:
        return list
    if home is None or role not in _ROLES:
        raise UsageError(
            f"expected --role {', '.join(_ROLES)} together with --home DIR",
            "Name the role and its folder, or neither.",
        )
    return lambda: _ROLES[role](home)


def _coordinator(home: Path) -> list[Check]:
    from server.provisioning.preflight import examine_coordinator

    return examine_coordinator(home)


def _institution(home: Path) -> list[Check]:
    from client.institution.provisioning.preflight import examine_institution

    return examine_institution(home)


def _searcher(home: Path) -> list[Check]:
    from client.searcher.preflight import examine_searcher

    return examine_searcher(home)


_ROLES = {"coordinator": _coordinator, "institution": _institution, "searcher": _searcher}


def _python() -> list[Check]:
    good = sys.version_info >= (3, 11)
    return [Check("python", platform.python_version(), "" if good else "Install 3.11 or later.")]


def _packages() -> list[Check]:
    checks = []
    for name, least in _PACKAGES.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "not installed", _INSTALL))
            continue
        good = _numbers(found) >= _numbers(least)
        checks.append(Check(name, found, "" if good else f"{least} or later. {_INSTALL}"))
    return checks


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]


def _processor() -> list[Check]:
    if platform.system() != "Linux":
        fix = "Search needs Linux: keys pass through memory files (memfd) that others lack."
        return [Check("system", platform.system(), fix)]
    flags = Path("/proc/cpuinfo").read_text().split()
    wide = [name for name in ("avx2", "avx512f") if name in flags]
    cores = psutil.cpu_count() or 1
    found = f"{platform.machine()}, {cores} cores, {', '.join(wide) or 'no AVX2: slower'}"
    return [Check("processor", found)]


def _encryption() -> list[Check]:
    """Encrypt, score and decrypt a known question; compare with the exact inner products."""
    from client.institution.blocks import pack_block
    from client.institution.selfcheck import ask_here
    from client.searcher.ckks import SealScheme
    from protocol.packing import Layout
    from protocol.params import PRESETS

    checks = []
    for preset in PRESETS.values():
        layout = Layout(preset, 8, 4, 3)
        items = np.array([[0.6, 0.8, 0, 0, 0, 0, 0, 0], [0] * 7 + [1], [-1] + [0] * 7], np.float32)
        blocks = pack_block(layout, items)[None]
        scores = ask_here(layout, blocks, SealScheme(), items[0])
        error = np.abs(scores[0, :3] - [1.0, 0.0, -0.6]).max()
        fix = "" if error < 1e-4 else "Do not use this machine: its arithmetic is wrong."
        checks.append(Check(f"encryption, {preset.name}", f"largest error {error:.1e}", fix))
    return checks


def _disk() -> list[Check]:
    free = shutil.disk_usage(".").free / 1e9
    fix = "" if free > _DISK_GB else f"Free some space: {_DISK_GB:.0f} GB are needed."
    return [Check("disk", f"{free:.1f} GB free", fix)]


def _memory() -> list[Check]:
    free = psutil.virtual_memory().available / 1e9
    fix = "" if free > _MEMORY_GB else f"Close something: {_MEMORY_GB:.0f} GB are needed."
    return [Check("memory", f"{free:.1f} GB available", fix)]


_LOOKS: tuple[Callable[[], list[Check]], ...] = (
    _python,
    _packages,
    _processor,
    _encryption,
    _disk,
    _memory,
)
