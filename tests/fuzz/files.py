"""Decoders of files that may have come from somebody else."""

import os
import socket
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin
from PIL import Image

from client.institution import epochs, images, index, items, manifest, packed, packed_header
from client.institution.images import load_image
from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.packed import PackedIndex, write_packed
from client.institution.pairs import Pair
from protocol import files, packing, params
from protocol.errors import DataError
from protocol.files import check_file
from protocol.model.pictures import FORMATS, IMAGE_PIXELS
from protocol.packing import Layout
from protocol.params import FAST, PRIVATE
from tests.fuzz.mutations import of_bytes, of_json, of_png
from tests.fuzz.target import MIB, Target, scratch

RELEASE = "0123456789abcdef"
EMBEDDINGS = np.eye(40, 8, dtype=np.float32)
_HEAD = 4096


# --- the packed index, and the index around it


@cache
def packed_file() -> bytes:
    path = scratch("packed") / "packed.bin"
    write_packed(path, Layout(FAST, 8, 128, 40), EMBEDDINGS)
    return path.read_bytes()


def packed_head(data: bytes) -> None:
    """``data`` takes the place of a file's first bytes; the rest, and so the size, is right."""
    path = scratch("packed") / "packed.bin"
    path.write_bytes(data[:_HEAD] + packed_file()[len(data[:_HEAD]) :])
    found = PackedIndex(path)
    assert found.blocks.nbytes < path.stat().st_size
    found.verify()


def packed_file_of_any_size(data: bytes) -> None:
    path = scratch("packed") / "packed.bin"
    path.write_bytes(data)
    PackedIndex(path)


def of_header(data: bytes, random: object) -> bytes:
    """Change the JSON after the magic, or any bytes."""
    magic, _, rest = data.partition(b"\n")
    body = rest[: rest.find(b"\0")] if b"\0" in rest else rest
    changed = of_json(body, random) if random.random() < 0.7 else of_bytes(body, random)  # type: ignore[attr-defined]
    return (magic + b"\n" + changed).ljust(_HEAD, b"\0")


@cache
def built() -> Path:
    root = scratch("index")
    some = [Pair(f"{i}.png", (f"item {i}",)) for i in range(len(EMBEDDINGS))]
    build_index(root, RELEASE, EMBEDDINGS, some, PRIVATE)
    return root


def manifest_path() -> Path:
    return next(built().glob("epoch-*/manifest.json"))


@cache
def honest_manifest() -> bytes:
    return manifest_path().read_bytes()


def index_manifest(data: bytes) -> None:
    honest_manifest()
    manifest_path().write_bytes(data)
    found = Index(built())
    assert found.layout.items == found.manifest.items
    found.verify()


def index_current(data: bytes) -> None:
    """The file that names the epoch."""
    manifest_path().write_bytes(honest_manifest())
    (built() / "current").write_bytes(data)
    try:
        Index(built())
    finally:
        (built() / "current").write_bytes(b"1")


# --- images


def image(data: bytes) -> None:
    """As a searcher's thumbnail is made, and as training reads it."""
    path = scratch("images") / "image"
    path.write_bytes(data)
    found = load_image(path)
    assert found.mode == "RGB"
    assert found.width * found.height <= IMAGE_PIXELS
    assert load_image(path, 64).size == (64, 64)


def image_seeds() -> Sequence[bytes]:
    rows = np.random.default_rng(0).integers(0, 255, (12, 9, 4), np.uint8)
    some = Image.fromarray(rows)
    exif = some.getexif()
    exif[0x0112] = 6
    made = []
    for name in FORMATS:
        for mode in ("RGB", "RGBA", "P", "L", "1", "I;16"):
            if mode == "RGB" or name == "PNG" or (mode, name) in (("RGBA", "WEBP"), ("P", "GIF")):
                file = BytesIO()
                converted = (
                    some.convert("I").convert(mode) if mode == "I;16" else some.convert(mode)
                )
                converted.save(file, name, **({"exif": exif} if name != "BMP" else {}))
                made.append(file.getvalue())
    file = BytesIO()
    some.convert("RGB").save(file, "JPEG", progressive=True)
    frames = BytesIO()
    some.convert("P").save(
        frames, "GIF", save_all=True, append_images=[some.convert("P").rotate(9)]
    )
    return [*made, file.getvalue(), frames.getvalue()]


def images_that_are_large() -> Sequence[bytes]:
    """As many pixels as are allowed, in a few kilobytes, and more than that."""
    side = int(IMAGE_PIXELS**0.5)
    allowed = [png(side, side, depth, colour) for depth, colour in ((1, 0), (8, 6), (1, 3))]
    return [
        *allowed,
        png(IMAGE_PIXELS, 1, 1, 0),
        png(2**31 - 1, 2**31 - 1, 1, 0),
        png(side, side + 2, 8, 2),
    ]


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """All zeros; with colour 3 a palette with transparency."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    row = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 7) // 8
    packer, rows = zlib.compressobj(9), min(row * height, 4 * 40_000_000 + 40_000)
    body = b"".join(packer.compress(bytes(min(MIB, rows - i))) for i in range(0, rows, MIB))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", bytes(2)) if colour == 3 else b""
    parts = (
        chunk(b"IHDR", head),
        palette,
        chunk(b"IDAT", body + packer.flush()),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- what is looked at before it is opened


_KINDS = ("file", "folder", "pipe", "socket", "loop", "missing", "device", "link")


def kind_of_file(data: bytes) -> None:
    """The first byte chooses what lies there; then its size and the limit, 5 bytes each."""
    place = scratch("kinds")
    kind = _KINDS[data[0] % len(_KINDS)] if data else "missing"
    size, limit = (int.from_bytes(one, "little") for one in (data[1:6], data[6:11]))
    path = place / kind
    if kind in ("file", "link"):
        with (place / "file").open("wb") as file:
            file.truncate(size)
    try:
        check_file(_made(path, kind), limit, "hint")
    except OSError:
        assert kind in ("loop", "missing")
        raise DataError("not there") from None
    assert kind in ("file", "link")
    assert size <= limit


def _made(path: Path, kind: str) -> Path:
    if os.path.lexists(path):
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind in ("loop", "device", "link"):
        path.symlink_to({"loop": path, "device": "/dev/zero", "link": "file"}[kind])
    return path


_PACKED = (packed, packed_header, packing, params)

TARGETS = {
    "packed_header": Target(
        packed_head,
        lambda: [packed_file()[:_HEAD]],
        of_header,  # type: ignore[arg-type]
        _PACKED,
        seconds=2.0,
        worst=lambda: [(b"blindsight packed index 2\n" + b"[" * 5000)[:_HEAD]],
    ),
    "packed_file": Target(
        packed_file_of_any_size,
        lambda: [packed_file()],
        of_bytes,
        _PACKED,
        longest=256 << 10,
    ),
    "index_manifest": Target(
        index_manifest,
        lambda: [honest_manifest()],
        of_json,
        (index, epochs, manifest, items, *_PACKED),
        seconds=2.0,
        worst=lambda: [b"[" * 100_000, b'"' + b"a" * 32 * MIB + b'"'],
    ),
    "index_current": Target(
        index_current,
        lambda: [b"1", b"1\n"],
        of_bytes,
        (index, epochs, manifest, items),
        worst=lambda: [b"1" * 32 * MIB],
    ),
    "image": Target(
        image,
        image_seeds,
        of_png,
        (
            images,
            PIL.BmpImagePlugin,
            PIL.GifImagePlugin,
            PIL.JpegImagePlugin,
            PIL.PngImagePlugin,
            PIL.WebPImagePlugin,
        ),
        memory=20 * IMAGE_PIXELS + 16 * MIB,
        seconds=10.0,
        worst=images_that_are_large,
    ),
    "kind_of_file": Target(
        kind_of_file,
        lambda: [bytes([i]) + (100).to_bytes(5, "little") * 2 for i in (0, 7)],
        of_bytes,
        (files,),
        memory=MIB,
        longest=16,
        worst=lambda: [b"\0" + b"\xff" * 10, b"\0" + b"\xff" * 5 + bytes(5)],
    ),
}
