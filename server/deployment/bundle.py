"""The code of a run as a file (Flower's App Bundle): the same checkout gives the same bytes.

Institutions approve a bundle by its SHA-256, and may build it themselves from a checkout that they
have read. So it must not depend on a machine: files are in order, have one date and are stored,
for two versions of zlib compress alike but not equally.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from flwr.cli.build import build_fab_from_files
from flwr.common.constant import FAB_DATE

from protocol.errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[2]
_ROOMS = ("server", "client", "protocol")
_BESIDE = ("pyproject.toml", ".gitignore", "LICENSE")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's bytes."""

    content: bytes

    @property
    def sha256(self) -> str:
        """What institutions list in their policy: 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


def build_bundle(checkout: Path = CHECKOUT) -> Bundle:
    """Build the bundle of a checkout of this project. Raises UsageError where there is none."""
    try:
        built, _ = build_fab_from_files(_files(checkout))
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{checkout} cannot be bundled: {error}",
            "A bundle is built from a checkout: install it with pip install -e FOLDER.",
        ) from error
    stored = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(built)) as source,
        zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name, FAB_DATE), source.read(name))
    return Bundle(stored.getvalue())


def _files(checkout: Path) -> dict[str, bytes | Path]:
    """What pyproject.toml may include; nothing else of a checkout is looked at."""
    found = [checkout / name for name in _BESIDE if (checkout / name).is_file()]
    for room in _ROOMS:
        found += [one for one in (checkout / room).rglob("*") if one.is_file()]
    return {one.relative_to(checkout).as_posix(): one for one in found if not one.is_symlink()}
