"""One institution, as a searcher sees it: describe, ask, fetch."""

import secrets
import time
from dataclasses import dataclass, field

import grpc
import numpy as np
from numpy.typing import NDArray

from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import MalformedMessage, ReleaseMismatch
from protocol.grpc_errors import error_from_rpc
from protocol.scheme import Scheme

_MAX_THUMBNAIL_BYTES = 256 * 1024
_MAX_CAPTION_CHARACTERS = 2000


@dataclass
class Traffic:
    """What one question to one institution cost: bytes, and milliseconds by phase."""

    upload_bytes: int = 0
    download_bytes: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)

    def clock(self, phase: str, since: float) -> float:
        """Book the time since ``since`` under ``phase``; return now."""
        now = time.perf_counter()
        self.milliseconds[phase] = self.milliseconds.get(phase, 0.0) + 1e3 * (now - since)
        return now


@dataclass(frozen=True)
class Released:
    """What an institution released of one item."""

    thumbnail: bytes
    caption: str


class RemoteInstitution:
    """A connection to one institution's service; every call raises ``BlindsightError``."""

    def __init__(self, name: str, address: str, credentials: Credentials, timeout: float) -> None:
        """Prepare a connection to ``address`` (host:port); calls take ``timeout`` seconds each."""
        self.name = name
        self._timeout = timeout
        # A run of eight blocks is at most 0.3 MB; what is longer is refused unread.
        options = [("grpc.max_receive_message_length", 8 << 20)]
        self._channel = grpc.secure_channel(address, credentials.for_client(), options)
        self._stub = rpc.RetrievalStub(self._channel)

    def describe(self, release_id: str) -> wire.IndexDescription:
        """Ask what is served; raise unless it is this institution's index under ``release_id``."""
        try:
            message = self._stub.Describe(pb.DescribeRequest(), timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.name) from error
        described = wire.IndexDescription.from_message(message)
        if described.institution != self.name:
            raise MalformedMessage(
                f"{self.name} expected at this address, got {described.institution}"
            )
        if described.release_id != release_id:
            raise ReleaseMismatch(
                f"{self.name} serves release {described.release_id}, "
                f"this searcher has {release_id}",
                "Fetch the release that the federation serves.",
            )
        return described

    def score(
        self,
        described: wire.IndexDescription,
        question: NDArray[np.float32],
        scheme: Scheme,
        traffic: Traffic,
    ) -> NDArray[np.float64]:
        """Return the scores float64 [items] of an embedding float32 [dim].

        The institution sees ciphertext under a key that is fresh for this call and dropped with
        it. The searcher learns one score for each item, and nothing else of an embedding.
        """
        layout, now = described.layout, time.perf_counter()
        key = scheme.keygen(layout.preset)
        public_keys = key.public_keys(layout.public_keys)
        now = traffic.clock("keygen", now)
        chunks = key.encrypt_query(layout.question_polynomials(question))
        request = wire.score_request(described, public_keys, chunks)
        traffic.upload_bytes += request.ByteSize()
        now = traffic.clock("encrypt", now)
        scores, next_block = [], 0
        try:
            # Decrypted as they come, while the institution works on the rest.
            for message in self._stub.Score(request, timeout=self._timeout):
                traffic.download_bytes += message.ByteSize()
                reply = wire.parse_score_response(message, layout, next_block)
                now = traffic.clock("answer", now)
                scores.append(key.decrypt_scores(layout, reply).reshape(-1))
                next_block += len(reply.c0)
                now = traffic.clock("decrypt", now)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.name) from error
        if next_block != layout.blocks:
            raise MalformedMessage(f"{layout.blocks} blocks are due, got {next_block}")
        traffic.clock("answer", now)
        return np.concatenate(scores)[: layout.items]

    def fetch(
        self, described: wire.IndexDescription, winners: list[int], count: int, traffic: Traffic
    ) -> dict[int, Released]:
        """Fetch what is released of ``winners``, hidden among decoys.

        Every institution is asked for ``count`` positions, whatever it won, in an order that
        says nothing: it learns that the winners are among them, and not how many they are.
        """
        now = time.perf_counter()
        positions = _with_decoys(winners, count, described.layout.items)
        request = pb.FetchRequest(epoch=described.epoch, positions=positions)
        traffic.upload_bytes += request.ByteSize()
        try:
            message = self._stub.Fetch(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.name) from error
        traffic.download_bytes += message.ByteSize()
        traffic.clock("fetch", now)
        if [item.position for item in message.items] != positions:
            raise MalformedMessage(f"{self.name} answered for other items than were asked for")
        for item in message.items:
            if len(item.thumbnail) > _MAX_THUMBNAIL_BYTES:
                raise MalformedMessage(
                    f"a thumbnail has at most {_MAX_THUMBNAIL_BYTES} bytes, got "
                    f"{len(item.thumbnail)}"
                )
        wanted = set(winners)
        return {
            item.position: Released(item.thumbnail, item.caption[:_MAX_CAPTION_CHARACTERS])
            for item in message.items
            if item.position in wanted
        }

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _with_decoys(winners: list[int], count: int, items: int) -> list[int]:
    choose = secrets.SystemRandom()
    positions = set(winners)
    while len(positions) < min(count, items):
        positions.add(choose.randrange(items))
    # Sorted: an order that depends on the positions alone.
    return sorted(positions)
