"""What a coordinator sends of a release: its pieces, and what is written of them."""

import json
import shutil
from collections.abc import Sequence
from random import Random

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.errors import MalformedMessage
from protocol.model import delivery, release, release_wire, signature
from protocol.model.delivery import Delivery
from tests.fuzz.messages import parsed
from tests.fuzz.mutations import of_bytes, of_json, of_message
from tests.fuzz.target import MIB, Target, scratch
from tests.protocol.test_delivery import ROSTER, parcel, signature_of

RELEASE_ID, PIECES = parcel(size=1500)


def framed(pieces: Sequence[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(3, "big") + one for one in pieces)


def unframed(data: bytes) -> list[bytes]:
    pieces = []
    while data:
        size = int.from_bytes(data[:3], "big")
        pieces.append(data[3 : 3 + size])
        data = data[3 + size :]
    return pieces


def delivered(data: bytes) -> None:
    """A stream of messages; whatever it is, the folder holds that release or nothing."""
    root = scratch("delivered")
    shutil.rmtree(root / RELEASE_ID, ignore_errors=True)
    came = iter([parsed(pb.ReleasePiece, one) for one in unframed(data)])
    try:
        with Delivery("hub.example.org:8444", ROSTER, root, RELEASE_ID) as taking:
            taking.announce(next(came, pb.ReleasePiece()))
            taking.take(came, lambda _: None)
            found = taking.publish()
        assert signature.read_signed_release(found.path, ROSTER) == found
    except MalformedMessage:
        assert not list(root.iterdir())
        raise


def of_pieces(data: bytes, random: Random) -> bytes:
    """Change one piece, its place, or the manifest in the first, which is then signed again."""
    pieces, kind = unframed(data), random.randrange(5)
    if not pieces:
        return of_bytes(data, random)
    at, other = random.randrange(len(pieces)), random.randrange(len(pieces))
    if kind == 0:
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif kind == 1:
        pieces.insert(at, pieces[other])
    elif kind == 2:
        del pieces[at]
    elif kind == 3:
        pieces[at] = of_message(pb.ReleasePiece)(pieces[at], random)
    else:
        pieces[0] = _signed_again(pieces[0], random)
    return framed(pieces)


def _signed_again(data: bytes, random: Random) -> bytes:
    """The coordinator may be mad."""
    try:
        first = pb.ReleasePiece.FromString(data)
    except Exception:  # whatever is wrong with it is the decoder's business
        return of_bytes(data, random)
    if random.random() < 0.3:
        first.signature = of_json(first.signature, random)
    else:
        first.manifest = of_json(first.manifest, random)
        first.signature = signature_of(first.manifest)
    return first.SerializeToString()


def that_claim_much() -> Sequence[bytes]:
    first = pb.ReleasePiece.FromString(PIECES[0].SerializeToString())
    found = json.loads(first.manifest)
    found["files"]["model.safetensors"]["size"] = 1 << 31
    first.manifest = json.dumps(found).encode()
    first.signature = signature_of(first.manifest)
    deep = pb.ReleasePiece(manifest=b"[" * 65_536, signature=signature_of(b"[" * 65_536))
    return [framed([one.SerializeToString()]) for one in (first, deep)]


TARGETS = {
    "release_delivery": Target(
        delivered,
        lambda: [
            framed([one.SerializeToString() for one in PIECES]),
            framed([one.SerializeToString() for one in parcel(size=200_000)[1]]),
        ],
        of_pieces,
        (delivery, release_wire, release, signature),
        memory=MIB,
        longest=64 << 10,
        worst=that_claim_much,
    ),
}
