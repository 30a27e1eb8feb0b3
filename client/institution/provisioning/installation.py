"""From a startup kit to an institution that can be started: settings, policy, unit, folders.

Settings and policy are the institution's own. They are written once, by its own software, and never
again: what a person edited stays.
"""

from dataclasses import dataclass
from pathlib import Path

from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.settings import InstitutionSettings
from protocol.files import write_atomically
from protocol.provisioning.enrolment import RosterChange, install_kit
from protocol.provisioning.kit import Kit
from protocol.provisioning.unit import service_unit


@dataclass(frozen=True, slots=True)
class Installation:
    """What was installed; ``kept`` names the files that were there and stayed as they were."""

    kit: Kit
    change: RosterChange
    settings: InstitutionSettings
    kept: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether the kit names another coordinator than the settings, which were kept."""
        return self.settings.coordinator != self.kit.coordinator


def install(root: Path, kit_path: Path, fingerprint: str | None) -> Installation:
    """Verify and install a kit in the folder ``root``; may be done again, as for a renewal.

    Raises UsageError, MalformedMessage, StorageError, as ``install_kit`` does.
    """
    from client.institution.policy import TEMPLATE

    home = InstitutionFolder(root)
    kit, change = install_kit(home, kit_path, "institution", fingerprint)
    for name in ("state", "releases", "units"):
        home.folder(name)
    kept = tuple(one.name for one in (home.settings, home.policy) if one.exists())
    if home.settings.name not in kept:
        InstitutionSettings(name=kit.name, coordinator=kit.coordinator).save(home.settings)
    if home.policy.name not in kept:
        write_atomically(home.policy, TEMPLATE)
    description = f"Blindsight institution {kit.name} of {kit.federation}"
    write_atomically(home.unit, service_unit(description, root, "institution", "up"))
    return Installation(kit, change, InstitutionSettings.load(home.settings), kept)
