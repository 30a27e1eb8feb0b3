"""What an institution checks before ``institution up``: its folder, and what it leads to."""

from pathlib import Path

from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.settings import InstitutionSettings
from protocol.errors import BlindsightError
from protocol.hosts import parse_endpoint
from protocol.provisioning.preflight import (
    Check,
    check_coordinator,
    check_disk,
    check_identity,
    check_ports,
    refused,
)

# Features of frozen encoders, the index and the node's own state.
_DISK_GB = 2.0


def examine_institution(root: Path) -> list[Check]:
    """Every check of an institution; each works without the others."""
    home = InstitutionFolder(root)
    checks = [*check_identity(home), _check_policy(home)]
    if root.is_dir():
        checks.append(check_disk(root, _DISK_GB))
    try:
        settings = InstitutionSettings.load(home.settings)
    except BlindsightError as error:
        return [*checks, refused("settings", error)]
    host, port = parse_endpoint(settings.coordinator)
    return [
        *checks,
        *check_coordinator(home.credentials.authority, host, port),
        _check_data(root / settings.data, home.settings),
        *_check_index(root),
        *check_ports(home, "127.0.0.1", ("the training node", settings.node_port)),
        *check_ports(home, settings.service_host, ("the search service", settings.service_port)),
    ]


def _check_policy(home: InstitutionFolder) -> Check:
    from client.institution.policy import Policy

    try:
        Policy.read(home.policy)
    except BlindsightError as error:
        return refused("policy", error)
    return Check("policy", str(home.policy))


def _check_index(root: Path) -> list[Check]:
    """Whether what will be searched was made with a release that the federation has signed."""
    from client.institution.deployment.place import Place
    from client.institution.deployment.releases import check_served, indexed_release

    try:
        place = Place.open(root)
        check_served(place)
        release_id = indexed_release(place)
    except BlindsightError as error:
        return [refused("index", error)]
    return [Check("index", f"of release {release_id}, signed")] if release_id else []


def _check_data(data: Path, settings: Path) -> Check:
    try:
        found = any(data.iterdir())
    except OSError as error:
        fix = f"Put images and captions there, or name their folder in {settings}."
        return Check("data", f"{data}: {error.strerror}", fix)
    fix = "" if found else "Put images and captions there; see: blindsight data inspect."
    return Check("data", f"{data}{'' if found else ' is empty'}", fix)
