"""Messages: valid ones come back, and nothing else gets past the parser."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain, repeat
from math import ceil
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
from protocol.insecure_twin import InsecureTwin
from protocol.packing import Layout
from protocol.params import FAST, PRIVATE, Preset
from protocol.scheme import EncryptedScores, Seeded
from protocol.wire import (
    MAX_ITEMS,
    MAX_POSITIONS,
    IndexDescription,
    longest_request,
    parse_fetch_request,
    parse_score_requests,
    parse_score_response,
    score_requests,
    score_response,
)

N = 4096
RELEASE = "0123456789abcdef"
LAYOUT = Layout(FAST, 18, 4, 2500)  # five chunks, three blocks of 1,024
HEAD, FIRST, LAST = 0, 1, 2  # the messages of a question: keys, four chunks, one chunk
SERVED = IndexDescription("museum", RELEASE, 7, LAYOUT)
quick = settings(deadline=None)
thorough = settings(deadline=None, max_examples=300)


@cache
def question(layout: Layout = LAYOUT) -> tuple[list[Seeded], list[Seeded]]:
    key = InsecureTwin().keygen(layout.preset)
    vector = np.full(layout.dim, 0.9 / np.sqrt(layout.dim), np.float32)
    polynomials = layout.question_polynomials(vector)
    return key.public_keys(layout.public_keys), list(key.encrypt_query(polynomials))


def requests() -> list[pb.ScoreRequest]:
    public_keys, chunks = question()
    return list(score_requests(SERVED, public_keys, chunks))


def parsed(
    messages: Iterable[pb.ScoreRequest], served: IndexDescription = SERVED
) -> tuple[list[Seeded], list[Seeded]]:
    """Take a question whole, as an institution does."""
    public_keys, chunks = parse_score_requests(messages, served)
    return public_keys, list(chunks)


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
@pytest.mark.parametrize(("dim", "width"), [(1, 1), (5, 1), (5, 4), (3, 128), (32, 4)])
def test_a_question_comes_back(preset: Preset, dim: int, width: int) -> None:
    described = IndexDescription("museum", RELEASE, 7, Layout(preset, dim, width, 9))
    public_keys, chunks = question(described.layout)
    sent = [one.SerializeToString() for one in score_requests(described, public_keys, chunks)]
    assert len(sent) == 1 + ceil(described.layout.chunks / 4)
    assert max(map(len, sent)) <= longest_request(described.layout)
    keys, got = parsed(map(pb.ScoreRequest.FromString, sent), described)
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
    sent = pb.FetchRequest(epoch=7, positions=positions).SerializeToString()
    assert parse_fetch_request(pb.FetchRequest.FromString(sent), SERVED) == positions


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


Messages = list[pb.ScoreRequest]
REQUESTS: dict[str, tuple[Callable[[Messages], object], type[ProtocolError]]] = {
    "no release": (lambda m: m[HEAD].head.ClearField("release_id"), ReleaseMismatch),
    "another release": (lambda m: setattr(m[HEAD].head, "release_id", "f" * 16), ReleaseMismatch),
    "a huge release": (lambda m: setattr(m[HEAD].head, "release_id", "f" * 10**6), ReleaseMismatch),
    "no epoch": (lambda m: m[HEAD].head.ClearField("epoch"), EpochMismatch),
    "an older epoch": (lambda m: setattr(m[HEAD].head, "epoch", 6), EpochMismatch),
    "a later epoch": (lambda m: setattr(m[HEAD].head, "epoch", 2**64 - 1), EpochMismatch),
    "no preset": (lambda m: m[HEAD].head.ClearField("preset"), MalformedMessage),
    "another preset": (lambda m: setattr(m[HEAD].head, "preset", "private"), MalformedMessage),
    "an unknown preset": (
        lambda m: setattr(m[HEAD].head, "preset", "x" * 10**6),
        MalformedMessage,
    ),
    "no public keys": (lambda m: m[HEAD].head.ClearField("public_keys"), MalformedMessage),
    "a public key too few": (lambda m: m[HEAD].head.public_keys.pop(), MalformedMessage),
    "a public key too many": (
        lambda m: m[HEAD].head.public_keys.add(c0=m[FIRST].chunks[0].c0, seed=b"s" * 64),
        MalformedMessage,
    ),
    "no messages": (lambda m: m.clear(), MalformedMessage),
    "an empty head": (lambda m: m[HEAD].head.Clear(), ReleaseMismatch),
    "a message of nothing": (lambda m: m.insert(FIRST, pb.ScoreRequest()), MalformedMessage),
    "a message of nothing first": (lambda m: m.insert(HEAD, pb.ScoreRequest()), MalformedMessage),
    "a message of nothing last": (lambda m: m.append(pb.ScoreRequest()), MalformedMessage),
    "no head": (lambda m: m.pop(HEAD), MalformedMessage),
    "the head after a chunk": (lambda m: m.insert(FIRST, m.pop(HEAD)), MalformedMessage),
    "the head twice": (lambda m: m.insert(FIRST, m[HEAD]), MalformedMessage),
    "the head again last": (lambda m: m.append(m[HEAD]), MalformedMessage),
    "no chunks": (lambda m: m.__delitem__(slice(FIRST, None)), MalformedMessage),
    "a chunk too few": (lambda m: m.pop(), MalformedMessage),
    "a chunk too many": (
        lambda m: m.append(
            pb.ScoreRequest(chunks=[{"c0": m[LAST].chunks[0].c0, "seed": b"s" * 64}])
        ),
        MalformedMessage,
    ),
    "an empty chunk": (lambda m: m[LAST].chunks[0].Clear(), MalformedMessage),
    "a chunk too few amid them": (lambda m: m[FIRST].chunks.pop(), MalformedMessage),
    "a chunk too many at the end": (
        lambda m: m[LAST].chunks.add(c0=m[LAST].chunks[0].c0, seed=b"s" * 64),
        MalformedMessage,
    ),
    "five chunks in a message": (
        lambda m: m[FIRST].chunks.append(m.pop(LAST).chunks[0]),
        MalformedMessage,
    ),
    "chunks beside the head": (
        lambda m: m[HEAD].MergeFrom(m.pop(FIRST)),
        MalformedMessage,
    ),
    "the head beside chunks": (
        lambda m: m[FIRST].MergeFrom(m[HEAD]),
        MalformedMessage,
    ),
    "a seed twice among chunks": (
        lambda m: setattr(m[LAST].chunks[0], "seed", m[FIRST].chunks[1].seed),
        MalformedMessage,
    ),
    "a seed twice among public keys": (
        lambda m: setattr(m[HEAD].head.public_keys[1], "seed", m[HEAD].head.public_keys[0].seed),
        MalformedMessage,
    ),
    "the seed of the public key": (
        lambda m: setattr(m[LAST].chunks[0], "seed", m[HEAD].head.public_keys[0].seed),
        MalformedMessage,
    ),
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
    messages = requests()
    ciphertexts = {
        "public key": messages[HEAD].head.public_keys[1],
        "first chunk": messages[FIRST].chunks[0],
        "last chunk": messages[LAST].chunks[-1],
    }
    parsed(messages)
    CIPHERTEXTS[wrong](ciphertexts[where])
    with pytest.raises(MalformedMessage):
        parsed(messages)


@pytest.mark.parametrize("wrong", REQUESTS)
def test_a_wrong_question_is_refused(wrong: str) -> None:
    change, expected = REQUESTS[wrong]
    messages = requests()
    change(messages)
    with pytest.raises(expected) as caught:
        parsed(messages)
    assert type(caught.value) is expected
    assert len(caught.value.message) < 300


def test_a_refused_message_says_what_was_due() -> None:
    head, first, _ = requests()
    for messages, expected in (
        ([], "a question begins with its head alone, got no more messages"),
        ([first], "a question begins with its head alone, got 4 chunks"),
        ([head, pb.ScoreRequest()], "1 to 4 of 5 chunks come next, got 0 chunks"),
        ([head, first], "1 to 1 of 1 chunks come next, got no more messages"),
        ([head, first, head], "1 to 1 of 1 chunks come next, got a head and 0 chunks"),
        ([head, first, first], "1 to 1 of 1 chunks come next, got 4 chunks"),
        ([*requests(), first], "the question ends after 5 chunks, got 4 chunks"),
    ):
        with pytest.raises(MalformedMessage) as caught:
            parsed(messages)
        assert caught.value.message == expected


def test_each_message_is_checked_before_the_next_is_waited_for() -> None:
    """So that what is wrong is refused at once, and never more than a message is held."""
    taken: list[str] = []

    def coming(messages: Iterable[pb.ScoreRequest]) -> Iterator[pb.ScoreRequest]:
        for message in messages:
            taken.append("head" if message.HasField("head") else "chunks")
            yield message
        taken.append("end")

    public_keys, chunks = parse_score_requests(coming(requests()), SERVED)
    assert len(public_keys) == LAYOUT.public_keys
    assert taken == ["head"]
    for number, chunk in enumerate(chunks):
        assert same(chunk, question()[1][number])
        assert taken == ["head", *["chunks"] * (number // 4 + 1)]
    assert taken == ["head", "chunks", "chunks", "end"]

    taken.clear()
    messages = requests()
    messages[FIRST].chunks[0].c0 = b""
    with pytest.raises(MalformedMessage):
        parsed(coming(messages))
    assert taken == ["head", "chunks"]


def test_the_largest_residue_is_taken_where_the_modulus_is_refused() -> None:
    messages = requests()
    chunk = messages[FIRST].chunks[0]
    chunk.c0 = with_residue(chunk.c0, 17, FAST.moduli[0] - 1)
    _, chunks = parsed(messages)
    assert chunks[0].c0[0, 17] == FAST.moduli[0] - 1


def test_residues_are_held_against_the_prime_that_they_are_under() -> None:
    # 2^27 > the second prime > the first: a residue that only the second prime allows.
    first, second = FAST.data_moduli
    residues = np.zeros(N, np.uint32)
    residues[5] = first
    assert first < second
    messages = requests()
    zeros = pack(np.zeros(N, np.uint32), first)
    messages[FIRST].chunks[0].c0 = zeros + pack(residues, second)
    _, chunks = parsed(messages)
    assert chunks[0].c0[1, 5] == first
    messages[FIRST].chunks[0].c0 = pack(residues, second) + zeros
    with pytest.raises(MalformedMessage, match=f"below {first}"):
        parsed(messages)


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
        parse_fetch_request(pb.FetchRequest(**{"epoch": 7, "positions": [1], **fields}), SERVED)
    assert type(caught.value) is expected
    assert len(caught.value.message) < 300


def test_as_many_positions_as_are_allowed_are_taken() -> None:
    message = pb.FetchRequest(epoch=7, positions=range(2300, 2500))
    assert parse_fetch_request(message, SERVED) == list(range(2300, 2500))


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


def test_a_question_whose_ciphertexts_are_empty_takes_no_memory() -> None:
    messages = requests()
    for key in messages[HEAD].head.public_keys:
        key.c0 = b""
    with at_most(100_000), pytest.raises(MalformedMessage):
        parsed(messages)
    messages = requests()
    _, chunks = parse_score_requests(messages, SERVED)
    messages[FIRST].chunks[0].c0 = b""
    with at_most(100_000), pytest.raises(MalformedMessage):
        next(chunks)


def test_messages_without_end_take_no_memory() -> None:
    """One message more than is due is enough to refuse them all."""
    head, first, last = requests()
    with at_most(4_000_000), pytest.raises(MalformedMessage):
        parsed(chain([head, first, last], repeat(last)))


# --- arbitrary and mutated bytes


def parsed_description(data: bytes) -> Any:
    described = IndexDescription.from_message(pb.DescribeResponse.FromString(data))
    assert described.layout.items <= MAX_ITEMS
    assert IndexDescription.from_message(described.to_message()) == described
    return described


def parsed_question(messages: Iterable[pb.ScoreRequest]) -> Any:
    public_keys, chunks = parsed(messages)
    ciphertexts = [*public_keys, *chunks]
    assert len({one.seed for one in ciphertexts}) == LAYOUT.chunks + LAYOUT.public_keys
    for ciphertext in ciphertexts:
        assert len(ciphertext.seed) == 64
        assert (ciphertext.c0 < np.array(FAST.data_moduli)[:, None]).all()
    return public_keys, chunks


def parsed_head(data: bytes) -> Any:
    return parsed_question([pb.ScoreRequest.FromString(data), *requests()[FIRST:]])


def parsed_chunk(data: bytes) -> Any:
    head, first, _ = requests()
    return parsed_question([head, first, pb.ScoreRequest.FromString(data)])


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
    positions = parse_fetch_request(pb.FetchRequest.FromString(data), SERVED)
    assert len(set(positions)) == len(positions) <= MAX_POSITIONS
    assert max(positions) < LAYOUT.items
    return positions


@cache
def valid() -> dict[Callable[[bytes], Any], bytes]:
    return {
        parsed_description: SERVED.to_message().SerializeToString(),
        parsed_head: requests()[HEAD].SerializeToString(),
        parsed_chunk: requests()[LAST].SerializeToString(),
        parsed_response: response().SerializeToString(),
        parsed_fetch: pb.FetchRequest(epoch=7, positions=range(9)).SerializeToString(),
    }


PARSERS = pytest.mark.parametrize(
    "parse", [parsed_description, parsed_head, parsed_chunk, parsed_response, parsed_fetch]
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


@pytest.mark.parametrize("parse", [parsed_description, parsed_head, parsed_chunk, parsed_response])
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
    data = pb.FetchRequest(epoch=7, positions=positions).SerializeToString()
    assert refused(parsed_fetch, data) is not good
