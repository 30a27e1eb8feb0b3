"""What describes a folder of pairs, in each form that is known."""

import json
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path

from PIL import Image

from client.institution import pairs
from client.institution.formats import (
    checks,
    coco,
    collection,
    forms,
    imagefolder,
    karpathy,
    shard,
    source,
    stored,
    table,
    token,
    webdataset,
)
from client.institution.formats.source import JSON_BYTES
from client.institution.pairs import METADATA, read_pairs
from protocol import files
from tests.fuzz.mutations import of_json, of_tar, of_tokens
from tests.fuzz.target import MIB, Target, scratch

_NAMES = ("a.png", "images/b.png", "out/etc/passwd", "loop", "pipe.png", "../a.png", "/a.png")
_changes = count()


@cache
def folder(name: str) -> Path:
    """Two images, and what leads elsewhere or never ends."""
    root = scratch(name)
    (root / "images").mkdir()
    for image in _NAMES[:2]:
        Image.new("RGB", (8, 8), "red").save(root / image)
    (root / "out").symlink_to("/")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.png")
    return root


def describing(name: str) -> Callable[[bytes], None]:
    """Read a folder in which the file ``name`` holds the foreign bytes."""

    def decode(data: bytes) -> None:
        root = folder(f"pairs-{name}")
        (root / name).write_bytes(data)
        # Clocks are slow beside this: else what was read of a shard before would be remembered.
        os.utime(root / name, ns=(0, next(_changes)))
        found = read_pairs(root)
        assert found.pairs
        for pair in found.pairs:
            path = found.path(pair).resolve()
            assert path.is_relative_to(root.resolve())
            assert path.is_file() or path.is_relative_to(root.resolve() / "0.tar")
            assert pair.captions
            assert pair.split in pairs.SPLITS
            if not path.is_file():
                assert len(found.read(pair)) <= len(data)

    return decode


# --- a line each


def metadata_seeds() -> Sequence[bytes]:
    return [
        b'{"file_name": "a.png", "captions": ["a", "b"], "split": "val", "site": "clinic"}\n',
        b'{"file_name": "images/b.png", "caption": "x"}\n{"file_name": "./a.png", "text": "y"}',
    ]


def metadata_that_leaves() -> Sequence[bytes]:
    names = (*_NAMES, "images", "a" * 5000)
    lines = [b'{"file_name": "%s", "captions": ["a"]}\n' % name.encode() for name in names]
    deep = b'{"file_name": ' + b"[" * 100_000
    # Empty lines, and lines that are skipped one by one.
    return [*lines, deep, b"\n" * (MIB >> 2), b'{"file_name":"b","captions":["a"]}\n' * 5000]


# --- one JSON object


def captions_seeds() -> Sequence[bytes]:
    """COCO, then Karpathy."""
    named = [{"id": 1, "file_name": "a.png", "group": 7}, {"id": "b", "file_name": "b.png"}]
    said = [
        {"image_id": 1, "caption": "a"},
        {"image_id": "b", "caption": "b"},
        {"image_id": 1, "bbox": [1]},
    ]
    split = [
        {"filename": "a.png", "split": "restval", "sentences": [{"raw": "a"}, {"raw": "b"}]},
        {"filename": "b.png", "filepath": "images", "sentences": [{"raw": "c"}]},
    ]
    return [json.dumps(one).encode() for one in ({"images": named, "annotations": said},)] + [
        json.dumps({"images": split, "dataset": "flickr8k"}).encode()
    ]


def captions_that_take_much() -> Sequence[bytes]:
    coco_of = b'{"images": [%s], "annotations": [{"caption": "a", "image_id": 1}]}'
    karpathy_of = b'{"images": [{"filename": "%s", "sentences": [{"raw": "a"}]}]}'
    names = (*_NAMES, "images", "a" * 5000)
    return [
        *(coco_of % b'{"id": 1, "file_name": "%s"}' % name.encode() for name in names),
        *(karpathy_of % name.encode() for name in names),
        coco_of % (b"[" * 100_000),
        coco_of % (b"{}," * 50_000 + b"{}"),
        coco_of % b",".join(b'{"id": %d, "file_name": "x"}' % i for i in range(2000)),
        karpathy_of % (b"a" * 8 * MIB),
    ]


# --- lines of cells


def table_seeds() -> Sequence[bytes]:
    return [
        b'file_name,caption,split,site,group\r\na.png,"a, b",val,x,7\r\na.png,c,val,x,7\r\n',
        b"image\ttext\nimages/b.png\tx\n\nonly\n",
        b"\xef\xbb\xbfimage_name| comment_number| comment\na.png| 0| a 'b' \"c\n",
    ]


def tables_that_take_much() -> Sequence[bytes]:
    head = b"file_name,caption\n"
    return [
        *(head + name.encode() + b",a\n" for name in (*_NAMES, "images", "a" * 5000)),
        head + b'"' + b"\n" * MIB,
        head + b"a.png,x\n" * 10_000,
        b"," * (MIB - 1) + b"\n",
        head + b"a" * 2 * MIB,
        head + b"\0" * MIB,
    ]


def token_seeds() -> Sequence[bytes]:
    return [b"a.png#0\ta dog\na.png#1\ta cat\n\nb.png#0\tx\n"]


def tokens_that_take_much() -> Sequence[bytes]:
    return [
        *(name.encode() + b"#0\ta\n" for name in (*_NAMES, "images", "a" * 5000)),
        b"a.png#0\ta\n" * 20_000,
        b"a.png#" + b"1" * (MIB - 20) + b"\ta\n",
        b"\n" * (MIB >> 2),
        b"a" * 2 * MIB,
    ]


_CELLS = (
    *(b",", b"\t", b";", b"|", b'"', b'""', b"'", b"\n", b"\r", b"\r\n", b"\0", b"#", b"#0\t"),
    *(b"\xef\xbb\xbf", b"\xff", b"file_name", b"image", b"caption", b"split", b"site", b"group"),
    *(b"val", b"train", b"x" * 300, b"../a.png", b"/a.png", b"loop", b"pipe.png", b"b.png"),
)


# --- shards


def shard_seeds() -> Sequence[bytes]:
    said = b'{"captions": ["a"], "split": "val", "site": "clinic", "group": 7}'
    members = {"a.png": b"x", "a.json": said, "d/b.jpg": b"yy", "d/b.txt": b"b"}
    long = {"n" * 120 + ".webp": b"z", "n" * 120 + ".txt": b"c"}
    return [
        tar(members, tarfile.USTAR_FORMAT),
        tar(long, tarfile.GNU_FORMAT),
        tar(long, tarfile.PAX_FORMAT),
    ]


def tar(members: dict[str, bytes], form: int) -> bytes:
    """A tar with no more zeros at its end than one needs."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, BytesIO(content))
        end = made.offset
    return file.getvalue()[: end + 1024]


def shards_that_claim_much() -> Sequence[bytes]:
    """Sizes that are made up, headers without end, and names that lead out."""
    made = []
    for kind in (b"0", b"L", b"K", b"x", b"g", b"S"):
        for size in (1 << 40, 1 << 62, -512, -1024):
            info = tarfile.TarInfo("a.jpg")
            info.type, info.size = kind, size
            made.append(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    headers = tarfile.TarInfo("a/b").tobuf(tarfile.USTAR_FORMAT)
    names = [tar({name: b"x"}, tarfile.GNU_FORMAT) for name in (*_NAMES, "a" * 5000)]
    return [*made, *names, headers * 1000, b"\x1f\x8b" + bytes(1000)]


_SHARED = (pairs, forms, collection, checks, source, stored, files)

TARGETS = {
    "metadata": Target(
        describing(METADATA),
        metadata_seeds,
        of_json,
        (imagefolder, *_SHARED),
        memory=16 * MIB,
        seconds=2.0,
        worst=metadata_that_leaves,
    ),
    "captions": Target(
        describing("captions.json"),
        captions_seeds,
        of_json,
        (coco, karpathy, *_SHARED),
        # A buffer for the largest file is asked for, whatever the size: but its pages stay unused.
        memory=JSON_BYTES + 32 * MIB,
        seconds=2.0,
        worst=captions_that_take_much,
    ),
    "table": Target(
        describing("t.csv"),
        table_seeds,
        of_tokens(*_CELLS),
        (table, *_SHARED),
        memory=64 * MIB,
        seconds=4.0,
        worst=tables_that_take_much,
    ),
    "token": Target(
        describing("x.token"),
        token_seeds,
        of_tokens(*_CELLS),
        (token, *_SHARED),
        memory=16 * MIB,
        seconds=2.0,
        worst=tokens_that_take_much,
    ),
    "shard": Target(
        describing("0.tar"),
        shard_seeds,
        of_tar,
        (shard, webdataset, *_SHARED),
        seconds=2.0,
        longest=16 << 10,
        worst=shards_that_claim_much,
    ),
}
