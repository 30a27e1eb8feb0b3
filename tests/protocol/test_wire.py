"""Messages: valid ones come back, and nothing else gets past the parser."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.bits import pack
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.errors import (
    EpochMismatch,
    MalformedMessage,
    ProtocolError,
    ReleaseMismatch,
    UnknownPreset,
)
from protocol.handles import Grant
from protocol.insecure_twin import InsecureTwin
from protocol.packing import Layout
from protocol.params import FAST, PRIVATE, Preset
from protocol.scheme import EncryptedScores, Seeded
from protocol.wire import (
    MAX_ITEMS,
    MAX_LEFT,
    MAX_POSITIONS,
    IndexDescription,
    parse_fetch_request,
    parse_left,
    parse_score_request,
    parse_score_response,
    score_request,
    score_response,
    tell_left,
)

N = 4096
RELEASE = "0123456789abcdef"
LAYOUT = Layout(FAST, 5, 4, 2500)  # two chunks, three blocks of 1,024
GRANT = Grant(bytes(32), b"sixteen letters!")
SERVED = IndexDescription("museum", RELEASE, 7, LAYOUT)
quick = settings(deadline=None)
thorough = settings(deadline=None, max_examples=300)


@cache
def question(layout: Layout = LAYOUT) -> tuple[list[Seeded], list[Seeded]]:
    key = InsecureTwin().keygen(layout.preset)
    vector = np.full(layout.dim, 0.9 / np.sqrt(layout.dim), np.float32)
    return key.public_keys(layout.public_keys), key.encrypt_query(
        layout.question_polynomials(vector)
    )


def request() -> pb.ScoreRequest:
    public_keys, chunks = question()
    return score_request(SERVED, public_keys, chunks)


def scores(first: int = 0, blocks: int = 2, layout: Layout = LAYOUT) -> EncryptedScores:
    generator = np.random.default_rng(first)

    def words(width: int, modulus: int) -> NDArray[np.uint32]:
        drawn = generator.integers(0, modulus, (blocks, width), np.uint32)
        drawn[0, :2] = 0, modulus - 1
        return drawn

    c0, c1 = layout.preset.reply_moduli
    return EncryptedScores(first, words(layout.block_items, c0), words(N, c1))


def response(first: int = 0, blocks: int = 2) -> pb.ScoreResponse:
    return score_response(LAYOUT, scores(first, blocks))


def same(a: Seeded, b: Seeded) -> bool:
    return a.seed == b.seed and np.array_equal(a.c0, b.c0)


def with_residue(c0: bytes, place: int, value: int) -> bytes:
    """The bytes with residue ``place`` of the first prime, 27 bits wide, set to ``value``."""
    number = int.from_bytes(c0, "little")
    number &= ~((2**27 - 1) << 27 * place)
    return (number | value << 27 * place).to_bytes(len(c0), "little")


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fail if the block allocates more than ``size`` bytes at any moment."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        assert tracemalloc.get_traced_memory()[1] - before <= size
    finally:
        tracemalloc.stop()


# --- round trips


@quick
@given(
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.integers(0, 2**64 - 1),
    st.sampled_from([PRIVATE, FAST]),
    st.integers(1, 1024),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
    st.integers(1, MAX_ITEMS),
)
def test_a_description_comes_back(
    name: str, release: str, epoch: int, preset: Preset, dim: int, width: int, items: int
) -> None:
    described = IndexDescription(name, release, epoch, Layout(preset, dim, width, items))
    sent = described.to_message().SerializeToString()
    assert IndexDescription.from_message(pb.DescribeResponse.FromString(sent)) == described


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
@pytest.mark.parametrize(("dim", "width"), [(1, 1), (5, 4), (3, 128)])
def test_a_question_comes_back(preset: Preset, dim: int, width: int) -> None:
    described = IndexDescription("museum", RELEASE, 7, Layout(preset, dim, width, 9))
    public_keys, chunks = question(described.layout)
    sent = score_request(described, public_keys, chunks).SerializeToString()
    keys, got = parse_score_request(pb.ScoreRequest.FromString(sent), described)
    assert all(same(a, b) for a, b in zip(keys, public_keys, strict=True))
    assert all(same(a, b) for a, b in zip(got, chunks, strict=True))


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
@pytest.mark.parametrize(("first", "blocks"), [(0, 1), (0, 3), (1, 2), (2, 1)])
def test_a_reply_comes_back(preset: Preset, first: int, blocks: int) -> None:
    layout = Layout(preset, 5, 4, 2500)
    original = scores(first, blocks, layout)
    sent = score_response(layout, original).SerializeToString()
    got = parse_score_response(pb.ScoreResponse.FromString(sent), layout, first)
    assert got.first_block == first
    np.testing.assert_array_equal(got.c0, original.c0)
    np.testing.assert_array_equal(got.c1, original.c1)


@quick
@given(st.lists(st.integers(0, 2499), min_size=1, max_size=MAX_POSITIONS, unique=True))
def test_positions_come_back_in_their_order(positions: list[int]) -> None:
    sent = fetch_request(positions).SerializeToString()
    assert parse_fetch_request(pb.FetchRequest.FromString(sent), SERVED, granted) == positions


# --- one field wrong in turn


DESCRIPTIONS: dict[str, tuple[dict[str, Any], type[ProtocolError]]] = {
    "no institution": ({"institution": ""}, MalformedMessage),
    "a path": ({"institution": "../etc"}, MalformedMessage),
    "capitals": ({"institution": "Museum"}, MalformedMessage),
    "a line end": ({"institution": "museum\n"}, MalformedMessage),
    "markup": ({"institution": "<script>"}, MalformedMessage),
    "a control character": ({"institution": "mus\x1b[2Jeum"}, MalformedMessage),
    "a dot first": ({"institution": ".museum"}, MalformedMessage),
    "a long name": ({"institution": "m" * 64}, MalformedMessage),
    "no release": ({"release_id": ""}, MalformedMessage),
    "a short release": ({"release_id": RELEASE[1:]}, MalformedMessage),
    "a long release": ({"release_id": RELEASE + "0"}, MalformedMessage),
    "a release in capitals": ({"release_id": RELEASE.upper()}, MalformedMessage),
    "a release with a line end": ({"release_id": RELEASE[:-1] + "\n"}, MalformedMessage),
    "other digits": ({"release_id": "\u0661" * 16}, MalformedMessage),
    "no preset": ({"preset": ""}, UnknownPreset),
    "another preset": ({"preset": "insecure"}, UnknownPreset),
    "no dim": ({"dim": 0}, MalformedMessage),
    "a large dim": ({"dim": 1025}, MalformedMessage),
    "the largest dim": ({"dim": 2**32 - 1}, MalformedMessage),
    "no chunk width": ({"chunk_width": 0}, MalformedMessage),
    "an odd chunk width": ({"chunk_width": 3}, MalformedMessage),
    "a large chunk width": ({"chunk_width": 256}, MalformedMessage),
    "no items": ({"items": 0}, MalformedMessage),
    "an item too many": ({"items": MAX_ITEMS + 1}, MalformedMessage),
    "the most items": ({"items": 2**64 - 1}, MalformedMessage),
}


def described(**fields: Any) -> dict[str, Any]:
    message = SERVED.to_message()
    return {
        field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields
    } | fields


@pytest.mark.parametrize("wrong", DESCRIPTIONS)
def test_a_wrong_description_is_refused(wrong: str) -> None:
    fields, expected = DESCRIPTIONS[wrong]
    with pytest.raises(expected) as caught:
        IndexDescription.from_message(pb.DescribeResponse(**described(**fields)))
    assert type(caught.value) is expected
    assert len(caught.value.message) < 300


def swapped(message: pb.ScoreRequest) -> None:
    message.chunks[1].seed = message.public_keys[0].seed


REQUESTS: dict[str, tuple[Callable[[pb.ScoreRequest], object], type[ProtocolError]]] = {
    "no release": (lambda m: m.ClearField("release_id"), ReleaseMismatch),
    "another release": (lambda m: setattr(m, "release_id", "f" * 16), ReleaseMismatch),
    "a huge release": (lambda m: setattr(m, "release_id", "f" * 10**6), ReleaseMismatch),
    "no epoch": (lambda m: m.ClearField("epoch"), EpochMismatch),
    "an older epoch": (lambda m: setattr(m, "epoch", 6), EpochMismatch),
    "a later epoch": (lambda m: setattr(m, "epoch", 2**64 - 1), EpochMismatch),
    "no preset": (lambda m: m.ClearField("preset"), MalformedMessage),
    "another preset": (lambda m: setattr(m, "preset", "private"), MalformedMessage),
    "an unknown preset": (lambda m: setattr(m, "preset", "x" * 10**6), MalformedMessage),
    "no public keys": (lambda m: m.ClearField("public_keys"), MalformedMessage),
    "a public key too few": (lambda m: m.public_keys.pop(), MalformedMessage),
    "a public key too many": (
        lambda m: m.public_keys.add(c0=m.public_keys[0].c0, seed=b"s" * 64),
        MalformedMessage,
    ),
    "no chunks": (lambda m: m.ClearField("chunks"), MalformedMessage),
    "a chunk too few": (lambda m: m.chunks.pop(), MalformedMessage),
    "a chunk too many": (
        lambda m: m.chunks.add(c0=m.chunks[0].c0, seed=b"s" * 64),
        MalformedMessage,
    ),
    "a seed twice among chunks": (
        lambda m: setattr(m.chunks[0], "seed", m.chunks[1].seed),
        MalformedMessage,
    ),
    "the seed of the public key": (swapped, MalformedMessage),
}


def setting(field: str, make: Callable[[bytes], bytes]) -> Callable[[pb.SeededCiphertext], object]:
    return lambda one: setattr(one, field, make(getattr(one, field)))


Q = FAST.moduli[0]
CIPHERTEXTS: dict[str, Callable[[pb.SeededCiphertext], object]] = {
    "no seed": setting("seed", lambda _: b""),
    "a short seed": setting("seed", lambda seed: seed[1:]),
    "a long seed": setting("seed", lambda seed: seed + b"0"),
    "no c0": setting("c0", lambda _: b""),
    "a short c0": setting("c0", lambda c0: c0[:-1]),
    "a long c0": setting("c0", lambda c0: c0 + b"\0"),
    "first residue = q": setting("c0", lambda c0: with_residue(c0, 0, Q)),
    "last residue = q": setting("c0", lambda c0: with_residue(c0, N - 1, Q)),
    "all bits set": setting("c0", lambda c0: b"\xff" * len(c0)),
}


@pytest.mark.parametrize("where", ["public key", "first chunk", "last chunk"])
@pytest.mark.parametrize("wrong", CIPHERTEXTS)
def test_a_wrong_ciphertext_is_refused(where: str, wrong: str) -> None:
    message = request()
    ciphertexts = {
        "public key": message.public_keys[1],
        "first chunk": message.chunks[0],
        "last chunk": message.chunks[-1],
    }
    parse_score_request(message, SERVED)
    CIPHERTEXTS[wrong](ciphertexts[where])
    with pytest.raises(MalformedMessage):
        parse_score_request(message, SERVED)


@pytest.mark.parametrize("wrong", REQUESTS)
def test_a_wrong_question_is_refused(wrong: str) -> None:
    change, expected = REQUESTS[wrong]
    message = request()
    change(message)
    with pytest.raises(expected) as caught:
        parse_score_request(message, SERVED)
    assert type(caught.value) is expected
    assert len(caught.value.message) < 300


def test_the_largest_residue_is_taken_where_the_modulus_is_refused() -> None:
    message = request()
    message.chunks[0].c0 = with_residue(message.chunks[0].c0, 17, FAST.moduli[0] - 1)
    _, chunks = parse_score_request(message, SERVED)
    assert chunks[0].c0[0, 17] == FAST.moduli[0] - 1


def test_residues_are_held_against_the_prime_that_they_are_under() -> None:
    # 2^27 > the second prime > the first: a residue that only the second prime allows.
    first, second = FAST.data_moduli
    residues = np.zeros(N, np.uint32)
    residues[5] = first
    assert first < second
    message = request()
    zeros = pack(np.zeros(N, np.uint32), first)
    message.chunks[0].c0 = zeros + pack(residues, second)
    _, chunks = parse_score_request(message, SERVED)
    assert chunks[0].c0[1, 5] == first
    message.chunks[0].c0 = pack(residues, second) + zeros
    with pytest.raises(MalformedMessage, match=f"below {first}"):
        parse_score_request(message, SERVED)


RESPONSES: dict[str, Callable[[pb.ScoreResponse], object]] = {
    "a block left out": lambda m: setattr(m, "first_block", 1),
    "the largest first block": lambda m: setattr(m, "first_block", 2**64 - 1),
    "no blocks": lambda m: setattr(m, "blocks", 0),
    "fewer blocks than it carries": lambda m: setattr(m, "blocks", 1),
    "more blocks than it carries": lambda m: setattr(m, "blocks", 3),
    "more blocks than there are": lambda m: setattr(m, "blocks", 4),
    "the most blocks": lambda m: setattr(m, "blocks", 2**32 - 1),
    "no c0": lambda m: m.ClearField("c0"),
    "a short c0": lambda m: setattr(m, "c0", m.c0[:-1]),
    "a long c0": lambda m: setattr(m, "c0", m.c0 + b"\0"),
    "no c1": lambda m: m.ClearField("c1"),
    "a short c1": lambda m: setattr(m, "c1", m.c1[:-1]),
    "a long c1": lambda m: setattr(m, "c1", m.c1 + b"\0"),
}


@pytest.mark.parametrize("wrong", RESPONSES)
def test_a_wrong_reply_is_refused(wrong: str) -> None:
    message = response()
    RESPONSES[wrong](message)
    with pytest.raises(MalformedMessage):
        parse_score_response(message, LAYOUT, 0)


@pytest.mark.parametrize(("sent", "expected"), [(0, 1), (1, 0), (0, 2), (2, 1), (1, 2)])
def test_blocks_out_of_order_or_repeated_are_refused(sent: int, expected: int) -> None:
    message = response(sent, 1)
    with pytest.raises(MalformedMessage, match=f"block {expected} comes next, got {sent}"):
        parse_score_response(message, LAYOUT, expected)
    assert parse_score_response(message, LAYOUT, sent).first_block == sent


def test_nothing_comes_after_the_last_block() -> None:
    message = response(0, 1)
    for next_block in (3, 4, 1000):
        message.first_block = next_block
        with pytest.raises(MalformedMessage):
            parse_score_response(message, LAYOUT, next_block)


def fetch_request(positions: Iterable[int], epoch: int = 7) -> pb.FetchRequest:
    return pb.FetchRequest(epoch=epoch, ticket=GRANT.ticket, handles=GRANT.handles(list(positions)))


def granted(ticket: bytes) -> Grant:
    """What ``tickets`` decide is tested there."""
    return GRANT


FETCHES: dict[str, tuple[dict[str, Any], type[ProtocolError]]] = {
    "nothing": ({"positions": []}, MalformedMessage),
    "the same twice": ({"positions": [3, 4, 3]}, MalformedMessage),
    "just out of range": ({"positions": [0, 2500]}, MalformedMessage),
    "far out of range": ({"positions": [2**64 - 1]}, MalformedMessage),
    "one too many": ({"positions": range(MAX_POSITIONS + 1)}, MalformedMessage),
    "far too many": ({"positions": [1] * 100_000}, MalformedMessage),
    "no epoch": ({"epoch": 0}, EpochMismatch),
    "an older epoch": ({"epoch": 6}, EpochMismatch),
    "a later epoch": ({"epoch": 8}, EpochMismatch),
}


@pytest.mark.parametrize("wrong", FETCHES)
def test_wrong_positions_are_refused(wrong: str) -> None:
    fields, expected = FETCHES[wrong]
    with pytest.raises(expected) as caught:
        parse_fetch_request(fetch_request(**{"positions": [1], **fields}), SERVED, granted)
    assert type(caught.value) is expected
    assert len(caught.value.message) < 300


def test_as_many_positions_as_are_allowed_are_taken() -> None:
    message = fetch_request(range(2300, 2500))
    assert parse_fetch_request(message, SERVED, granted) == list(range(2300, 2500))


# --- sizes are compared before anything is allocated


def test_absurd_descriptions_are_refused_without_memory() -> None:
    absurd: list[dict[str, Any]] = [
        {"items": 2**64 - 1},
        {"items": MAX_ITEMS + 1},
        {"dim": 2**32 - 1},
        {"chunk_width": 2**31},
    ]
    messages = [pb.DescribeResponse(**described(**fields)) for fields in absurd]
    for message in messages:
        with at_most(100_000), pytest.raises(MalformedMessage):
            IndexDescription.from_message(message)


def test_a_reply_that_claims_much_and_carries_nothing_takes_no_memory() -> None:
    message = pb.DescribeResponse(**described(items=MAX_ITEMS, dim=1024))
    with at_most(100_000):
        layout = IndexDescription.from_message(message).layout
        claim = pb.ScoreResponse(first_block=0, blocks=layout.blocks)
        with pytest.raises(MalformedMessage):
            parse_score_response(claim, layout, 0)


def test_a_question_whose_chunks_are_empty_takes_no_memory() -> None:
    message = request()
    for chunk in message.chunks:
        chunk.c0 = b""
    for key in message.public_keys:
        key.c0 = b""
    with at_most(100_000), pytest.raises(MalformedMessage):
        parse_score_request(message, SERVED)


# --- arbitrary and mutated bytes


def parsed_description(data: bytes) -> Any:
    described = IndexDescription.from_message(pb.DescribeResponse.FromString(data))
    assert described.layout.items <= MAX_ITEMS
    assert IndexDescription.from_message(described.to_message()) == described
    return described


def parsed_request(data: bytes) -> Any:
    public_keys, chunks = parse_score_request(pb.ScoreRequest.FromString(data), SERVED)
    ciphertexts = [*public_keys, *chunks]
    assert len({one.seed for one in ciphertexts}) == LAYOUT.chunks + LAYOUT.public_keys
    for ciphertext in ciphertexts:
        assert len(ciphertext.seed) == 64
        assert (ciphertext.c0 < np.array(FAST.data_moduli)[:, None]).all()
    return public_keys, chunks


def parsed_response(data: bytes) -> Any:
    got = parse_score_response(pb.ScoreResponse.FromString(data), LAYOUT, 0)
    assert got.first_block == 0
    assert 1 <= len(got.c0) == len(got.c1) <= LAYOUT.blocks
    assert got.c0.max() < FAST.reply_moduli[0]
    assert got.c1.max() < FAST.reply_moduli[1]
    for prime in FAST.data_moduli:
        assert max(part.max() for part in got.lifted(FAST, prime)) < prime
    return got


def parsed_fetch(data: bytes) -> Any:
    positions = parse_fetch_request(pb.FetchRequest.FromString(data), SERVED, granted)
    assert len(set(positions)) == len(positions) <= MAX_POSITIONS
    assert max(positions) < LAYOUT.items
    return positions


@cache
def valid() -> dict[Callable[[bytes], Any], bytes]:
    return {
        parsed_description: SERVED.to_message().SerializeToString(),
        parsed_request: request().SerializeToString(),
        parsed_response: response().SerializeToString(),
        parsed_fetch: fetch_request(range(9)).SerializeToString(),
    }


PARSERS = pytest.mark.parametrize(
    "parse", [parsed_description, parsed_request, parsed_response, parsed_fetch]
)


def refused(parse: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether ``data`` is refused properly; anything but a proper refusal propagates."""
    try:
        parse(data)
    except DecodeError:
        return True  # gRPC answers this one before our code sees it
    except ProtocolError as error:
        assert type(error) in (MalformedMessage, ReleaseMismatch, EpochMismatch, UnknownPreset)
        assert len(error.message) < 500
        return True
    return False


@PARSERS
@thorough
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_arbitrary_bytes_are_valid_or_refused(parse: Callable[[bytes], Any], data: bytes) -> None:
    refused(parse, data)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Flip bits, cut out or put in a piece, or end early: near the front as often as anywhere."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "insert", "truncate", "extend"]),
                st.integers(0, 200) | st.integers(0, 2**20),
                st.binary(min_size=1, max_size=12),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def mutate(data: bytes) -> bytes:
        for kind, where, piece in steps:
            at = where % (len(data) + 1)
            if kind == "flip" and at < len(data):
                data = data[:at] + bytes([data[at] ^ (piece[0] or 1)]) + data[at + 1 :]
            elif kind == "cut":
                data = data[:at] + data[at + len(piece) :]
            elif kind == "insert":
                data = data[:at] + piece + data[at:]
            elif kind == "truncate":
                data = data[:at]
            else:
                data += piece
        return data

    return mutate


@PARSERS
@thorough
@given(mutate=mutations())
def test_mutated_messages_are_valid_or_refused(
    parse: Callable[[bytes], Any], mutate: Callable[[bytes], bytes]
) -> None:
    refused(parse, mutate(valid()[parse]))


@PARSERS
def test_the_messages_that_are_mutated_are_valid(parse: Callable[[bytes], Any]) -> None:
    assert not refused(parse, valid()[parse])


@pytest.mark.parametrize("parse", [parsed_description, parsed_request, parsed_response])
def test_a_truncated_message_is_refused(parse: Callable[[bytes], Any]) -> None:
    data = valid()[parse]
    for length in {*range(min(200, len(data))), *range(0, len(data), 997), len(data) - 1}:
        assert refused(parse, data[:length]), length


@quick
@given(
    st.builds(
        pb.DescribeResponse,
        institution=st.text(max_size=70),
        release_id=st.sampled_from([RELEASE, ""]) | st.text(max_size=20),
        epoch=st.integers(0, 2**64 - 1),
        preset=st.sampled_from(["private", "fast"]) | st.text(max_size=10),
        dim=st.integers(0, 2**32 - 1) | st.integers(0, 1030),
        chunk_width=st.integers(0, 2**32 - 1) | st.integers(0, 130),
        items=st.integers(0, 2**64 - 1),
    )
)
def test_any_description_is_valid_or_refused(message: pb.DescribeResponse) -> None:
    refused(parsed_description, message.SerializeToString())


@quick
@given(
    st.builds(
        pb.ScoreResponse,
        first_block=st.integers(0, 3) | st.integers(0, 2**64 - 1),
        blocks=st.integers(0, 4) | st.integers(0, 2**32 - 1),
        c0=st.binary(max_size=40),
        c1=st.binary(max_size=40),
    ),
    st.integers(0, 4),
)
def test_any_short_reply_is_refused(message: pb.ScoreResponse, next_block: int) -> None:
    with pytest.raises(MalformedMessage):
        parse_score_response(message, LAYOUT, next_block)


@quick
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 2600), max_size=220))
def test_any_positions_are_taken_exactly_when_they_are_good(positions: list[int]) -> None:
    good = (
        1 <= len(positions) <= MAX_POSITIONS
        and len(set(positions)) == len(positions)
        and max(positions) < LAYOUT.items
    )
    data = fetch_request(positions).SerializeToString()
    assert refused(parsed_fetch, data) is not good


@quick
@given(st.none() | st.integers(0, 2**32 - 1), st.sampled_from([pb.ScoreResponse, pb.FetchResponse]))
def test_what_is_left_of_a_day_is_told_or_absent(
    left: int | None, kind: type[pb.ScoreResponse] | type[pb.FetchResponse]
) -> None:
    told = kind()
    tell_left(told, left)
    found = kind.FromString(told.SerializeToString())
    assert parse_left(found) == (None if left is None else min(left, MAX_LEFT))
    if left is not None and left > MAX_LEFT:
        claimed = kind(**{"questions_left" if kind is pb.ScoreResponse else "items_left": left})
        with pytest.raises(MalformedMessage, match="left of a day's budget"):
            parse_left(claimed)
