"""Joining a federation: kits and rosters are hostile bytes until they are verified."""

import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BlindsightError, MalformedMessage, StorageError, UsageError
from protocol.identity import Identity
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.enrolment import install_kit, request_certificate, update_roster
from protocol.provisioning.fingerprint import check_fingerprint
from protocol.provisioning.home import Home
from protocol.provisioning.kit import _PURPOSE, MAX_BYTES, Kit, _digest, _files, _tar
from tests.protocol.parties import (
    AUTHORITY,
    CLINIC,
    DAY,
    MUSEUM,
    STRANGER,
    certificate,
    full_disk,
    kit,
    modes,
    roster,
)

GOOD = kit().to_bytes(AUTHORITY.identity)
FINGERPRINT = AUTHORITY.identity.public.fingerprint


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The clinic's folder, as its request left it."""
    made = Home(tmp_path / "clinic")
    made.prepare()
    made.folder("identity")
    made.credentials.private_key.write_bytes(CLINIC.private_pem())
    made.credentials.private_key.chmod(0o600)
    return made


@pytest.fixture
def sent(tmp_path: Path) -> Callable[[bytes], Path]:
    """A file as it came."""

    def write(content: bytes) -> Path:
        (tmp_path / "came").write_bytes(content)
        return tmp_path / "came"

    return write


Sent = Callable[[bytes], Path]


# --- the kit


def test_a_kit_is_a_plain_tar_of_public_things_and_comes_back_as_it_was() -> None:
    found = Kit.from_bytes(GOOD)
    assert (found.name, found.role, found.coordinator) == (
        "clinic", "institution", "fleet.example.org:8443",
    )  # fmt: skip
    assert found.read_roster().serial == 3
    with tarfile.open(fileobj=io.BytesIO(GOOD)) as tar:
        names = tar.getnames()
    assert names == ["kit.json", "authority.pem", "certificate.pem", "roster.json", "signature"]
    assert b"PRIVATE" not in GOOD
    assert _tar(_files(GOOD)) == GOOD


def forged(**changes: bytes) -> bytes:
    """A kit with other files, signed by the authority itself."""
    files = {name: content for name, content in _files(GOOD).items() if name != "signature"}
    files |= {name.replace("_", "."): content for name, content in changes.items()}
    return _tar(files | {"signature": AUTHORITY.identity.sign(_PURPOSE, _digest(files))})


def card(**changes: object) -> bytes:
    return json.dumps(json.loads(_files(GOOD)["kit.json"]) | changes).encode()


def tarred(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def member(name: str, size: int, **changes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o600
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kit.json", bytes(1 << 24))
    return made.getvalue()


PARTS = [(member(name, len(content)), content) for name, content in _files(GOOD).items()]
CARD = PARTS[0][1]
EVIL = (member("../../etc/passwd", 1), b"x")
PAX = {"path": "kit.json"}
BAD_FILES = {
    "nothing": b"",
    "one too many": tarred(*PARTS, EVIL),
    "an evil name": tarred(EVIL, *PARTS),
    "one missing": tarred(*PARTS[:-1]),
    "twice": tarred(PARTS[0], *PARTS),
    "another order": tarred(*reversed(PARTS)),
    "executable": tarred((member("kit.json", len(CARD), mode=0o755), CARD), *PARTS[1:]),
    "a link": tarred((member("kit.json", 0, type=tarfile.SYMTYPE, linkname="/x"), b""), *PARTS[1:]),
    "long names": tarred((member("x" * 300, 1), b"x"), *PARTS, form=tarfile.GNU_FORMAT),
    "extended headers": tarred((member("x", 1, pax_headers=PAX), b"x"), form=tarfile.PAX_FORMAT),
    "huge": tarred((member("kit.json", 1 << 20), bytes(1 << 20)), *PARTS[1:]),
    "said to be huge": GOOD[:124] + b"77777777777" + GOOD[135:],
    "said to be negative": GOOD[:124] + b"-0000000001" + GOOD[135:],
    "base 256": GOOD[:124] + b"\x80" + b"\xff" * 10 + GOOD[135:],
    "cut": GOOD[:-512],
    "more behind": GOOD + bytes(512),
    "a zip bomb": zipped(),
    "too large": bytes(MAX_BYTES + 1),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_kit_is_refused(what: str) -> None:
    with pytest.raises(MalformedMessage, match="startup kit"):
        Kit.from_bytes(BAD_FILES[what])


BAD_KITS = {
    "another name": forged(kit_json=card(name="museum")),
    "another role": forged(kit_json=card(role="searcher")),
    "an unknown role": forged(kit_json=card(role="king")),
    "another federation": forged(kit_json=card(federation="lac")),
    "another format": forged(kit_json=card(format=2)),
    "an unknown key": forged(kit_json=card(extra=1)),
    "no address": forged(kit_json=card(coordinator="fleet;rm:8443")),
    "no JSON": forged(kit_json=b"["),
    "deep JSON": forged(kit_json=b"[" * 4000),
    "a list": forged(kit_json=b"[]"),
    "a stranger's certificate": forged(certificate_pem=certificate("clinic", STRANGER).pem),
    "another member's certificate": forged(certificate_pem=certificate("museum").pem),
    "a stranger's authority": forged(authority_pem=STRANGER.certificate.pem),
    "a member for authority": forged(authority_pem=certificate("clinic").pem),
    "a roster without it": forged(roster_json=roster("museum").to_json(AUTHORITY.identity)),
    "a stranger's roster": forged(roster_json=roster().to_json(STRANGER.identity)),
    "another federation's roster": forged(
        roster_json=roster(federation="lac").to_json(AUTHORITY.identity)
    ),
    "signed by another": kit().to_bytes(STRANGER.identity),
}


@pytest.mark.parametrize("what", BAD_KITS)
def test_a_kit_whose_parts_do_not_belong_together_is_refused(what: str) -> None:
    with pytest.raises(MalformedMessage):
        Kit.from_bytes(BAD_KITS[what])


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_is_believed(at: int, change: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= change
    with pytest.raises(BlindsightError):
        Kit.from_bytes(bytes(changed))


# --- the request


def test_a_key_is_made_here_and_only_a_request_leaves(tmp_path: Path) -> None:
    home, before = Home(tmp_path / "deep/clinic"), os.umask(0)
    try:
        made = request_certificate(home, "clinic", iter(["clinic.example.org"]))
    finally:
        os.umask(before)
    key = home.credentials.private_key.read_bytes()
    assert CertificateRequest.load(home.request) == made
    assert made.hosts == ("clinic.example.org",)
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert all(mode in (0o600, 0o700) for mode in modes(home.root).values())
    again = request_certificate(home, "clinic", [])
    assert again.identity == made.identity and home.credentials.private_key.read_bytes() == key
    assert [one.event for one in home.audit.read()] == ["certificate-requested"] * 2


def test_a_bad_name_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        request_certificate(Home(tmp_path / "clinic"), "Clinic", [])
    with pytest.raises(UsageError):
        request_certificate(Home(tmp_path / "clinic"), "clinic", ["*.example.org"])
    assert not (tmp_path / "clinic").exists()


def test_a_folder_that_is_open_to_others_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "something").touch()
    with pytest.raises(UsageError, match="open to others"):
        request_certificate(Home(tmp_path), "clinic", [])
    (tmp_path / "empty").mkdir(mode=0o755)
    request_certificate(Home(tmp_path / "empty"), "clinic", [])
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


def test_a_damaged_key_is_neither_used_nor_replaced(home: Home) -> None:
    home.credentials.private_key.write_bytes(b"damaged")
    with pytest.raises(UsageError, match="holds no private key"):
        request_certificate(home, "clinic", [])
    assert home.credentials.private_key.read_bytes() == b"damaged"


# --- installing


def test_a_kit_is_installed_and_can_be_again(home: Home, sent: Sent) -> None:
    key = home.credentials.private_key.read_bytes()
    for joined in (("bob", "clinic", "museum"), ()):
        found, change = install_kit(home, sent(GOOD), "institution", FINGERPRINT)
        assert (found.name, change.serial, change.joined, change.left) == ("clinic", 3, joined, ())
    assert home.credentials.private_key.read_bytes() == key
    assert home.read_authority().identity == AUTHORITY.identity.public
    assert home.read_roster() == roster("bob", "clinic", "museum")
    assert set(modes(home.root).values()) == {0o600, 0o700}
    assert [one.event for one in home.audit.read()] == ["kit-installed"] * 2


def unchanged(home: Home) -> bool:
    return not (home.roster.exists() or home.credentials.authority.exists())


def test_a_fingerprint_that_differs_installs_nothing(home: Home, sent: Sent) -> None:
    """A kit that is right in itself, of an authority that the coordinator never had."""
    theirs = kit(authority=STRANGER).to_bytes(STRANGER.identity)
    for told in (FINGERPRINT, "", FINGERPRINT[:-1]):
        with pytest.raises(UsageError, match="not the one given"):
            install_kit(home, sent(theirs), "institution", told)
    with pytest.raises(UsageError, match="was not compared"):
        install_kit(home, sent(GOOD), "institution", None)
    assert unchanged(home)


def test_how_a_fingerprint_is_written_does_not_matter() -> None:
    public = AUTHORITY.identity.public
    for text in (FINGERPRINT, FINGERPRINT.upper(), FINGERPRINT.replace(":", " ") + "\n"):
        check_fingerprint(text, public, "it")
    changed = ("1" if FINGERPRINT[0] == "0" else "0") + FINGERPRINT[1:]
    with pytest.raises(UsageError, match="not the one"):
        check_fingerprint(changed, public, "it")


def test_a_kit_for_another_key_or_role_installs_nothing(home: Home, sent: Sent) -> None:
    other = kit("museum").to_bytes(AUTHORITY.identity)
    with pytest.raises(UsageError, match="is for key"):
        install_kit(home, sent(other), "institution", FINGERPRINT)
    with pytest.raises(UsageError, match="not for this searcher"):
        install_kit(home, sent(GOOD), "searcher", FINGERPRINT)
    home.credentials.private_key.unlink()
    with pytest.raises(UsageError, match="holds no key"):
        install_kit(home, sent(GOOD), "institution", FINGERPRINT)
    assert not home.credentials.private_key.exists() and unchanged(home)


def test_a_clock_that_is_an_hour_off_is_named(home: Home, sent: Sent) -> None:
    early = certificate("clinic").not_before - DAY / 24
    with pytest.raises(MalformedMessage, match="this machine says") as caught:
        install_kit(home, sent(GOOD), "institution", FINGERPRINT, early)
    assert "clock" in caught.value.hint
    with pytest.raises(MalformedMessage, match="expired"):
        install_kit(home, sent(GOOD), "institution", FINGERPRINT, early + 400 * DAY)
    assert unchanged(home)


def test_another_authority_never_takes_the_place_of_the_first(home: Home, sent: Sent) -> None:
    install_kit(home, sent(GOOD), "institution", FINGERPRINT)
    theirs = kit(authority=STRANGER).to_bytes(STRANGER.identity)
    with pytest.raises(UsageError, match="another authority"):
        install_kit(home, sent(theirs), "institution", STRANGER.identity.public.fingerprint)
    assert home.read_authority().identity == AUTHORITY.identity.public


def test_a_missing_kit_and_a_folder_are_named(home: Home, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            install_kit(home, path, "institution", FINGERPRINT)


def test_a_full_disk_leaves_what_was_there(home: Home, sent: Sent, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if not full_disk(folder):
        pytest.skip("needs to mount a small disk")
    try:
        small = Home(folder)
        small.folder("identity")
        small.credentials.private_key.write_bytes(CLINIC.private_pem())
        install_kit(small, sent(GOOD), "institution", FINGERPRINT)
        before = small.roster.read_bytes()
        (folder / "fill").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space"), (folder / "fill").open("ab", 0) as file:
            while True:
                file.write(bytes(4096))
        newer = roster("clinic", serial=4).to_json(AUTHORITY.identity)
        with pytest.raises(StorageError, match="no space left"):
            update_roster(small, sent(newer))
        with pytest.raises(StorageError, match="no space left"):
            request_certificate(small, "clinic", [])
        assert small.roster.read_bytes() == before
        (folder / "fill").unlink()
        assert update_roster(small, sent(newer)).left == ("bob", "museum")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# --- rosters that follow


def test_an_update_names_who_joined_and_who_left(home: Home, sent: Sent) -> None:
    install_kit(home, sent(GOOD), "institution", FINGERPRINT)
    change = update_roster(home, sent(roster("clinic", serial=5).to_json(AUTHORITY.identity)))
    assert (change.joined, change.left) == ((), ("bob", "museum"))
    assert str(change) == "roster 5, bob left, museum left"
    change = update_roster(
        home, sent(roster("clinic", "bob", serial=9).to_json(AUTHORITY.identity))
    )
    assert change.joined == ("bob",)
    assert home.read_roster().serial == 9


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (roster(serial=2).to_json(AUTHORITY.identity), "older than number 3"),
        (roster("clinic", serial=3).to_json(AUTHORITY.identity), "two different ones"),
        (roster(serial=9).to_json(STRANGER.identity), "did not sign"),
        (roster(serial=9).to_json(MUSEUM), "did not sign"),
        (roster(serial=9, federation="lac").to_json(AUTHORITY.identity), "one of lac"),
        (b"", "not one"),
    ],
)
def test_a_roster_that_does_not_follow_is_refused(
    home: Home, sent: Sent, content: bytes, why: str
) -> None:
    install_kit(home, sent(GOOD), "institution", FINGERPRINT)
    before = home.roster.read_bytes()
    with pytest.raises(MalformedMessage, match=why):
        update_roster(home, sent(content))
    assert home.roster.read_bytes() == before


def test_a_kit_with_an_older_roster_does_not_bring_the_revoked_back(home: Home, sent: Sent) -> None:
    install_kit(home, sent(GOOD), "institution", FINGERPRINT)
    update_roster(home, sent(roster("clinic", serial=4).to_json(AUTHORITY.identity)))
    with pytest.raises(MalformedMessage, match="older"):
        install_kit(home, sent(GOOD), "institution", FINGERPRINT)


def test_without_a_kit_no_roster_is_believed(home: Home, sent: Sent) -> None:
    with pytest.raises(UsageError, match="belongs to no federation"):
        update_roster(home, sent(roster().to_json(AUTHORITY.identity)))


def test_an_ephemeral_identity_joins_nothing(home: Home, sent: Sent) -> None:
    """The certificate of a key that is not here, in the name of one who is."""
    other = AUTHORITY.issue(Identity.ephemeral().public, "clinic", "institution")
    with pytest.raises(MalformedMessage, match="has no institution clinic"):
        install_kit(
            home, sent(kit(certificate=other).to_bytes(AUTHORITY.identity)), "institution",
            FINGERPRINT,
        )  # fmt: skip
