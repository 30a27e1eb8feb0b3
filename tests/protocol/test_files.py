"""Files are whole or absent, whatever happens while they are written."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import StorageError
from protocol.files import (
    open_exclusively,
    replace_atomically,
    storage_error,
    sync_folder,
    write_at,
    write_atomically,
)

ROOT = Path(__file__).parents[2]

CHILD = f"""
import json, os, resource, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from protocol.errors import StorageError
from protocol.files import open_exclusively, replace_atomically, write_atomically
path = Path(sys.argv[1])

def refused(content):
    try:
        write_atomically(path, content)
    except StorageError as error:
        names = sorted(one.name for one in path.parent.iterdir())
        old = path.read_text() if path.exists() else None
        print(json.dumps([error.message, error.hint, old, names]))
    else:
        raise SystemExit("it was written")
"""


def child(script: str, path: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    """Run ``script`` in a process of its own, which may ruin its limits and its user."""
    command = [*before, sys.executable, "-c", CHILD + script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def answer(done: "subprocess.CompletedProcess[str]") -> list[Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written


@settings(deadline=None, max_examples=20)
@given(st.binary(max_size=5000), st.text(st.characters(codec="utf-8"), max_size=50))
def test_content_comes_back_whole(content: bytes, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept"
        write_atomically(path, content)
        assert path.read_bytes() == content
        write_atomically(path, text)
        assert path.read_bytes() == text.encode()
        assert names(path.parent) == ["kept"]


def test_folders_are_made_and_old_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "kept"
    write_atomically(path, "old and longer")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert names(path.parent) == ["kept"]


def test_the_name_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with replace_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with replace_atomically(path) as file:
        file.write(b"newer")
        file.flush()
        assert path.read_bytes() == b"new"
    assert path.read_bytes() == b"newer"


def test_a_writer_may_go_back_and_read(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "kept") as file:
        file.write(b"....body")
        file.seek(0)
        file.write(b"head")
        file.seek(0)
        assert file.read() == b"headbody"
    assert (tmp_path / "kept").read_bytes() == b"headbody"


def test_an_open_file_keeps_the_content_that_it_was_opened_on(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old"


def test_readers_see_a_whole_file_while_writers_compete(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    contents = [letter * 100_000 for letter in (b"a", b"b", b"c")]
    write_atomically(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(15):
            write_atomically(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = {path.read_bytes()}
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_bytes())
    assert seen <= set(contents)
    assert names(tmp_path) == ["kept"]


# --- what goes wrong


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("old", [b"old", None])
def test_an_error_in_the_block_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "kept"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), replace_atomically(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise error
    assert (path.read_bytes() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["kept"])


def test_a_refusal_in_the_block_is_a_storage_error_and_leaves_the_old_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="no space left"), replace_atomically(path) as file:
        file.write(b"half of the n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


def test_a_process_that_dies_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    done = child(
        "with replace_atomically(path) as file:\n"
        "    file.write(b'half of the n'); file.flush(); os._exit(9)\n",
        path,
    )
    assert done.returncode == 9, done.stderr
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    """On a disk of 256 KiB, which only the child process sees."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    small = [*private, "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"']
    probe = subprocess.run([*small, tmp_path, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"cannot mount a small disk here: {probe.stderr.decode().strip()}")
    path = tmp_path / "kept"
    script = "write_atomically(path, 'old'); refused(b'n' * 1_000_000)"
    message, hint, old, left = answer(child(script, path, *small, str(tmp_path)))
    assert message == f"no space left to write {path}"
    assert "Free some space" in hint and "not changed" in hint
    assert old == "old"
    assert left == ["kept"]


def test_a_limit_on_file_size_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    script = """
write_atomically(path, 'old')
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
refused(b'n' * 1_000_000)
"""
    path = tmp_path / "kept"
    message, hint, old, left = answer(child(script, path))
    assert message == f"{path} cannot be written: File too large"
    assert hint
    assert (old, left) == ("old", ["kept"])


def test_a_folder_that_may_not_be_written_is_said() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept"
        path.write_text("old")
        path.chmod(0o644)
        Path(folder).chmod(0o555)
        as_nobody = "os.setuid(65534) if os.geteuid() == 0 else None\n"
        message, hint, old, left = answer(child(as_nobody + "refused(b'new')", path))
        Path(folder).chmod(0o755)
    assert message == f"{path} cannot be written: Permission denied"
    assert "permissions" in hint
    assert (old, left) == ("old", ["kept"])


@pytest.mark.parametrize("name", ["file/kept", "file/deeper/kept", "folder", "n" * 300])
def test_a_place_that_cannot_be_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_atomically(tmp_path / name, b"new")
    assert name in caught.value.message
    assert caught.value.hint
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("old_mode", [None, 0o600])
def test_nobody_else_can_read_what_was_written(tmp_path: Path, old_mode: int | None) -> None:
    path = tmp_path / "kept"
    if old_mode is not None:
        path.write_text("old")
        path.chmod(old_mode)
    write_atomically(path, "an embedding")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_has_its_own_hint(number: int) -> None:
    error = storage_error("some/file", OSError(number, os.strerror(number)))
    assert error.message == "no space left to write some/file"
    assert "Free some space" in error.hint


def test_any_other_refusal_says_what_the_system_said() -> None:
    error = storage_error(Path("some/file"), OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert error.message == "some/file cannot be written: Read-only file system"
    assert error.hint


def test_syncing_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


# --- files that one process alone may write


def test_only_one_has_it_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with open_exclusively(path) as file:
        write_at(file, b"of the first", 0)
        with (
            pytest.raises(StorageError, match=f"another process is writing {path}") as caught,
            open_exclusively(path),
        ):
            pytest.fail("two have it")
        assert "Wait" in caught.value.hint
        script = """
try:
    with open_exclusively(path): print("two have it")
except StorageError as error:
    print(error.message)
"""
        assert child(script, path).stdout == f"another process is writing {path}\n"
    with open_exclusively(path) as file:
        assert os.pread(file, 100, 0) == b"of the first", "opened as it is"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_error_or_a_kill_gives_it_free(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with pytest.raises(ZeroDivisionError), open_exclusively(path):
        raise ZeroDivisionError
    killed = child("import signal\nwith open_exclusively(path): os.kill(os.getpid(), 9)", path)
    assert killed.returncode == -9, killed.stderr
    with open_exclusively(path):
        pass


@pytest.mark.parametrize("change", ["renamed", "removed", "replaced"])
def test_a_file_that_goes_while_it_is_opened_is_not_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The one who had it ends, and renames or removes it, between the opening and the lock."""
    path, lock = tmp_path / "kept", fcntl.flock

    def late(file: int, how: int) -> None:
        if change == "renamed":
            path.rename(tmp_path / "whole")
        else:
            path.unlink()
        if change == "replaced":
            path.write_bytes(b"of another")
        lock(file, how)

    monkeypatch.setattr("protocol.files.fcntl.flock", late)
    with pytest.raises(StorageError, match="another process"), open_exclusively(path):
        pytest.fail("it is not the file of that name")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), open_exclusively(tmp_path / "kept"):
        pytest.fail("it was opened")
    assert names(tmp_path) == ["kept"]


def test_everything_is_written_however_little_the_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, some, at: write(file, some[:7], at))
    words = memoryview(array("I", range(100)))
    with open_exclusively(tmp_path / "kept") as file:
        write_at(file, words, 5)
        write_at(file, b"", 5)
    assert (tmp_path / "kept").read_bytes() == bytes(5) + words.tobytes()
