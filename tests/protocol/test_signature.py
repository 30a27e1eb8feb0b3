"""A signed release: nothing but what a coordinator of the federation signed is used."""

import json
from pathlib import Path

import pytest

from protocol.errors import StorageError
from protocol.identity import Identity
from protocol.model.release import MANIFEST, MODEL, Release, write_release
from protocol.model.signature import SIGNATURE, read_signed_release, sign_release
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.roster import Member, Roster

COORDINATOR, CLINIC = Identity.ephemeral(), Identity.ephemeral()
TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
ROSTER = Roster(
    "f",
    1,
    (
        Member("hub", "coordinator", COORDINATOR.public),
        Member("clinic", "institution", CLINIC.public),
    ),
)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    model = TwoTowers.initial(TINY, 0)
    return write_release(tmp_path, model, {"rounds": 1.0})


def test_a_signed_release_is_read(release: Release) -> None:
    sign_release(release, COORDINATOR)
    assert read_signed_release(release.path, ROSTER) == release


def test_what_is_not_signed_by_a_coordinator_is_refused(release: Release) -> None:
    with pytest.raises(StorageError, match=SIGNATURE):
        read_signed_release(release.path, ROSTER)
    for other in (CLINIC, Identity.ephemeral()):
        sign_release(release, other)
        with pytest.raises(StorageError, match="no coordinator"):
            read_signed_release(release.path, ROSTER)


@pytest.mark.parametrize("name", [MANIFEST, MODEL])
def test_a_change_after_the_signature_is_noticed(release: Release, name: str) -> None:
    sign_release(release, COORDINATOR)
    path = release.path / name
    path.write_bytes(path.read_bytes()[:-2] + b" \n")
    with pytest.raises(StorageError):
        read_signed_release(release.path, ROSTER)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"public_key": "zz", "signature": ""}', "7"])
def test_a_file_that_is_no_signature_is_refused(release: Release, content: str) -> None:
    (release.path / SIGNATURE).write_text(content)
    with pytest.raises(StorageError, match="no signature"):
        read_signed_release(release.path, ROSTER)


def test_a_signature_of_another_manifest_is_refused(release: Release) -> None:
    sign_release(release, COORDINATOR)
    found = json.loads((release.path / SIGNATURE).read_text())
    found["signature"] = COORDINATOR.sign("roster", b"").hex()
    (release.path / SIGNATURE).write_text(json.dumps(found))
    with pytest.raises(StorageError, match="not one of its manifest"):
        read_signed_release(release.path, ROSTER)
