"""A searcher's folder: whom it believes, where the directory is, and the model it embeds with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from client.searcher.settings import SearcherSettings, read_settings
from protocol.errors import BlindsightError, UsageError
from protocol.provisioning.home import Home

if TYPE_CHECKING:
    from client.searcher.directory import Directory
    from client.searcher.remote import RemoteInstitution
    from protocol.model.release import Release

VARIABLE = "BLINDSIGHT_PROFILE"


@dataclass(frozen=True)
class Profile(Home):
    """The folder of a searcher; ``blindsight searcher setup`` makes it ready."""

    @classmethod
    def open(cls, root: Path | None = None) -> Self:
        """The folder ``root``; else $BLINDSIGHT_PROFILE, else blindsight in the user's settings.

        Those are in $XDG_CONFIG_HOME, or in ~/.config. Nothing is read yet.
        """
        if root is None:
            settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
            root = Path(os.environ.get(VARIABLE) or settings / "blindsight")
        return cls(root)

    @property
    def settings(self) -> SearcherSettings:
        """What searcher.toml says. Raises UsageError where no kit is installed."""
        return read_settings(self)

    @property
    def releases(self) -> Path:
        """The models that came from the coordinator, each in a folder of its id."""
        return self.root / "releases"

    def directory(self) -> "Directory":
        """The directory as this searcher uses it. Raises UsageError, MalformedMessage."""
        from client.searcher.directory import Directory

        return Directory(self.settings.directory, self.credentials, self.read_roster())

    def release(self) -> "Release":
        """The newest release here that a coordinator of the roster has signed, checked anew.

        Raises UsageError if there is none, StorageError if it is damaged.
        """
        from protocol.model.signature import read_signed_release, signed_releases

        roster = self.read_roster()
        found = signed_releases(self.releases, roster)
        if not found:
            raise UsageError(
                f"there is no release in {self.releases} that the federation has signed",
                f"Fetch it: blindsight searcher setup --home {self.root}",
            )
        return read_signed_release(found[0].path, roster)

    def fetch_release(self) -> "Release":
        """Have the coordinator's newest release here. Raises what ``fetch_release`` raises."""
        from protocol.model.fetching import fetch_release

        address, roster = self.settings.directory, self.read_roster()
        return fetch_release(address, self.credentials, roster, self.releases)

    def connections(
        self, names: Sequence[str] = ()
    ) -> tuple[list["RemoteInstitution"], dict[str, BlindsightError]]:
        """Connections to these institutions, or to all that the directory lists.

        Those that the roster does not know as they are listed are notes, by name. Raises
        UsageError for a name that is not listed, ServiceError if the directory does not answer.
        """
        from client.searcher.directory import chosen

        directory, seconds = self.directory(), self.settings.timeout
        listing = directory.listing()
        asked = [name for name in names if name not in listing.notes]
        offers = chosen(listing.offers, asked) if asked or not names else []
        notes = {name: note for name, note in listing.notes.items() if not names or name in names}
        return [directory.connect(offer, seconds) for offer in offers], notes
