"""Decoders of what comes over the network, and of the residues in it."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import grpc
import numpy as np

from client.searcher import remote
from client.searcher.ckks import SealKey
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol import bits, grpc_errors, handles, packing, params, scheme, seeds, wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.credentials import Credentials
from protocol.errors import MalformedMessage
from protocol.handles import Grant
from protocol.insecure_twin import InsecureTwin
from protocol.packing import Layout
from protocol.params import FAST
from protocol.scheme import EncryptedScores
from protocol.wire import IndexDescription
from simulations.authority import ThrowAwayAuthority
from tests.fuzz.mutations import of_bytes, of_message
from tests.fuzz.target import MIB, Target, scratch

LAYOUT = Layout(FAST, 8, 128, 100)
SERVED = IndexDescription("museum", "0123456789abcdef", 7, LAYOUT)
GRANT = Grant(bytes(32), b"sixteen letters!")
QUESTION = np.full(8, 0.3, np.float32)
_JPEG = b"\xff\xd8\xff"
_WIRE = (wire, handles, packing, params, scheme)


def parsed(kind: Any, data: bytes) -> Any:
    """The message, as gRPC gives it: what protobuf refuses never reaches this project."""
    try:
        return kind.FromString(data)
    except Exception as error:
        raise MalformedMessage(f"refused by gRPC: {error}") from error


@cache
def key() -> SealKey:
    return SealKey(FAST)


def score_request(data: bytes) -> None:
    public_keys, chunks = wire.parse_score_request(parsed(pb.ScoreRequest, data), SERVED)
    moduli = np.array(FAST.data_moduli, np.uint32)[:, None]
    assert all((one.c0 < moduli).all() for one in (*public_keys, *chunks))


def score_request_seeds() -> Sequence[bytes]:
    chunks = key().encrypt_query(LAYOUT.question_polynomials(QUESTION))
    public_keys = key().public_keys(LAYOUT.public_keys)
    return [wire.score_request(SERVED, public_keys, chunks).SerializeToString()]


def score_response(data: bytes) -> None:
    reply = wire.parse_score_response(parsed(pb.ScoreResponse, data), LAYOUT, 0)
    assert reply.c0.shape == (len(reply.c0), LAYOUT.block_items)
    assert reply.c1.shape == (len(reply.c0), FAST.ring_degree)
    assert (reply.c0 < FAST.reply_moduli[0]).all()
    assert (reply.c1 < FAST.reply_moduli[1]).all()


def reply(blocks: int) -> EncryptedScores:
    shape = (blocks, LAYOUT.block_items), (blocks, FAST.ring_degree)
    draw = np.random.default_rng(blocks).integers
    drawn = [draw(0, q, one, np.uint32) for q, one in zip(FAST.reply_moduli, shape, strict=True)]
    return EncryptedScores(0, *drawn)


def score_response_seeds() -> Sequence[bytes]:
    replies = [reply(blocks) for blocks in (1, 4)]
    return [wire.score_response(LAYOUT, one).SerializeToString() for one in replies]


def described(data: bytes) -> None:
    found = IndexDescription.from_message(parsed(pb.DescribeResponse, data))
    assert IndexDescription.from_message(found.to_message()) == found
    assert found.layout.download_bytes > 0
    assert found.layout.upload_bytes > 0


def asked_for(positions: Sequence[int]) -> bytes:
    handles = GRANT.handles(list(positions))
    return pb.FetchRequest(epoch=7, ticket=GRANT.ticket, handles=handles).SerializeToString()


def fetch_request(data: bytes) -> None:
    positions = wire.parse_fetch_request(parsed(pb.FetchRequest, data), SERVED, lambda _: GRANT)
    assert len(set(positions)) == len(positions) <= wire.MAX_POSITIONS
    assert set(positions) <= set(range(LAYOUT.items))


def residues(data: bytes) -> None:
    """The first two bytes say how many residues of which modulus are expected."""
    count, choice = (data[0], data[1]) if len(data) > 1 else (0, 0)
    modulus = (*FAST.moduli, *FAST.reply_moduli, 2, 3, 1 << 31)[choice % 8]
    found = bits.unpack(data[2:], count, modulus)
    assert found.shape == (count,)
    assert (found < modulus).all()
    assert bits.pack(found, modulus) == data[2:], "one encoding only"


def residue_seeds() -> Sequence[bytes]:
    some = np.arange(3, dtype=np.uint32)
    return [bytes([3, i]) + bits.pack(some, q) for i, q in enumerate(FAST.moduli)]


def expansion(data: bytes) -> None:
    found = seeds.expand(data, FAST.ring_degree, FAST.data_moduli)
    assert (found < np.array(FAST.data_moduli, np.uint32)[:, None]).all()


def decryption(data: bytes) -> None:
    """Any residues that the wire lets through, decrypted under a real key."""
    found = wire.parse_score_response(parsed(pb.ScoreResponse, data), LAYOUT, 0)
    scores = key().decrypt_scores(LAYOUT, found)
    assert scores.shape == found.c0.shape
    assert np.abs(scores).max() < FAST.data_modulus / 2.0**FAST.score_scale_bits


def decryption_seeds() -> Sequence[bytes]:
    whole = reply(1)
    zeros = EncryptedScores(0, whole.c0 * 0, whole.c1 * 0)
    ones = EncryptedScores(
        0, zeros.c0 + FAST.reply_moduli[0] - 1, zeros.c1 + FAST.reply_moduli[1] - 1
    )
    return [wire.score_response(LAYOUT, one).SerializeToString() for one in (whole, zeros, ones)]


class Liar:
    """A service on a real socket, under mutual TLS, that answers with bytes of our choice."""

    def __init__(self) -> None:
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        authority, folder = ThrowAwayAuthority(), scratch("credentials")
        own = Credentials.in_folder(authority.issue("museum", folder / "museum"))
        searcher = Credentials.in_folder(authority.issue("searcher", folder / "searcher"))
        self.answer = b""
        unary = grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer)
        stream = grpc.unary_stream_rpc_method_handler(lambda request, context: iter([self.answer]))
        handlers = {"Describe": unary, "Fetch": stream, "Score": stream}
        generic = grpc.method_handlers_generic_handler("blindsight.v1.Retrieval", handlers)
        self._server = grpc.server(ThreadPoolExecutor(1), handlers=[generic])
        port = self._server.add_secure_port("127.0.0.1:0", own.for_server())
        self._server.start()
        self.searcher = RemoteInstitution("museum", f"127.0.0.1:{port}", searcher, 30.0)


@cache
def liar() -> Liar:
    return Liar()


def description_answer(data: bytes) -> None:
    liar().answer = data
    found = liar().searcher.describe(SERVED.release_id)
    assert (found.institution, found.release_id) == ("museum", SERVED.release_id)


def score_answer(data: bytes) -> None:
    liar().answer = data
    scores = liar().searcher.score(SERVED, QUESTION, InsecureTwin(), Traffic())
    assert scores.shape == (LAYOUT.items,)


def score_answer_seeds() -> Sequence[bytes]:
    message = wire.score_response(LAYOUT, reply(4))
    message.ticket, message.secret = GRANT.ticket, GRANT.secret
    wire.tell_left(message, 7)
    return [message.SerializeToString()]


def fetch_answer(data: bytes) -> None:
    liar().answer = data
    # Every position, so that decoys leave no choice and a valid answer is known beforehand.
    found = liar().searcher.fetch(SERVED, [3, 40], LAYOUT.items, Traffic())
    assert set(found) == {3, 40}
    assert all(len(one.thumbnail) <= 256 << 10 for one in found.values())
    assert all(len(one.caption) <= 2000 for one in found.values())


def fetch_answer_seeds() -> Sequence[bytes]:
    items = [pb.ReleasedItem(position=i, caption="a") for i in range(LAYOUT.items)]
    items[3].thumbnail = _JPEG + bytes(1000)
    return [pb.FetchResponse(items=items, items_left=7).SerializeToString()]


def fetch_answers_that_are_long() -> Sequence[bytes]:
    items = [pb.ReleasedItem(position=i) for i in range(LAYOUT.items)]
    items[3].thumbnail, items[4].caption = _JPEG + bytes(3 << 20), "é" * (1 << 20)
    many = [pb.ReleasedItem()] * (1 << 20)
    return [pb.FetchResponse(items=one).SerializeToString() for one in (items, many)]


def _description_seeds() -> Sequence[bytes]:
    return [SERVED.to_message().SerializeToString()]


_REMOTE = (remote, grpc_errors, *_WIRE)
_GRPC = 32 * MIB
"""Its buffers and the stacks of its threads."""
_MESSAGE = LAYOUT.upload_bytes + 4096

TARGETS = {
    "score_request": Target(
        score_request, score_request_seeds, of_message(pb.ScoreRequest), _WIRE, longest=_MESSAGE
    ),
    "score_response": Target(
        score_response, score_response_seeds, of_message(pb.ScoreResponse), _WIRE, longest=64 << 10
    ),
    "description": Target(
        described, _description_seeds, of_message(pb.DescribeResponse), _WIRE, memory=MIB
    ),
    "fetch_request": Target(
        fetch_request,
        lambda: [asked_for([5, 3, 99])],
        of_message(pb.FetchRequest),
        _WIRE,
        memory=MIB,
        worst=lambda: [asked_for(range(100_000))],
    ),
    "residues": Target(residues, residue_seeds, of_bytes, (bits,), memory=MIB),
    "expansion": Target(expansion, lambda: [bytes(64), b"\xff" * 64], of_bytes, (seeds,)),
    "decryption": Target(
        decryption, decryption_seeds, of_message(pb.ScoreResponse), _WIRE, longest=64 << 10
    ),
    "description_answer": Target(
        description_answer,
        _description_seeds,
        of_message(pb.DescribeResponse),
        _REMOTE,
        memory=_GRPC,
    ),
    "score_answer": Target(
        score_answer,
        score_answer_seeds,
        of_message(pb.ScoreResponse),
        _REMOTE,
        memory=_GRPC,
        longest=64 << 10,
    ),
    "fetch_answer": Target(
        fetch_answer,
        fetch_answer_seeds,
        of_message(pb.FetchResponse),
        _REMOTE,
        memory=_GRPC + 8 * 8 * MIB,
        longest=8 << 10,
        worst=fetch_answers_that_are_long,
    ),
}
