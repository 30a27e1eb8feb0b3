"""A packed index is whole or absent, goes on where it was killed, and says where it is damaged."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.institution.blocks import pack_block
from client.institution.packed import PackedIndex, write_packed
from client.institution.packed_header import Header
from protocol.errors import StorageError, UsageError
from protocol.packing import CHUNK_WIDTHS, MAX_DIM, Layout
from protocol.params import FAST, PRIVATE

ROOT = Path(__file__).parents[2]
PAGE, DIGEST = 4096, 32
Floats = NDArray[np.float32]

CHILD = f"""
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from client.institution.packed import write_packed
from protocol.errors import StorageError
from protocol.packing import Layout
from protocol.params import PRIVATE
folder, rows = Path(sys.argv[1]), np.load(sys.argv[2], mmap_mode="r")

def pack(progress):
    layout = Layout(PRIVATE, rows.shape[1], 128, len(rows))
    write_packed(folder / "packed.bin", layout, rows, progress, 2)

def refused():
    try:
        pack(lambda blocks: print("packing", blocks))
    except StorageError as error:
        print(error.message, error.hint, sorted(os.listdir(folder)), sep="\\n")
    else:
        raise SystemExit("it was written")
"""


def unit_vectors(count: int, dim: int, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def command(script: str, folder: Path, rows: Path, *before: str) -> list[str]:
    """A process of its own, which may be killed and may ruin its limits."""
    return [*before, sys.executable, "-c", CHILD + script, str(folder), str(rows)]


def interrupt_at(stop: int) -> Callable[[int], None]:
    def progress(blocks: int) -> None:
        if blocks >= stop:
            raise KeyboardInterrupt

    return progress


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


# --- what is written


LAYOUTS = [
    Layout(PRIVATE, 20, 128, 32 * 40 + 1),
    Layout(PRIVATE, 5, 4, 1),
    Layout(FAST, 70, 64, 64 * 200),  # more digests than a page holds
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_number_of_threads_writes_the_same_file(tmp_path: Path, layout: Layout) -> None:
    rows = unit_vectors(layout.items, layout.dim)
    size = layout.block_items
    whole = []
    for threads in (1, 2, 4):
        path, seen = tmp_path / f"{threads}.bin", list[int]()
        write_packed(path, layout, rows, seen.append, threads)
        assert seen == list(range(layout.blocks + 1))
        whole.append(path.read_bytes())
    assert whole[0] == whole[1] == whole[2]
    index = PackedIndex(path)
    assert index.layout == layout
    assert len(index.blocks) == layout.blocks
    for block in {0, layout.blocks // 2, layout.blocks - 1}:
        expected = pack_block(layout, rows[block * size : (block + 1) * size])
        assert np.array_equal(index.blocks[block], expected)
    index.verify()


def test_embeddings_may_be_mapped_and_in_any_order_of_memory(tmp_path: Path) -> None:
    layout, rows = Layout(PRIVATE, 24, 64, 200), unit_vectors(200, 24)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    whole = set()
    for embeddings in (rows, mapped, np.asfortranarray(rows)):
        write_packed(tmp_path / "packed.bin", layout, embeddings)
        whole.add((tmp_path / "packed.bin").read_bytes())
    assert len(whole) == 1


@pytest.mark.parametrize(
    "rows", [unit_vectors(9, 8), unit_vectors(11, 8), unit_vectors(10, 7)], ids=lambda r: r.shape
)
def test_embeddings_of_another_shape_are_refused(tmp_path: Path, rows: Floats) -> None:
    with pytest.raises(UsageError, match=r"float32 \(10, 8\), got float32"):
        write_packed(tmp_path / "packed.bin", Layout(PRIVATE, 8, 8, 10), rows)
    doubles: Any = unit_vectors(10, 8).astype(np.float64)
    with pytest.raises(UsageError, match="got float64"):
        write_packed(tmp_path / "packed.bin", Layout(PRIVATE, 8, 8, 10), doubles)
    assert not names(tmp_path)


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed.bin", Layout(PRIVATE, 8, 8, 10), unit_vectors(10, 8))
    assert (tmp_path / "packed.bin").stat().st_mode & 0o777 == 0o600


# --- killed and resumed


def test_killed_at_any_point_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    blocks = 150
    rows, folder = tmp_path / "rows.npy", tmp_path / "index"
    folder.mkdir()
    np.save(rows, unit_vectors(32 * blocks, 130))
    layout = Layout(PRIVATE, 130, 128, 32 * blocks)
    write_packed(tmp_path / "undisturbed", layout, np.load(rows))
    path = folder / "packed.bin"
    path.write_bytes(b"the old index")

    dice = random.SystemRandom()
    # At these blocks it kills itself: whatever it had said to be done must still be there.
    at_blocks = sorted(dice.sample(range(1, blocks), 2))
    before = 0
    for stop in at_blocks:
        script = f"""
def progress(done):
    print(done, flush=True)
    if done >= {stop}: os.kill(os.getpid(), signal.SIGKILL)
pack(progress)
"""
        done = subprocess.run(command(script, folder, rows), capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        said = [int(word) for word in done.stdout.split()]
        assert said[0] >= before, "done before is not done again"
        assert said[-1] >= stop
        assert said == list(range(said[0], said[-1] + 1))
        assert path.read_bytes() == b"the old index"
        before = stop
    write_packed(path, layout, np.load(rows, mmap_mode="r"))
    assert path.read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert names(folder) == ["packed.bin"]

    # And at any moment: between blocks, in the middle of one, while the header is written.
    script = "print('begins', flush=True); pack(lambda done: None)"
    lasts: float | None = None  # the first one is left alone, and says how long it takes
    for _ in range(4):
        path.write_bytes(b"the old index")
        with subprocess.Popen(command(script, folder, rows), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            start = time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                process.wait(lasts and dice.uniform(0, lasts))
            lasts = lasts or time.monotonic() - start
            process.kill()
        found = path.read_bytes()
        assert found in (b"the old index", (tmp_path / "undisturbed").read_bytes())
    write_packed(path, layout, np.load(rows, mmap_mode="r"))
    assert path.read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert names(folder) == ["packed.bin"]


def test_what_was_interrupted_is_kept_as_far_as_it_is_sound(tmp_path: Path) -> None:
    layout, rows = Layout(PRIVATE, 20, 128, 32 * 30), unit_vectors(32 * 30, 20)
    path, part = tmp_path / "packed.bin", tmp_path / ".packed.bin.part"
    with pytest.raises(KeyboardInterrupt):
        write_packed(path, layout, rows, interrupt_at(12), 1)
    assert names(tmp_path) == [part.name]
    # A mark on block 0, digest and all: packed again, it would vanish. Block 1 is damaged.
    length, start = 4 * pack_block(layout, rows[:1]).size, 2 * PAGE
    content = bytearray(part.read_bytes())
    content[start : start + length] = mark = bytes(length)
    content[PAGE : PAGE + DIGEST] = hashlib.sha256(mark).digest()
    content[start + length + 77] ^= 1
    part.write_bytes(content)

    seen: list[int] = []
    write_packed(path, layout, rows, seen.append, 2)
    assert 11 <= seen[0] < 30
    assert seen == list(range(seen[0], 31))
    blocks = PackedIndex(path).blocks
    assert not blocks[0].any(), "a block that matches its digest is kept"
    assert np.array_equal(blocks[1], pack_block(layout, rows[32:64])), "a damaged one is not"
    assert names(tmp_path) == ["packed.bin"]


@pytest.mark.parametrize(
    "change",
    [
        lambda layout, rows: (layout, -rows),
        lambda layout, rows: (Layout(PRIVATE, 20, 64, len(rows)), rows),
        lambda layout, rows: (Layout(FAST, 20, 128, len(rows)), rows),
        lambda layout, rows: (Layout(PRIVATE, 20, 128, len(rows) - 1), rows[:-1]),
    ],
    ids=["embeddings", "width", "preset", "items"],
)
def test_anything_else_starts_anew(tmp_path: Path, change: Callable[..., Any]) -> None:
    layout, rows = Layout(PRIVATE, 20, 128, 32 * 10), unit_vectors(32 * 10, 20)
    path = tmp_path / "packed.bin"
    with pytest.raises(KeyboardInterrupt):
        write_packed(path, layout, rows, interrupt_at(5), 1)
    other, changed = change(layout, rows)
    seen: list[int] = []
    write_packed(path, other, changed, seen.append)
    assert seen[0] == 0
    write_packed(tmp_path / "undisturbed", other, changed)
    assert path.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_what_failed_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    layout, rows = Layout(PRIVATE, 20, 128, 32 * 10), unit_vectors(32 * 10, 20)
    path = tmp_path / "packed.bin"
    path.write_bytes(b"the old index")
    rows[200, 3] = np.nan
    with pytest.raises(UsageError, match="norm 1 at most"):
        write_packed(path, layout, rows)
    assert path.read_bytes() == b"the old index"
    assert names(tmp_path) == ["packed.bin"]


def test_a_second_writer_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    layout, rows = Layout(PRIVATE, 20, 128, 32 * 10), unit_vectors(32 * 10, 20)
    path = tmp_path / "packed.bin"
    begun, refused = threading.Event(), threading.Event()

    def wait(blocks: int) -> None:
        begun.set()
        assert refused.wait(60)

    first = threading.Thread(target=write_packed, args=(path, layout, rows, wait))
    first.start()
    assert begun.wait(60)
    with pytest.raises(StorageError, match="another process is writing"):
        write_packed(path, layout, -rows)
    refused.set()
    first.join()
    assert np.array_equal(PackedIndex(path).blocks[0], pack_block(layout, rows[:32]))


# --- full disks


def test_a_full_disk_is_found_at_the_start(tmp_path: Path) -> None:
    """On a disk of 1 MiB, which only the child process sees."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    small = [*private, "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"']
    folder, rows = tmp_path / "disk", tmp_path / "rows.npy"
    folder.mkdir()
    np.save(rows, unit_vectors(32 * 40, 20))
    probe = subprocess.run([*small, folder, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"cannot mount a small disk here: {probe.stderr.decode().strip()}")
    script = "(folder / 'packed.bin').write_text('old'); refused()"
    done = subprocess.run(
        command(script, folder, rows, *small, str(folder)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    message, hint, left = done.stdout.splitlines()  # and no block was packed
    assert message == f"no space left to write {folder / 'packed.bin'}"
    assert "Free some space" in hint
    assert left == "['packed.bin']"


def test_a_limit_on_file_size_is_found_at_the_start(tmp_path: Path) -> None:
    folder, rows = tmp_path / "index", tmp_path / "rows.npy"
    folder.mkdir()
    np.save(rows, unit_vectors(32 * 40, 20))
    script = "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); refused()"
    done = subprocess.run(command(script, folder, rows), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, hint, left = done.stdout.splitlines()
    assert message == f"{folder / 'packed.bin'} cannot be written: File too large"
    assert hint
    assert left == "[]"


# --- damaged and foreign files


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Ten full blocks; the records begin on the third page."""
    write_packed(tmp_path / "packed.bin", Layout(PRIVATE, 8, 128, 32 * 10), unit_vectors(320, 8))
    return tmp_path / "packed.bin"


@pytest.mark.parametrize("blocks", [[0], [9], [2, 7]], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_damage_is_found_and_has_a_place(written: Path, blocks: list[int], threads: int) -> None:
    content = bytearray(written.read_bytes())
    length = (len(content) - 2 * PAGE) // 10
    for block in blocks:
        content[2 * PAGE + length * block + 1000] ^= 64
    written.write_bytes(content)
    places = ", ".join(map(str, blocks))
    says = rf"{len(blocks)} of 10 blocks differ from their digests \(block {places}\)"
    with pytest.raises(StorageError, match=says):
        PackedIndex(written).verify(threads)


def test_a_damaged_digest_is_found_too(written: Path) -> None:
    whole = PackedIndex(written).digest
    content = bytearray(written.read_bytes())
    content[PAGE + 4 * DIGEST] ^= 1
    written.write_bytes(content)
    with pytest.raises(StorageError, match=r"\(block 4\)"):
        PackedIndex(written).verify()
    assert PackedIndex(written).digest != whole


def test_another_version_is_refused_with_what_to_do(written: Path) -> None:
    content = written.read_bytes()
    for version in (1, 3, 999_999_999):
        magic = b"blindsight packed index %d\n" % version
        written.write_bytes(magic + content[len(magic) :])
        with pytest.raises(StorageError, match=f"of version {version}, expected") as caught:
            PackedIndex(written)
        assert "Build it again" in caught.value.hint


def header(**changes: object) -> bytes:
    fields = {
        "preset": "private",
        "dim": 8,
        "chunk_width": 128,
        "items": 320,
        "record": [3, 256, 1, 16],
        "embeddings": "0" * 64,
        **changes,
    }
    kept = {name: value for name, value in fields.items() if value is not ...}
    return b"blindsight packed index 2\n" + json.dumps(kept).encode() + b"\n"


HEADERS = {
    "nothing": b"",
    "noise": bytes(range(256)) * 16,
    "no JSON": b"blindsight packed index 2\n{",
    "not UTF-8": b'blindsight packed index 2\n{"preset": "\xff\xfe"}\n',
    "a list": b"blindsight packed index 2\n[1]\n",
    "deep": b"blindsight packed index 2\n" + b"[" * 4000,
    "no end": b"blindsight packed index 2\n" + b" " * 4070,
    "extra": header(more=1),
    "two lines": header() + b"{}",
    **{
        f"{name} {str(value)[:20]}": header(**{name: value})
        for name, values in {
            "preset": ["mystery", 1, None, ["private"], ...],
            "dim": [0, -1, 1025, 8.0, True, "8", 10**300, ..., 129],
            "chunk_width": [0, 3, 256, 128.0, ...],
            "items": [0, -5, 2**40, 2**39, 10**4000, 320.0, "x", ..., 321 * 32],
            "record": [[3, 256, 1, 32], None, ...],
            "embeddings": ["", "0" * 63, "0" * 62, "0" * 66, "A" * 64, "g" * 64, 5, None, ...],
        }.items()
        for value in values
    },
}


@settings(deadline=None)
@given(
    st.builds(
        Layout,
        st.sampled_from([PRIVATE, FAST]),
        st.integers(1, MAX_DIM),
        st.sampled_from(CHUNK_WIDTHS),
        st.integers(1, 2**40 - 1),
    ),
    st.binary(min_size=DIGEST, max_size=DIGEST),
)
def test_any_header_comes_back_and_its_parts_lie_side_by_side(
    layout: Layout, digest: bytes
) -> None:
    header = Header(layout, digest.hex())
    assert len(header.to_page()) == PAGE
    assert Header.from_page(header.to_page()) == header
    last = layout.blocks - 1
    assert (header.digest_at(0), header.record_at(0) % PAGE) == (PAGE, 0)
    assert 0 <= header.record_at(0) - (header.digest_at(last) + DIGEST) < PAGE
    primes = len(layout.preset.data_moduli)
    assert header.record_bytes == 4 * primes * layout.preset.ring_degree * layout.chunks
    assert header.file_bytes == header.record_at(last) + header.record_bytes


@pytest.mark.parametrize("head", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_is_refused(written: Path, head: bytes) -> None:
    content = written.read_bytes()
    written.write_bytes(header().ljust(PAGE, b"\0") + content[PAGE:])
    PackedIndex(written)  # so it is the change that is refused
    written.write_bytes(head.ljust(PAGE, b"\0")[:PAGE] + content[PAGE:])
    with pytest.raises(StorageError, match="not a usable packed index") as caught:
        PackedIndex(written)
    assert "Build it again" in caught.value.hint


@pytest.mark.parametrize("length", [0, 1, 100, PAGE - 1, PAGE, 2 * PAGE, -PAGE, -1])
def test_a_file_that_was_cut_is_refused(written: Path, length: int) -> None:
    written.write_bytes(written.read_bytes()[:length])
    with pytest.raises(StorageError, match="not a usable packed index"):
        PackedIndex(written)


def test_a_file_that_is_too_long_or_missing_is_refused(written: Path) -> None:
    with written.open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="bytes, expected"):
        PackedIndex(written)
    written.unlink()
    with pytest.raises(StorageError, match="No such file"):
        PackedIndex(written)
    written.mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        PackedIndex(written)
