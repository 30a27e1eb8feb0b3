"""Decoders of models: releases and updates."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.lib.format
import safetensors.torch
from flwr.common import serde
from flwr.proto import recorddict_pb2 as flower

from protocol.errors import MalformedMessage
from protocol.model import release, settings, towers, update
from protocol.model import tower_settings as tower_settings_module
from protocol.model.release import MANIFEST, MODEL, identify, read_release, write_release
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import pack, pack_model, unpack, unpack_model
from tests.fuzz.mutations import of_framed_json, of_json, of_message, of_tokens
from tests.fuzz.target import MIB, Target, scratch

SMALL = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, text_layers=1,
    text_heads=1, buckets=64, max_tokens=4,
)  # fmt: skip
LIKE = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}


@cache
def written() -> Path:
    return write_release(scratch("release"), TwoTowers(SMALL), {"recall": 0.5}).path


@cache
def manifest() -> bytes:
    return (written() / MANIFEST).read_bytes()


@cache
def weights() -> bytes:
    return (written() / MODEL).read_bytes()


def laid_out(manifest_bytes: bytes, model_bytes: bytes) -> Path:
    path = scratch("forged")
    (path / MANIFEST).write_bytes(manifest_bytes)
    (path / MODEL).write_bytes(model_bytes)
    return path


def release_manifest(data: bytes) -> None:
    """A manifest beside honest weights; what passes is loaded."""
    read_release(laid_out(data, weights())).load()


def signed(data: bytes, random: Random) -> bytes:
    """Change a manifest, and most times give it the id that then follows: anybody can."""
    changed = of_json(data, random)
    try:
        found = json.loads(changed)
        values = found["settings"]
        if random.random() < 0.7:
            values[random.choice(list(values))] = random.choice((1, 4, 16, 64, 256, 1024, 1 << 18))
        known = identify(TowerSettings.from_dict(values), found["files"][MODEL]["sha256"])
        found["release_id"] = known
        return json.dumps(found).encode()
    except Exception:  # whatever is wrong with it is the decoder's business
        return changed


def manifests_that_claim_much() -> Sequence[bytes]:
    found: dict[str, Any] = json.loads(manifest())
    most = {"image_size": 512, "dim": 1024, "image_width": 256, "image_stages": 4}
    most |= {"text_width": 1024, "text_layers": 12, "text_heads": 16, "buckets": 1 << 18}
    found["settings"] = dict(found["settings"]) | most | {"max_tokens": 512}
    sha256 = found["files"][MODEL]["sha256"]
    found["release_id"] = identify(TowerSettings.from_dict(found["settings"]), sha256)
    return [json.dumps(found).encode(), b"[" * 65_536, b" " * (1 << 16) + b"1"]


def release_weights(data: bytes) -> None:
    """Weights of our choice, and a manifest that fits them."""
    found = json.loads(manifest())
    sha256 = hashlib.sha256(data).hexdigest()
    found["files"][MODEL] = {"size": len(data), "sha256": sha256}
    found["release_id"] = identify(SMALL, sha256)
    read_release(laid_out(json.dumps(found).encode(), data)).load()


def tower_settings(data: bytes) -> None:
    found = TowerSettings.from_json(data.decode(errors="replace"))
    assert TowerSettings.from_json(found.to_json()) == found


def update_record(data: bytes) -> None:
    """Flower's record, as its own code reads it; then as this project does."""
    try:
        record = serde.array_record_from_proto(flower.ArrayRecord.FromString(data))
    except Exception as error:
        raise MalformedMessage(f"refused by Flower: {error}") from error
    found = (unpack_model if set(record) == {"model"} else unpack)(record, LIKE)
    for name, value in found.items():
        assert value.dtype == np.float32
        assert value.shape == LIKE[name].shape
        assert np.isfinite(value).all()


def update_seeds() -> Sequence[bytes]:
    return [
        serde.array_record_to_proto(record).SerializeToString()
        for record in (pack(LIKE), pack_model(LIKE))
    ]


def npy(header: bytes) -> bytes:
    """An update whose first array has ``header``; the size is right."""
    record = serde.array_record_to_proto(pack(LIKE))
    item = record.items[0]
    text = header[:500]
    body = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    item.value.data = body + bytes(24)
    return record.SerializeToString()


def update_header(data: bytes) -> None:
    update_record(npy(data))


def header() -> bytes:
    """What NumPy writes, without magic and length."""
    stream = BytesIO()
    numpy.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (3, 2)}
    )
    return stream.getvalue()[10:]


_TOKENS = (
    *(b"'descr'", b"'<f4'", b"'>f4'", b"'O'", b"'V8'", b"'fortran_order'", b"False", b"True"),
    *(b"'shape'", b"(3, 2)", b"(2, 3)", b"3L", b"{[]: 1}", b"[", b"]", b"(", b")", b"{", b"}"),
    *(b"'''", b"\\\n", b"\n  ", b"\n", b"'\\d'", b"b''", b"-" * 100, b"(" * 90, b"lambda:0"),
    *(b"9" * 100, b"'f4,f4'", b"'(9,9)f4'", b"[('a','<f4')]", b"...", b"\xff", b"\0", b"#", b":"),
)


def headers_that_break_parsers() -> Sequence[bytes]:
    return [
        b"(" * 499,
        b"-" * 499 + b"1",
        b"{[]: 1}",
        b"'''",
        b"{'descr': '\\d'}",
        b"[" * 90 + b"]" * 90,
    ]


TARGETS = {
    "release_manifest": Target(
        release_manifest,
        lambda: [manifest()],
        signed,
        (release, tower_settings_module, towers),
        memory=64 * MIB,
        seconds=5.0,
        longest=8192,
        worst=manifests_that_claim_much,
    ),
    "release_weights": Target(
        release_weights,
        lambda: [weights()],
        of_framed_json,
        (release, safetensors.torch),
        memory=64 * MIB,
        seconds=5.0,
        longest=256 << 10,
    ),
    "tower_settings": Target(
        tower_settings,
        lambda: [SMALL.to_json().encode()],
        of_json,
        (tower_settings_module, settings),
        memory=MIB,
    ),
    "update": Target(
        update_record,
        update_seeds,
        of_message(flower.ArrayRecord),
        (update, numpy.lib.format, serde),
    ),
    "update_header": Target(
        update_header,
        lambda: [header()],
        of_tokens(*_TOKENS),
        (update, numpy.lib.format),
        longest=500,
        worst=headers_that_break_parsers,
    ),
}
