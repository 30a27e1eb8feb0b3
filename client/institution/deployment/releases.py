"""The models of an institution's home: those that the federation's coordinator has signed.

Each is in HOME/releases, where it came from the coordinator and was checked.
"""

from pathlib import Path

from client.institution.deployment.place import Place
from client.institution.index import Index
from protocol.directory_wire import RELEASE_ID
from protocol.errors import PolicyError, ServiceError, StorageError
from protocol.model.fetching import fetch_release
from protocol.model.release import Release
from protocol.model.signature import read_signed_release, signed_releases
from protocol.terminal import say


def find_release(place: Place, named: str | None = None) -> Release:
    """The release that is ``named`` by id or by folder, else the newest; fetched if need be.

    If the coordinator cannot be asked for its newest, the newest that is here serves, and that is
    said. Raises what ``fetch_release`` and ``read_signed_release`` raise.
    """
    roster = place.read_roster()
    if named is not None and not RELEASE_ID.fullmatch(named):
        return read_signed_release(Path(named), roster)
    try:
        return fetch_release(place.directory, place.credentials, roster, place.releases, named)
    except ServiceError as error:
        here = signed_releases(place.releases, roster)
        if named is not None or not here:
            raise
        say(f"{error.message}; the newest release here is {here[0].release_id}")
        return read_signed_release(here[0].path, roster)


def indexed_release(place: Place) -> str | None:
    """The id of the release that the index was made with; None where there is no usable index."""
    if place.index is None:
        return None
    try:
        index = Index(place.index)
    except StorageError:
        return None
    index.close()
    return index.manifest.release_id


def check_served(place: Place) -> None:
    """Raise PolicyError unless the index is of a release that the federation's coordinator signed.

    An index that cannot be used is left to the service, which says why; training needs none.
    """
    release_id = indexed_release(place)
    if release_id is None:
        return
    path = place.releases / release_id
    try:
        found = read_signed_release(path, place.read_roster())
        if found.release_id == release_id:
            return
        why = f"{path} holds release {found.release_id}"
    except StorageError as error:
        why = error.message
    raise PolicyError(
        f"the index is of release {release_id}, of which no signed copy is in {place.releases}: "
        f"{why}",
        f"Fetch the newest and bring the index in step with it: blindsight index update --home "
        f"{place.root}",
    )
