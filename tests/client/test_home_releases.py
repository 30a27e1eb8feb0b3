"""Institutions and searchers take the federation's signed release, and no other."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from client.institution.deployment import processes, scoring
from client.institution.deployment.place import Place
from client.institution.deployment.releases import check_served, find_release
from client.institution.index import Index
from client.institution.offer import make_offer, register
from client.institution.pairs import Pair, write_pairs
from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.settings import InstitutionSettings
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.directory import Directory, Listing
from client.searcher.profile import VARIABLE, Profile
from client.searcher.settings import SearcherSettings, settings_path
from protocol.errors import (
    MalformedMessage,
    PolicyError,
    ServiceError,
    StorageError,
    UsageError,
)
from protocol.identity import Identity
from protocol.model.release import Release, write_release
from protocol.model.signature import sign_release
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.pipe import coordinator_channel
from protocol.provisioning.home import Home
from simulations.cli import app
from tests.protocol.parties import AUTHORITY, BOB, kit
from tests.protocol.relay_parties import Lab

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
POLICY = """\
[search]
searchers = ["bob"]
queries-a-day = 5
min-items = 1
release = ["thumbnail", "caption"]
"""


@dataclass
class World:
    """A coordinator that serves at ``at``, with the homes of its members beside it."""

    lab: Lab
    root: Path
    at: str

    def home(self, name: str) -> Path:
        """The folder of a party as provisioning would leave it."""
        root = self.root / name
        if not root.exists():
            root.mkdir(mode=0o700)
            shutil.copytree(self.lab.root / name, root / "identity")
        shutil.copy(self.lab.root / "roster.json", root / "roster.json")
        return root

    def clinic(self) -> Path:
        root, (host, port) = self.home("clinic"), self.at.split(":")
        InstitutionSettings(name="clinic", coordinator=f"{host}:1", directory_port=int(port)).save(
            InstitutionFolder(root).settings
        )
        (root / "policy.toml").write_text(POLICY)
        (root / "data").mkdir(exist_ok=True)
        for i in range(6):
            Image.new("RGB", (16, 16), (40 * i, 90, 200 - 30 * i)).save(root / f"data/{i}.png")
        write_pairs(root / "data", [Pair(f"{i}.png", (f"colour {i}",)) for i in range(6)], None)
        return root

    def bob(self) -> Profile:
        profile = Profile.open(self.home("bob"))
        SearcherSettings(directory=self.at, timeout=20.0).save(settings_path(profile))
        return profile

    def release(self, seed: int, created: str) -> Release:
        """Sign a release and publish it."""
        made = write_release(self.lab.root / "releases", TwoTowers.initial(TINY, seed), {})
        manifest = made.path / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": created}))
        sign_release(made, Identity.load(self.lab.credentials("coordinator").private_key))
        return made

    @contextmanager
    def clinic_serves(self, root: Path) -> Iterator[None]:
        """The clinic's service, in the directory."""
        place = Place.open(root)
        settings = ServiceSettings(**place.service() | {"port": 0, "threads": 1})  # type: ignore[arg-type]
        with Service(settings) as service, coordinator_channel(
            self.at, place.credentials
        ) as channel:  # fmt: skip
            index = Index(settings.index)
            register(channel, make_offer("clinic", index, place.credentials, service.address, 1))
            index.close()
            yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    lab = Lab(tmp_path / "lab")
    with lab.coordinator() as at:
        yield World(lab, tmp_path, at)


def ran(*words: object) -> dict[str, Any]:
    """A command's data."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["data"]
    return found


def refused(*words: object) -> tuple[str, str]:
    """A command's error code and message."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code != 0
    found = json.loads(done.stdout)
    return found["error_code"], f"{found['message']} {found['hint']}"


def test_an_index_is_made_with_the_newest_release_and_kept_in_step(world: World) -> None:
    home = world.clinic()
    assert refused("index", "build", "--home", home)[0] == "service"
    old = world.release(1, "2026-01-01T00:00:00+00:00")
    made = ran("index", "build", "--home", home)
    assert (made["release_id"], made["items"]) == (old.release_id, 6)
    assert ran("index", "info", "--home", home)["release_id"] == old.release_id
    assert ran("index", "verify", "--home", home)["items"] == 6
    new = world.release(2, "2026-02-01T00:00:00+00:00")
    # Adding and searching are of the index's own model, whatever is newer.
    ran("index", "remove", "3.png", "--home", home)
    assert ran("index", "add", "--home", home)["added"] == 1
    found = ran("index", "search", "colour", "--home", home)["found"]
    assert len(found) == 6 and Path(found[0]["file_name"]).parent == home / "data"
    assert not (home / "releases" / new.release_id).exists()
    check_served(Place.open(home))
    updated = ran("index", "update", "--home", home)
    assert (updated["release_id"], updated["added"]) == (new.release_id, 6)
    check_served(Place.open(home))
    # The index alone is enough of a home for what needs no model.
    assert ran("index", "info", "--index", home / "index")["items"] == 6


def test_a_release_that_is_named_is_the_federations_too(world: World, tmp_path: Path) -> None:
    home = world.clinic()
    old = world.release(1, "2026-01-01T00:00:00+00:00")
    world.release(2, "2026-02-01T00:00:00+00:00")
    made = ran("index", "build", "--home", home, "--release", old.release_id)
    assert made["release_id"] == old.release_id
    assert (home / "releases" / old.release_id / "signature.json").exists()
    made = ran("index", "build", "--home", home, "--release", old.path)
    assert made["release_id"] == old.release_id
    stranger = write_release(tmp_path / "mine", TwoTowers.initial(TINY, 9), {})
    code, said = refused("index", "build", "--home", home, "--release", stranger.path)
    assert code == "storage" and "signature.json" in said
    sign_release(stranger, Identity.load(world.lab.credentials("clinic").private_key))
    code, said = refused("index", "build", "--home", home, "--release", stranger.path)
    assert code == "storage" and "no coordinator of this federation" in said
    assert refused("index", "build", "--home", home, "--release", "f" * 16)[0] == "release_mismatch"
    # Without a home it is local work, as ever.
    words = ("index", "build", "--data", home / "data", "--index", tmp_path / "local")
    assert ran(*words, "--release", stranger.path)["release_id"] == stranger.release_id
    assert refused(*words) == (
        "usage", "--release is missing Give it, or --home with an institution's folder.",
    )  # fmt: skip
    assert refused("index", "info")[0] == "usage"


def test_without_the_coordinator_the_newest_here_serves(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.clinic()
    old = world.release(1, "2026-01-01T00:00:00+00:00")
    place = Place.open(home)
    assert find_release(place).release_id == old.release_id
    away = InstitutionSettings.load(place.settings).model_copy(update={"directory_port": 1})
    away.save(place.settings)
    place = Place.open(home)
    assert find_release(place).release_id == old.release_id
    assert f"the newest release here is {old.release_id}" in capsys.readouterr().err
    assert find_release(place, old.release_id).release_id == old.release_id
    with pytest.raises(ServiceError, match="cannot be reached"):
        find_release(place, "f" * 16)
    shutil.rmtree(home / "releases")
    with pytest.raises(ServiceError, match="cannot be reached"):
        find_release(place)


def test_an_institution_serves_no_model_that_the_federation_has_not_signed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = world.clinic()
    check_served(Place.open(home))  # no index, nothing to serve
    foreign = write_release(tmp_path / "mine", TwoTowers.initial(TINY, 9), {})
    words = ("--data", home / "data", "--index", home / "index", "--release", foreign.path)
    ran("index", "build", *words)
    place = Place.open(home)
    with pytest.raises(PolicyError, match=f"release {foreign.release_id}, of which no signed") as e:
        processes.up(place, lambda: None)
    assert f"blindsight index update --home {home}" in e.value.hint
    # Also where the index came after the start: its service is a process of its own.
    told = json.dumps(place.service(), default=str)
    monkeypatch.setattr(scoring.sys, "argv", ["scoring", told])
    monkeypatch.setattr(scoring, "serve", lambda _: pytest.fail("it was served"))
    with pytest.raises(PolicyError, match="no signed copy"):
        scoring.main()
    # A copy whose signer is somebody else, one that was changed, and one under another's name.
    copy = home / "releases" / foreign.release_id
    shutil.copytree(foreign.path, copy)
    sign_release(Release(copy, *_rest(foreign)), Identity.ephemeral())
    with pytest.raises(PolicyError, match="no coordinator of this federation"):
        check_served(place)
    good = world.release(1, "2026-01-01T00:00:00+00:00")
    shutil.rmtree(copy)
    shutil.copytree(good.path, copy)
    with pytest.raises(PolicyError, match=f"holds release {good.release_id}"):
        check_served(place)
    assert ran("index", "update", "--home", home)["release_id"] == good.release_id
    check_served(place)
    served: list[ServiceSettings] = []
    monkeypatch.setattr(scoring, "serve", served.append)
    scoring.main()
    assert served[0].home == home
    model = home / "releases" / good.release_id / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(PolicyError, match="SHA-256"):
        check_served(place)


def _rest(one: Release) -> tuple[Any, ...]:
    return one.release_id, one.settings, one.sha256, one.size, one.metrics, one.created


def test_setup_makes_a_searcher_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bob = world.bob()
    monkeypatch.setenv(VARIABLE, str(bob.root))
    assert refused("searcher", "setup")[0] == "service"
    with pytest.raises(UsageError, match="no release") as caught:
        Profile.open().release()
    assert "blindsight searcher setup" in caught.value.hint
    release = world.release(1, "2026-01-01T00:00:00+00:00")
    assert ran("searcher", "setup")["institutions"] == []
    assert Profile.open().release().release_id == release.release_id
    home = world.clinic()
    ran("index", "build", "--home", home)
    with world.clinic_serves(home):
        found = ran("searcher", "setup")
        assert found == {
            "release_id": release.release_id,
            "institutions": ["clinic"],
            "answered": "clinic",
            "questions_left": 4,
            "refused": {},
        }
        said = CliRunner().invoke(app, ["searcher", "setup"]).stdout
        assert "all is well" in said and "clinic serves 6 items" in said
        searched = ran("search", "colour 3", "--home", bob.root, "-k", "3")
        assert len(searched["results"]) == 3
        # A policy that does not name bob.
        (home / "policy.new").write_text(POLICY.replace('"bob"', '"eve"'))
        (home / "policy.new").replace(home / "policy.toml")
        code, said = refused("searcher", "setup")
        assert code == "service" and "not clinic: " in said
    code, said = refused("searcher", "setup")
    assert code == "service" and "clinic" in said and "cannot be reached" in said


def test_what_the_directory_lies_of_is_a_note(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = world.bob()
    lie = MalformedMessage("the directory says another key")
    listing = Listing((), {"museum": lie})
    monkeypatch.setattr(Directory, "listing", lambda _: listing)
    assert bob.connections() == ([], {"museum": lie})
    assert bob.connections(["museum"]) == ([], {"museum": lie})
    with pytest.raises(UsageError, match="does not list clinic"):
        bob.connections(["clinic", "museum"])


def test_where_a_profile_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert Profile.open().root == Path.home() / ".config/blindsight"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert Profile.open().root == tmp_path / "config/blindsight"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert Profile.open().root == tmp_path / "mine"
    assert Profile.open(tmp_path / "other").root == tmp_path / "other"
    with pytest.raises(UsageError, match="no searcher is installed"):
        _ = Profile.open().settings
    code, said = refused("searcher", "setup", "--directory", "127.0.0.1:1")
    assert code == "usage" and "no federation yet" in said
    assert not (tmp_path / "mine").exists()


def test_the_directory_can_be_named(world: World) -> None:
    bob = world.bob()
    elsewhere = ("--home", bob.root, "--directory")
    assert refused("searcher", "setup", *elsewhere, "127.0.0.1:1")[0] == "service"
    assert bob.settings == SearcherSettings(directory="127.0.0.1:1", timeout=20.0)
    assert refused("searcher", "setup", *elsewhere, "nowhere")[0] == "usage"
    assert bob.settings.directory == "127.0.0.1:1"
    settings_path(bob).unlink()
    release = world.release(1, "2026-01-01T00:00:00+00:00")
    found = ran("searcher", "setup", *elsewhere, world.at)
    assert found["release_id"] == release.release_id
    assert bob.settings.directory == world.at


def test_setup_installs_the_kit_that_came(tmp_path: Path) -> None:
    home = Home(tmp_path / "bob")
    home.prepare()
    home.folder("identity")
    home.credentials.private_key.write_bytes(BOB.private_pem())
    home.credentials.private_key.chmod(0o600)
    (tmp_path / "kit.tar").write_bytes(kit("bob").to_bytes(AUTHORITY.identity))
    words = ("searcher", "setup", tmp_path / "kit.tar", "--home", home.root)
    code, said = refused(*words, "--fingerprint", "0" * 64)
    assert code == "usage" and "not the one given" in said and not home.roster.exists()
    told = ("--fingerprint", AUTHORITY.identity.public.fingerprint, "--directory", "127.0.0.1:1")
    code, said = refused(*words, *told)
    assert code == "service" and "127.0.0.1:1 cannot be reached" in said
    profile = Profile.open(home.root)
    assert profile.settings.directory == "127.0.0.1:1"
    assert profile.read_roster().named("bob") is not None


def test_a_damaged_release_is_not_searched_with(world: World) -> None:
    bob = world.bob()
    release = world.release(1, "2026-01-01T00:00:00+00:00")
    found = bob.fetch_release()
    (found.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        bob.release()
    assert bob.fetch_release() == found
    assert bob.release().release_id == release.release_id
    world.lab.enrol("coordinator", "coordinator", "next")
    world.home("bob")
    with pytest.raises(UsageError, match="no release"):  # who signed it has left
        bob.release()
    assert isinstance(bob, Home) and os.access(bob.releases, os.R_OK)
