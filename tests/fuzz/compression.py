"""Decoders of what institutions send beside plain updates: compressed changes, and statistics."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from flwr.common import serde
from flwr.proto import recorddict_pb2 as flower
from google.protobuf.message import DecodeError, Message

from protocol.errors import MalformedMessage
from protocol.model import statistics, update
from protocol.model.compression import codec, codec_of, float16, int8, top_k
from protocol.model.statistics import Statistics, Sums
from protocol.model.update import Arrays
from tests.fuzz.mutations import of_bytes, of_message
from tests.fuzz.target import Mutation, Target

WIDTH = 4
SMALL: Arrays = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
BLOCKS: Arrays = {"weight": np.zeros((300, 2), np.float32), "bias": np.zeros(3, np.float32)}
"""Of three blocks and one."""
SPARSE: Arrays = {"weight": np.zeros((300, 220), np.float32)}
"""So many values that positions are in two blocks, of which the second is not full."""
_HEADER = 128
"""Bytes that NumPy puts before the values of an array."""


_EXTREMES: Sequence[Callable[[bytes], bytes]] = (
    lambda body: b"\x7f" * len(body),
    lambda body: b"\xff" * len(body),
    lambda body: body[:-2] + b"\xff\xff",
)


def read(kind: type[Message], from_proto: Callable[[Any], Any], data: bytes) -> Any:
    """A record, as Flower's own code reads it: what that refuses never reaches this project."""
    try:
        return from_proto(kind.FromString(data))
    except Exception as error:
        raise MalformedMessage(f"refused by Flower: {error}") from error


def decoding(compression: str, like: Arrays) -> Callable[[bytes], None]:
    def decode(data: bytes) -> None:
        record = read(flower.ArrayRecord, serde.array_record_from_proto, data)
        found = codec_of(compression).decode(record, like)
        assert list(found) == list(like)
        for name, value in found.items():
            assert value.dtype == np.float32
            assert value.shape == like[name].shape
            assert np.isfinite(value).all()

    return decode


def encoded(compression: str, like: Arrays) -> Sequence[bytes]:
    random = np.random.default_rng(0)
    drawn = {name: random.standard_normal(a.shape).astype(np.float32) for name, a in like.items()}
    drawn[max(drawn)].flat[-1] = 9  # the last one of all is sent
    records = (codec_of(compression).encode(one, None, random)[0] for one in (drawn, like))
    return [serde.array_record_to_proto(record).SerializeToString() for record in records]


def at_the_edge(seed: bytes, kind: type[Message]) -> Sequence[bytes]:
    """Each array in turn: a shape that would not fit in memory, and values that are extreme."""
    made = []
    for place in range(len(arrays_of(kind.FromString(seed)))):
        for change in (*_EXTREMES, None):
            message: Any = kind.FromString(seed)
            chosen = arrays_of(message)[place]
            body = chosen.data[_HEADER:]
            if change is None:
                chosen.shape[:] = [(1 << 31) - 1] * 2
            else:
                chosen.data = chosen.data[:_HEADER] + change(body)
            made.append(message.SerializeToString())
    return made


def of_values(kind: type[Message]) -> Mutation:
    """Change the values of one array behind its header, at the same length; or any field."""
    otherwise = of_message(kind)

    def mutate(data: bytes, random: Random) -> bytes:
        message: Any = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return of_bytes(data, random)
        arrays = [one for one in arrays_of(message) if len(one.data) > _HEADER]
        if not arrays or random.random() < 0.3:
            return otherwise(data, random)
        chosen = random.choice(arrays)
        head, body = chosen.data[:_HEADER], chosen.data[_HEADER:]
        chosen.data = head + of_bytes(body, random)[: len(body)].ljust(len(body), b"\0")
        return bytes(message.SerializeToString())

    return mutate


def arrays_of(message: Any) -> list[Any]:
    """All arrays of an ArrayRecord, or of a RecordDict."""
    if isinstance(message, flower.ArrayRecord):
        return [item.value for item in message.items]
    return [item.value for one in message.items for item in one.array_record.items]


def sums(data: bytes) -> None:
    content = read(flower.RecordDict, serde.recorddict_from_proto, data)
    found = Sums.from_content(content, WIDTH)
    combined = Statistics.combine([found, found])
    assert np.isfinite(combined.mean).all()
    assert (combined.std > 0).all()
    # What the coordinator makes of it, an institution takes.
    Statistics.from_record(combined.to_record(), WIDTH)


def sums_seeds() -> Sequence[bytes]:
    features = np.random.default_rng(0).standard_normal((5, WIDTH))
    both = (Sums.of(features, share_count=share) for share in (True, False))
    return [serde.recorddict_to_proto(one.to_content()).SerializeToString() for one in both]


def standardisation(data: bytes) -> None:
    record = read(flower.ArrayRecord, serde.array_record_from_proto, data)
    found = Statistics.from_record(record, WIDTH)
    assert np.isfinite(found.mean / found.std).all()


def standardisation_seeds() -> Sequence[bytes]:
    found = Statistics(np.full(WIDTH, 0.5, np.float32), np.full(WIDTH, 2.0, np.float32))
    return [serde.array_record_to_proto(found.to_record()).SerializeToString()]


def _codec(compression: str, like: Arrays, module: Any) -> Target:
    return Target(
        decoding(compression, like),
        lambda: encoded(compression, like),
        of_values(flower.ArrayRecord),
        (module, codec, update),
        worst=lambda: at_the_edge(encoded(compression, like)[0], flower.ArrayRecord),
    )


TARGETS = {
    "float16": _codec("float16", SMALL, float16),
    "int8": _codec("int8", BLOCKS, int8),
    "top_k_bitmap": _codec("top-k:0.5", SMALL, top_k),
    "top_k_sparse": _codec("top-k:0.0005", SPARSE, top_k),
    "sums": Target(
        sums,
        sums_seeds,
        of_values(flower.RecordDict),
        (statistics, update),
        worst=lambda: at_the_edge(sums_seeds()[0], flower.RecordDict),
    ),
    "standardisation": Target(
        standardisation,
        standardisation_seeds,
        of_values(flower.ArrayRecord),
        (statistics, update),
    ),
}
