"""Releases over real mutual TLS: who gets which, what a liar can do, and what a kill leaves."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.directory_wire import FRAME_BYTES
from protocol.errors import (
    LimitReached,
    MalformedMessage,
    NotAdmitted,
    ReleaseMismatch,
    ServiceError,
    StorageError,
)
from protocol.grpc_errors import error_from_rpc
from protocol.identity import Identity
from protocol.model import fetching
from protocol.model.fetching import fetch_release
from protocol.model.release import MANIFEST, MODEL, Release, write_release
from protocol.model.signature import SIGNATURE, read_signed_release, sign_release, signed_releases
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.pipe import COORDINATOR, coordinator_channel
from protocol.roster import Member
from server.directory.settings import Limits
from tests.protocol.relay_parties import Lab

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
# More pieces than HTTP/2's windows take when nobody reads.
LARGE = replace(TINY, text_width=64, buckets=8192)


def released(lab: Lab, seed: int = 0, settings: TowerSettings = TINY, created: str = "") -> Release:
    """A release of the lab's coordinator, in the folder that it serves."""
    release = write_release(lab.root / "releases", TwoTowers.initial(settings, seed), {})
    manifest = release.path / MANIFEST
    if created:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": created}))
    sign_release(release, Identity.load(lab.credentials("coordinator").private_key))
    return read_signed_release(release.path, lab.roster)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def large(lab: Lab) -> Release:
    return released(lab, 1, LARGE, "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def newest(lab: Lab, large: Release) -> Release:
    return released(lab, 2, created="2026-02-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def at(lab: Lab, newest: Release) -> Iterator[str]:
    with lab.coordinator() as address:
        yield address


def files(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


def left(root: Path) -> set[str]:
    """What is in a folder of releases, but for the lock."""
    return {one.name for one in root.iterdir()} - {"fetching.lock"} if root.exists() else set()


@pytest.mark.parametrize("name", ["clinic", "bob"])
def test_members_get_the_newest_or_the_one_they_name(
    lab: Lab, at: str, newest: Release, large: Release, tmp_path: Path, name: str
) -> None:
    root = tmp_path / "releases"
    found = fetch_release(at, lab.credentials(name), lab.roster, root)
    assert found == replace(newest, path=root / newest.release_id)
    assert found == read_signed_release(found.path, lab.roster)
    assert files(found.path) == files(newest.path)
    fetch_release(at, lab.credentials(name), lab.roster, root, large.release_id)
    assert files(root / large.release_id) == files(large.path)
    assert left(root) == {newest.release_id, large.release_id}
    assert (root.stat().st_mode | found.path.stat().st_mode) & 0o077 == 0
    assert [one.release_id for one in signed_releases(root, lab.roster)] == [
        newest.release_id,
        large.release_id,
    ]
    found.load()


def test_what_is_here_and_whole_is_not_fetched_again(
    lab: Lab, at: str, newest: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = lab.credentials("bob")
    found = fetch_release(at, bob, lab.roster, tmp_path)
    before = (found.path / MODEL).stat().st_ino
    assert fetch_release(at, bob, lab.roster, tmp_path) == found
    assert (found.path / MODEL).stat().st_ino == before
    # Named, it needs nobody; damaged, it is fetched anew.
    nowhere = "127.0.0.1:1"
    assert fetch_release(nowhere, bob, lab.roster, tmp_path, newest.release_id) == found
    (found.path / MODEL).write_bytes(b"other bytes")
    assert fetch_release(at, bob, lab.roster, tmp_path, newest.release_id) == found
    assert files(found.path) == files(newest.path)


def test_who_is_no_member_or_has_left_gets_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    release = released(lab)
    with lab.coordinator() as at:
        before = lab.roster
        stranger = Lab(tmp_path / "other").credentials("bob")
        with pytest.raises(ServiceError, match="cannot be reached"):
            fetch_release(at, stranger, before, tmp_path / "r")
        with pytest.raises(NotAdmitted, match="coordinator is a coordinator"):
            fetch_release(at, lab.credentials("coordinator"), before, tmp_path / "r")
        lab.revoke("bob")
        for named in (None, release.release_id):
            with pytest.raises(NotAdmitted, match="no member"):
                fetch_release(at, lab.credentials("bob"), before, tmp_path / "r", named)
    assert not left(tmp_path / "r")


def test_of_a_coordinator_who_left_nothing_is_handed_out_or_taken(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    old, before = released(lab), lab.roster
    lab.enrol("coordinator", "coordinator")
    with lab.coordinator() as at:
        with pytest.raises(ServiceError, match="released no model yet"):
            fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path / "r")
        with pytest.raises(ReleaseMismatch, match="no release"):
            fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path / "r", old.release_id)
        new = released(lab, 5)
        # Whoever believes an older roster does not believe this one's signature.
        with pytest.raises(MalformedMessage, match="no coordinator of this federation"):
            fetch_release(at, lab.credentials("bob"), before, tmp_path / "r")
        assert not left(tmp_path / "r")
        found = fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path / "r")
        assert found.release_id == new.release_id


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../roster.json", "0" * 15, "0" * 17, "0123456789ABCDEF", "/etc/passwd", "é"],
)
def test_a_name_that_is_no_id_is_refused_on_both_sides(
    lab: Lab, at: str, tmp_path: Path, name: str
) -> None:
    with pytest.raises(MalformedMessage, match="16 hexadecimal digits"):
        fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path, name)
    with coordinator_channel(at, lab.credentials("bob")) as channel:
        call = rpc.ReleasesStub(channel).Fetch(pb.FetchReleaseRequest(release_id=name))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert isinstance(error_from_rpc(caught.value, "it"), MalformedMessage)


def test_what_is_not_signed_or_not_whole_is_not_handed_out(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    good = released(lab, 0, created="2020-01-01T00:00:00+00:00")
    cut, unsigned = released(lab, 1), released(lab, 2)
    moved = released(lab, 3)
    moved.path.rename(moved.path.parent / "0123456789abcdef")
    (unsigned.path / SIGNATURE).unlink()
    with (cut.path / MODEL).open("r+b") as file:
        file.truncate(cut.size - 1)
    (lab.root / "releases" / "notes.txt").write_text("not a release")
    with lab.coordinator() as at:
        bob, root = lab.credentials("bob"), tmp_path / "r"
        for named in (unsigned.release_id, moved.release_id, "f" * 16):
            with pytest.raises(ReleaseMismatch, match=f"no release {named}"):
                fetch_release(at, bob, lab.roster, root, named)
        with pytest.raises(MalformedMessage, match=f"got release {moved.release_id}"):
            fetch_release(at, bob, lab.roster, root, "0123456789abcdef")
        with pytest.raises(ServiceError, match="cannot answer now"):
            fetch_release(at, bob, lab.roster, root, cut.release_id)
        assert not left(root)
        cut.path.joinpath(MANIFEST).unlink()
        assert fetch_release(at, bob, lab.roster, root).release_id == good.release_id


def test_places_are_limited_and_come_back_also_from_who_does_not_read(
    lab: Lab, large: Release, tmp_path: Path
) -> None:
    request = pb.FetchReleaseRequest(release_id=large.release_id)
    with (
        lab.coordinator(Limits(fetches=3, fetches_of_member=2, idle_seconds=1.0)) as at,
        narrow(at, lab, "bob") as stub,
        narrow(at, lab, "eve") as other,
    ):
        slow = [stub.Fetch(request) for _ in range(2)]
        assert all(next(call).manifest for call in slow)
        with pytest.raises(LimitReached, match="bob fetches 2"):
            fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path)
        third = other.Fetch(request)
        assert next(third).manifest
        with pytest.raises(LimitReached, match="3 releases are being fetched"):
            fetch_release(at, lab.credentials("clinic"), lab.roster, tmp_path)
        third.cancel()
        until(lambda: fetched(at, lab, "bob", tmp_path))
        for call in slow:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(left(tmp_path)) == 1


@contextmanager
def narrow(at: str, lab: Lab, name: str) -> Iterator[rpc.ReleasesStub]:
    """A connection whose windows do not grow."""
    options = [("grpc.ssl_target_name_override", COORDINATOR), ("grpc.http2.bdp_probe", 0)]
    with grpc.secure_channel(at, lab.credentials(name).for_client(), options) as channel:
        yield rpc.ReleasesStub(channel)


def fetched(at: str, lab: Lab, name: str, root: Path) -> bool:
    try:
        fetch_release(at, lab.credentials(name), lab.roster, root, None)
    except LimitReached:
        return False
    return True


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Liar(rpc.ReleasesServicer):
    """A coordinator that sends what a test wants."""

    def __init__(self, latest: str, pieces: list[pb.ReleasePiece], wait: float = 0.0) -> None:
        self.latest, self.pieces, self.wait = latest, pieces, wait

    async def Latest(self, request: object, context: object) -> pb.LatestResponse:  # type: ignore[override]
        return pb.LatestResponse(release_id=self.latest)

    async def Fetch(self, request: object, context: grpc.aio.ServicerContext) -> None:  # type: ignore[override]
        for piece in self.pieces:
            await context.write(piece)
        await asyncio.sleep(self.wait)


@contextmanager
def lying(lab: Lab, liar: Liar) -> Iterator[str]:
    """The liar, at an address, with the coordinator's own certificate."""
    ready, stop, found = threading.Event(), asyncio.Event(), list[str]()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = grpc.aio.server()
        rpc.add_ReleasesServicer_to_server(liar, server)
        port = server.add_secure_port("127.0.0.1:0", lab.credentials("coordinator").for_server())
        await server.start()
        found.append(f"127.0.0.1:{port}")
        ready.set()
        await stop.wait()
        await server.stop(0)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_a_coordinator_that_says_nothing_useful(
    lab: Lab, newest: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_IDLE_SECONDS", 0.3)
    bob = lab.credentials("bob")
    for latest, kind, word in (
        ("", ServiceError, "released no model yet"),
        ("../../../etc/x", MalformedMessage, "16 hexadecimal"),
        (newest.release_id, MalformedMessage, "a manifest has 1 to"),
    ):
        with lying(lab, Liar(latest, [])) as at, pytest.raises(kind, match=word):
            fetch_release(at, bob, lab.roster, tmp_path)
    with (
        lying(lab, Liar(newest.release_id, [], wait=30)) as at,
        pytest.raises(ServiceError, match="sent nothing"),
    ):
        fetch_release(at, bob, lab.roster, tmp_path)
    long = pb.ReleasePiece(manifest=b"x", signature=b"x", payload=bytes(FRAME_BYTES + 4096))
    with (
        lying(lab, Liar(newest.release_id, [long])) as at,
        pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED"),
    ):
        fetch_release(at, bob, lab.roster, tmp_path)
    assert not left(tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing(
    lab: Lab, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left") as caught:
            fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path)
        assert "Free some space" in caught.value.hint
    assert not left(tmp_path)
    fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from protocol.credentials import Credentials
from protocol.model import delivery
from protocol.model.fetching import fetch_release
from protocol.identity import PublicIdentity
from protocol.roster import Roster
from protocol.certificates import Certificate
root, at, target, moment = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
mine = Credentials.in_folder(root / "bob")
roster = Roster.read(root / "roster.json", Certificate.load(mine.authority).identity)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "bytes":
    delivery.parse_piece = die
elif moment == "whole":
    delivery.sync_folder = die
fetch_release(at, mine, roster, target)
"""


@pytest.mark.parametrize("moment", ["bytes", "whole"])
def test_what_a_kill_leaves_goes_with_the_next_fetch(
    lab: Lab, at: str, newest: Release, tmp_path: Path, moment: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, lab.root, at, tmp_path, moment],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert left(tmp_path) == {".fetching"}
    assert not signed_releases(tmp_path, lab.roster)
    found = fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path)
    assert files(found.path) == files(newest.path)
    assert left(tmp_path) == {newest.release_id}


def test_two_at_once_do_not_disturb_each_other(
    lab: Lab, at: str, newest: Release, tmp_path: Path
) -> None:
    from protocol.files import open_exclusively

    tmp_path.mkdir(exist_ok=True)
    with (
        open_exclusively(tmp_path / "fetching.lock"),
        pytest.raises(StorageError, match="another process"),
    ):
        fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path)
    assert fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path) == replace(
        newest, path=tmp_path / newest.release_id
    )


def test_a_searcher_cannot_sign(tmp_path: Path) -> None:
    """A roster may name several coordinators; nobody else's signature counts."""
    lab = Lab(tmp_path / "lab")
    release = released(lab)
    sign_release(release, Identity.load(lab.credentials("bob").private_key))
    with lab.coordinator() as at, pytest.raises(ServiceError, match="released no model yet"):
        fetch_release(at, lab.credentials("bob"), lab.roster, tmp_path / "r")
    bob = Identity.load(lab.credentials("bob").private_key)
    lab.publish(*(one for one in lab.roster.members if one.name != "bob"),
                Member("bob", "coordinator", bob.public))  # fmt: skip
    with lab.coordinator() as at:
        found = fetch_release(at, lab.credentials("clinic"), lab.roster, tmp_path / "r")
    assert found.release_id == release.release_id
