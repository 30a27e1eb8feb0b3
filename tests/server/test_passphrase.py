"""The authority's key with a passphrase: who is asked for it, and what works without."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.errors import UsageError
from protocol.provisioning.certificate_request import CertificateRequest
from server.provisioning import passphrase
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.passphrase import Passphrase
from server.provisioning.settings import FederationSettings
from simulations.cli import app
from tests.protocol.parties import CLINIC

SETTINGS = FederationSettings(name="lab", host="127.0.0.1")


def test_a_key_with_a_passphrase_signs_for_who_knows_it_and_shows_the_rest_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    file = tmp_path / "passphrase"
    file.write_text("six words that do not belong together\nnot this line\n")
    home, known = CoordinatorHome(tmp_path / "coordinator"), Passphrase(file)
    federation = Federation.create(home, SETTINGS, known)
    assert b"ENCRYPTED" in home.authority_key.read_bytes()
    request = CertificateRequest.make(CLINIC, "clinic", ())
    assert Federation(home, known).approve(request, "institution").serial == 2

    stranger = Federation(home)  # tests have no terminal
    assert [one.name for one in stranger.roster().members] == ["clinic", "coordinator"]
    assert stranger.public == federation.public
    with pytest.raises(UsageError, match="none was given"):
        stranger.revoke("clinic")
    file.write_text("another one\n")
    with pytest.raises(UsageError, match="another one"):
        Federation(home, known).revoke("clinic")
    monkeypatch.setenv(passphrase.VARIABLE, "six words that do not belong together")
    assert Federation(home).revoke("clinic")[1].serial == 3
    events = [one.event for one in home.audit.read()]
    assert events.count("member-revoked") == 1 and Federation(home).roster().serial == 3


def test_the_commands_that_sign_ask_for_it_and_no_other(tmp_path: Path) -> None:
    file, home = tmp_path / "passphrase", tmp_path / "coordinator"
    file.write_text("six words that do not belong together")

    def run(*words: object) -> int:
        return CliRunner().invoke(app, ["federation", *map(str, words)]).exit_code

    new = ("init", "--name", "lab", "--host", "127.0.0.1", "--home", home)
    assert run(*new, "--passphrase-file", file) == 0
    assert run("roster", "--home", home) == 0
    assert run("renew", "--home", home) == 2
    assert run("renew", "--home", home, "--passphrase-file", file) == 0


@pytest.mark.parametrize("said", ["", "short", "x" * 1024])
def test_a_passphrase_that_protects_nothing_is_refused(tmp_path: Path, said: str) -> None:
    file = tmp_path / "passphrase"
    file.write_text(said)
    home = CoordinatorHome(tmp_path / "coordinator")
    with pytest.raises(UsageError, match="8 to 1,023 bytes"):
        Federation.create(home, SETTINGS, Passphrase(file))
    assert not home.authority_key.exists()
