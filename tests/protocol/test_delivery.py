"""A release as it comes: every byte as it was signed, or a refusal that leaves nothing."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.errors import BlindsightError, MalformedMessage
from protocol.identity import Identity
from protocol.model.delivery import Delivery
from protocol.model.release import (
    FORMAT,
    MANIFEST,
    MANIFEST_BYTES,
    MODEL,
    TOKENIZER,
    TOKENIZER_BYTES,
    Release,
    identify,
)
from protocol.model.release_wire import PIECE_BYTES, ReleaseHead, parse_latest, parse_piece
from protocol.model.signature import SIGNATURE, read_signed_release
from protocol.model.tower_settings import TowerSettings
from tests.protocol.test_signature import CLINIC, COORDINATOR, ROSTER, TINY

WEIGHTS, TOKENS = bytes(range(256)) * 40, b'{"version": "1.0"}' * 30


def settings_of(tokens: bytes) -> TowerSettings:
    return replace(TINY, tokenizer=hashlib.sha256(tokens).hexdigest() if tokens else "")


def manifest_of(weights: bytes, tokens: bytes) -> tuple[str, bytes]:
    """Id and manifest of a release; nobody loads these weights."""
    towers, sha256 = settings_of(tokens), hashlib.sha256(weights).hexdigest()
    release_id = identify(towers, sha256)
    content = {
        "format": FORMAT,
        "release_id": release_id,
        "settings": towers.to_dict(),
        "files": {MODEL: {"size": len(weights), "sha256": sha256}},
        "metrics": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return release_id, json.dumps(content).encode()


def signature_of(manifest: bytes, signer: Identity = COORDINATOR) -> bytes:
    signed = {"public_key": signer.public.der, "signature": signer.sign("release", manifest)}
    return json.dumps({name: value.hex() for name, value in signed.items()}).encode()


def cut(content: bytes, size: int) -> Iterator[pb.ReleasePiece]:
    for start in range(0, len(content), size):
        yield pb.ReleasePiece(payload=content[start : start + size])


def parcel(
    weights: bytes = WEIGHTS, tokens: bytes = TOKENS, size: int = 4000
) -> tuple[str, list[pb.ReleasePiece]]:
    release_id, manifest = manifest_of(weights, tokens)
    head = ReleaseHead(manifest, signature_of(manifest), len(tokens))
    return release_id, [head.to_message(), *cut(tokens, size), *cut(weights, size)]


def deliver(root: Path, release_id: str, pieces: list[pb.ReleasePiece]) -> Release:
    came = iter([pb.ReleasePiece.FromString(one.SerializeToString()) for one in pieces])
    with Delivery("hub.example.org:8444", ROSTER, root, release_id) as delivery:
        total = delivery.announce(next(came, pb.ReleasePiece()))
        shown: list[int] = []
        delivery.take(came, shown.append)
        assert shown == sorted(shown) and shown[-1] == total
        return delivery.publish()


@settings(deadline=None, max_examples=30)  # each waits for the disk
@given(st.binary(min_size=1, max_size=3000), st.binary(max_size=500), st.integers(1, 3000))
def test_what_comes_is_what_was_signed(
    tmp_path_factory: pytest.TempPathFactory, weights: bytes, tokens: bytes, size: int
) -> None:
    # A release's tokenizer is text.
    tokens = tokens.hex().encode()
    release_id, pieces = parcel(weights, tokens, size)
    root = tmp_path_factory.mktemp("releases")
    found = deliver(root, release_id, pieces)
    assert found == read_signed_release(root / release_id, ROSTER)
    assert (found.path / MODEL).read_bytes() == weights
    assert found.tokenizer() == tokens.decode()
    assert {one.name for one in found.path.iterdir()} == {
        *(MANIFEST, SIGNATURE, MODEL), *([TOKENIZER] if tokens else []),
    }  # fmt: skip
    assert [one.name for one in root.iterdir()] == [release_id]


Pieces = list[pb.ReleasePiece]


def head(change: Callable[[pb.ReleasePiece], object]) -> Callable[[Pieces], Pieces]:
    def lie(pieces: Pieces) -> Pieces:
        change(pieces[0])
        return pieces

    return lie


def resigned(change: Callable[[dict[str, object]], object], signer: Identity = COORDINATOR):  # type: ignore[no-untyped-def]
    def lie(pieces: Pieces) -> Pieces:
        found = json.loads(pieces[0].manifest)
        change(found)
        pieces[0].manifest = json.dumps(found).encode()
        pieces[0].signature = signature_of(pieces[0].manifest, signer)
        return pieces

    return lie


def set_size(by: int) -> Callable[[dict[str, object]], object]:
    def change(manifest: dict[str, object]) -> None:
        manifest["files"][MODEL]["size"] += by  # type: ignore[index]

    return change


def flipped(piece: pb.ReleasePiece) -> pb.ReleasePiece:
    payload = bytearray(piece.payload)
    payload[len(payload) // 2] ^= 1
    return pb.ReleasePiece(payload=bytes(payload))


def straddled(pieces: Pieces) -> Pieces:
    both = pieces[1].payload + pieces[2].payload
    return [pieces[0], pb.ReleasePiece(payload=both), *pieces[3:]]


LIES: dict[str, tuple[Callable[[Pieces], Pieces], str]] = {
    "nothing": (lambda _: [], "a manifest has 1 to"),
    "no signature": (head(lambda one: one.ClearField("signature")), "a signature has 1 to"),
    "no manifest": (head(lambda one: one.ClearField("manifest")), "a manifest has 1 to"),
    "a payload at once": (head(lambda one: setattr(one, "payload", b"x")), "without a payload"),
    "a long manifest": (
        head(lambda one: setattr(one, "manifest", b" " * (MANIFEST_BYTES + 1))), "65,537",
    ),
    "a long signature": (head(lambda one: setattr(one, "signature", b"[" * 4097)), "4,097"),
    "a deep signature": (head(lambda one: setattr(one, "signature", b"[" * 4096)), "no signature"),
    "a huge tokenizer": (
        head(lambda one: setattr(one, "tokenizer_bytes", TOKENIZER_BYTES + 1)),
        "at most 67,108,864",
    ),
    "2^64 of tokenizer": (
        head(lambda one: setattr(one, "tokenizer_bytes", 2**64 - 1)), "at most 67,108,864",
    ),
    "no tokenizer": (head(lambda one: setattr(one, "tokenizer_bytes", 0)), "a tokenizer of 0"),
    "a longer tokenizer": (
        head(lambda one: setattr(one, "tokenizer_bytes", len(TOKENS) + 1)), "expected 1 to 1 bytes",
    ),
    "another signer": (resigned(lambda _: None, CLINIC), "no coordinator"),
    "a stranger": (resigned(lambda _: None, Identity.ephemeral()), "no coordinator"),
    "an unsigned change": (
        head(lambda one: setattr(one, "manifest", one.manifest + b" ")), "not one of its manifest",
    ),
    "a signed smaller size": (resigned(set_size(-1)), "expected 1 to"),
    "a signed larger size": (resigned(set_size(1)), "10,240 of 10,241 bytes"),
    "a size of 2^40": (resigned(set_size(1 << 40)), "a size up to"),
    "too few": (lambda pieces: pieces[:-1], "bytes of model.safetensors"),
    "too few tokens": (lambda pieces: pieces[:1], "0 of 540 bytes of tokenizer.json"),
    "too many": (lambda pieces: [*pieces, pb.ReleasePiece(payload=b"x")], "more than the 10,780"),
    "an empty end": (lambda pieces: [*pieces, pb.ReleasePiece()], "more than the 10,780"),
    "an empty piece": (lambda pieces: [*pieces[:2], pb.ReleasePiece(), *pieces[2:]], "got 0"),
    "another byte": (lambda pieces: [*pieces[:-1], flipped(pieces[-1])], "another SHA-256"),
    "another token": (
        lambda pieces: [pieces[0], flipped(pieces[1]), *pieces[2:]], "another SHA-256",
    ),
    "other order": (lambda pieces: [pieces[0], pieces[2], pieces[1], *pieces[3:]], "expected 1 to"),
    "over the end of a file": (straddled, "expected 1 to 540 bytes"),
    "a head in between": (lambda pieces: [*pieces[:2], pieces[0], *pieces[2:]], "payload alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    lie, said = LIES[name]
    release_id, pieces = parcel()
    with pytest.raises(MalformedMessage, match=said):
        deliver(tmp_path, release_id, lie(pieces))
    assert not list(tmp_path.iterdir())


def test_another_release_is_refused(tmp_path: Path) -> None:
    release_id, _ = parcel(b"other weights")
    with pytest.raises(MalformedMessage, match=f"expected release {release_id}.*got release"):
        deliver(tmp_path, release_id, parcel()[1])
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_until_the_next_is_whole(tmp_path: Path) -> None:
    release_id, pieces = parcel()
    found = deliver(tmp_path, release_id, pieces)
    (found.path / MODEL).write_bytes(b"damaged")
    (tmp_path / ".fetching").mkdir()
    (tmp_path / ".fetching" / MODEL).write_bytes(b"of one that was killed")
    with pytest.raises(MalformedMessage):
        deliver(tmp_path, release_id, pieces[:-1])
    assert (found.path / MODEL).read_bytes() == b"damaged"
    assert deliver(tmp_path, release_id, pieces) == found
    assert (found.path / MODEL).read_bytes() == WEIGHTS
    assert [one.name for one in tmp_path.iterdir()] == [release_id]


@given(st.binary(max_size=100), st.integers(0, 2**40))
def test_a_piece_is_never_longer_than_what_is_due(payload: bytes, due: int) -> None:
    message = pb.ReleasePiece(payload=payload)
    try:
        found = parse_piece(message, due)
    except MalformedMessage:
        assert not 0 < len(payload) <= due
    else:
        assert found == payload and 0 < len(found) <= due
    with pytest.raises(MalformedMessage):
        parse_piece(pb.ReleasePiece(payload=bytes(PIECE_BYTES + 1)), 1 << 40)


@given(st.text(max_size=20))
def test_the_newest_is_an_id_or_none(text: str) -> None:
    try:
        found = parse_latest(pb.LatestResponse(release_id=text))
    except BlindsightError:
        assert text
    else:
        assert found == (text or None)
        assert not text or (len(text) == 16 and not set(text) - set("0123456789abcdef"))
