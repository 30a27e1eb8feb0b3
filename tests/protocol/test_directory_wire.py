"""Messages of the directory and the relay: what comes back is what went, or a refusal."""

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protocol import directory_wire as wire
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.errors import MalformedMessage
from tests.protocol import parties

OFFER = wire.Offer(
    "clinic", "0123456789abcdef", 1200, "clinic.example.org:9443", parties.certificate("clinic").pem
)

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
offers = st.builds(
    wire.Offer,
    names,
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.integers(0, wire.MAX_ITEMS),
    st.sampled_from(["", "10.0.0.7:443", "[::1]:9443", "a.example.org:65535"]),
    st.binary(max_size=200),
)


@given(st.lists(offers, max_size=5, unique_by=lambda one: one.institution))
def test_a_list_comes_back_in_order_of_name(given: list[wire.Offer]) -> None:
    message = pb.ListResponse.FromString(wire.list_response(given).SerializeToString())
    assert wire.parse_list_response(message) == sorted(given, key=lambda one: one.institution)


@pytest.mark.parametrize(
    "changes",
    [
        {"institution": ""},
        {"institution": "../clinic"},
        {"institution": "c" * 64},
        {"release_id": "0123456789abcdeF"},
        {"release_id": ""},
        {"items": wire.MAX_ITEMS + 1},
        {"items": 2**64 - 1},
        {"address": "clinic.example.org"},
        {"address": "clinic.example.org:0"},
        {"address": "clinic.example.org:0443"},
        {"address": "unix:/run/service"},
        {"address": "dns:///clinic.example.org:443"},
        {"certificate": bytes(16_385)},
    ],
)
def test_what_cannot_be_offered_is_refused(changes: dict[str, Any]) -> None:
    message = OFFER.to_message()
    assert wire.Offer.from_message(message) == OFFER
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(MalformedMessage):
        wire.Offer.from_message(message)


def test_two_offers_of_one_name_or_too_many_are_refused() -> None:
    clinic, museum = OFFER, replace(OFFER, institution="museum")
    for wrong in ([clinic, clinic], [museum, clinic], [clinic] * 4097):
        message = pb.ListResponse(offers=[one.to_message() for one in wrong])
        with pytest.raises(MalformedMessage):
            wire.parse_list_response(message)


PARSERS = (wire.parse_connect, wire.parse_accept, wire.parse_payload)
FIRST = wire.connect_frame("clinic")
SECOND = wire.accept_frame(bytes(16))
LATER = pb.RelayFrame(payload=b"x")


@pytest.mark.parametrize("good", range(3))
def test_a_frame_is_of_one_kind_alone(good: int) -> None:
    frames = (FIRST, SECOND, LATER)
    assert [parse(frame) for parse, frame in zip(PARSERS, frames, strict=True)] == [
        "clinic",
        bytes(16),
        b"x",
    ]
    for number, frame in enumerate(frames):
        if number != good:
            both = pb.RelayFrame()
            both.MergeFrom(frame)
            with pytest.raises(MalformedMessage):
                PARSERS[good](both)
            both.MergeFrom(frames[good])
            with pytest.raises(MalformedMessage):
                PARSERS[good](both)


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(content: bytes) -> None:
    for kind, parse in (
        (pb.RelayFrame, wire.parse_connect),
        (pb.RelayFrame, wire.parse_accept),
        (pb.RelayFrame, wire.parse_payload),
        (pb.Offer, wire.Offer.from_message),
        (pb.ListResponse, wire.parse_list_response),
    ):
        try:
            parse(kind.FromString(content))  # type: ignore[operator]
        except (DecodeError, MalformedMessage):
            continue


def test_a_frame_of_more_than_its_bytes_is_refused() -> None:
    most = pb.RelayFrame(payload=bytes(wire.FRAME_BYTES))
    assert most.ByteSize() <= wire.MAX_FRAME_BYTES
    assert wire.parse_payload(most)
    with pytest.raises(MalformedMessage, match="got 262145"):
        wire.parse_payload(pb.RelayFrame(payload=bytes(wire.FRAME_BYTES + 1)))
    with pytest.raises(MalformedMessage, match="got 0"):
        wire.parse_payload(pb.RelayFrame())
