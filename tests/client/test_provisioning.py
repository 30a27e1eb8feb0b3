"""An institution after its kit came: what is written, what stays, and what the doctor says."""

import os
from pathlib import Path

import pytest

from client.institution.policy import Policy
from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.installation import Installation, install
from client.institution.provisioning.preflight import examine_institution
from client.institution.provisioning.settings import InstitutionSettings
from client.searcher.preflight import examine_searcher
from protocol.errors import MalformedMessage, UsageError
from tests.protocol.parties import AUTHORITY, BOB, CLINIC, kit, modes, roster

FINGERPRINT = AUTHORITY.identity.public.fingerprint


@pytest.fixture
def home(tmp_path: Path) -> InstitutionFolder:
    made = InstitutionFolder(tmp_path / "clinic")
    made.prepare()
    made.folder("identity")
    made.credentials.private_key.write_bytes(CLINIC.private_pem())
    made.credentials.private_key.chmod(0o600)
    return made


def installed(home: InstitutionFolder, **changes: object) -> Installation:
    path = home.root.parent / "kit.tar"
    path.write_bytes(kit(**changes).to_bytes(AUTHORITY.identity))  # type: ignore[arg-type]
    return install(home.root, path, FINGERPRINT)


def test_what_is_installed_is_whole_and_closed_to_others(home: InstitutionFolder) -> None:
    before = os.umask(0)
    try:
        done = installed(home)
    finally:
        os.umask(before)
    assert (done.kept, done.moved) == ((), False)
    settings = InstitutionSettings.load(home.settings)
    assert (settings.name, settings.coordinator) == ("clinic", "fleet.example.org:8443")
    Policy.read(home.policy)
    assert f'"institution" "up" "--home" "{home.root}"' in home.unit.read_text()
    assert set(modes(home.root).values()) == {0o600, 0o700}


def test_what_was_edited_stays(home: InstitutionFolder) -> None:
    installed(home)
    home.policy.write_text(home.policy.read_text() + "# mine\n")
    edited = home.settings.read_text().replace('data = "data"', 'data = "/srv/data"')
    home.settings.write_text(edited)
    policy = home.policy.read_bytes()
    again = installed(home, serial=4, coordinator="new.example.org:8443")
    assert again.kept == ("institution.toml", "policy.toml") and again.moved
    assert home.policy.read_bytes() == policy and home.settings.read_text() == edited
    assert home.read_roster().serial == 4


def test_a_kit_that_is_refused_writes_no_settings(home: InstitutionFolder) -> None:
    with pytest.raises(MalformedMessage):
        installed(home, roster=roster("museum").to_json(AUTHORITY.identity))
    with pytest.raises(UsageError):
        install(home.root, home.root / "none", FINGERPRINT)
    assert not (home.settings.exists() or home.policy.exists() or home.unit.exists())


def problems(root: Path) -> dict[str, str]:
    return {one.name: f"{one.found} / {one.fix}" for one in examine_institution(root) if one.fix}


def test_the_preflight_finds_each_problem_beside_the_others(home: InstitutionFolder) -> None:
    installed(home, coordinator="127.0.0.1:1")
    found = problems(home.root)
    assert set(found) == {"coordinator", "data"}
    assert "does not answer" in found["coordinator"]
    (home.root / "data").mkdir()
    assert "is empty" in problems(home.root)["data"]
    (home.root / "data/a.png").touch()
    assert set(problems(home.root)) == {"coordinator"}
    home.policy.write_text("[training]\nmax-ruonds = 3\n")
    assert "max-ruonds" in problems(home.root)["policy"]
    home.settings.write_text("name = 3")
    assert "name" in problems(home.root)["settings"]


def test_an_empty_folder_is_a_list_of_problems_and_no_crash(tmp_path: Path) -> None:
    assert {"identity", "policy", "settings"} <= set(problems(tmp_path))
    assert problems(tmp_path / "none")
    assert any(one.fix for one in examine_searcher(tmp_path / "none"))


def test_a_searcher_that_is_ready(tmp_path: Path) -> None:
    from protocol.provisioning.enrolment import install_kit
    from protocol.provisioning.home import Home

    home = Home(tmp_path / "bob")
    home.prepare()
    home.folder("identity")
    home.credentials.private_key.write_bytes(BOB.private_pem())
    home.credentials.private_key.chmod(0o600)
    (tmp_path / "kit.tar").write_bytes(kit("bob").to_bytes(AUTHORITY.identity))
    install_kit(home, tmp_path / "kit.tar", "searcher", FINGERPRINT)
    assert not [one for one in examine_searcher(home.root) if one.fix]
