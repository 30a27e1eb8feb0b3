"""One institution, as a searcher sees it: describe, ask, fetch."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from numpy.typing import NDArray

from client.searcher.traffic import Traffic
from client.searcher.tunnel import Tunnel
from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.errors import (
    BlindsightError,
    MalformedMessage,
    ReleaseMismatch,
    ServiceError,
    UsageError,
)
from protocol.grpc_errors import error_from_rpc
from protocol.handles import Grant
from protocol.hosts import member_host
from protocol.scheme import Scheme, SecretKey

_MAX_THUMBNAIL_BYTES = 256 * 1024
_JPEG = b"\xff\xd8\xff"
_MAX_CAPTION_CHARACTERS = 2000
_MAX_ID_CHARACTERS = 1000


@dataclass(frozen=True)
class Released:
    """What an institution released of one item."""

    thumbnail: bytes
    caption: str
    id: str = ""
    original: bytes = b""
    """The file as the institution holds it: foreign bytes of a format that nobody checked."""


class RemoteInstitution:
    """A connection to one institution's service; every call raises ``BlindsightError``."""

    def __init__(
        self,
        name: str,
        address: str,
        credentials: Credentials,
        timeout: float,
        certificate: bytes | None = None,
        tunnel: Tunnel | None = None,
    ) -> None:
        """Prepare a connection to ``address`` (host:port); calls take ``timeout`` seconds each.

        Whoever answers holds a certificate of ``name``, or this very ``certificate`` (PEM), which
        the caller has checked. ``tunnel`` leads there instead of an address, and is closed with it.
        """
        self.name = name
        self._tunnel = tunnel
        self._timeout = timeout
        self._credentials = credentials
        # A run of eight blocks is at most 0.3 MB; what is longer is refused unread.
        options = [
            ("grpc.max_receive_message_length", 8 << 20),
            ("grpc.ssl_target_name_override", member_host(name)),
        ]
        address = tunnel.address if tunnel else address
        known = credentials.for_client(certificate)
        self._channel = grpc.secure_channel(address, known, options)
        self._stub = rpc.RetrievalStub(self._channel)
        # The newest: of one searcher and epoch any question's will do.
        self._grant: Grant | None = None

    @property
    def relayed(self) -> bool:
        """Whether the coordinator's relay leads there."""
        return self._tunnel is not None

    def describe(self, release_id: str) -> wire.IndexDescription:
        """Ask what is served; raise unless it is this institution's index under ``release_id``."""
        try:
            message = self._stub.Describe(pb.DescribeRequest(), timeout=self._timeout)
        except grpc.RpcError as error:
            # Of an own certificate that has expired TLS only says that the line is dead.
            Certificate.load(self._credentials.certificate).check_dates()
            raise self._failed(error) from error
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
        asked = self._encrypt(described, question, scheme, traffic)
        now = time.perf_counter()
        with self._told():
            # Decrypted as they come, while the institution works on the rest.
            for message in self._stub.Score(asked.request, timeout=self._timeout):
                traffic.download_bytes += message.ByteSize()
                now = self._decrypt(asked, message, traffic, now)
        traffic.clock("answer", now)
        return asked.whole()

    def screen(
        self,
        described: wire.IndexDescription,
        questions: Sequence[NDArray[np.float32]],
        scheme: Scheme,
        traffic: Traffic,
    ) -> NDArray[np.float64]:
        """Return the scores float64 [k, items] of 1 to 8 embeddings float32 [dim] at once.

        The institution answers all in one pass over its index, and counts each as a question.
        Each is encrypted under a key of its own. Raises UsageError for another number of them.
        """
        if not 1 <= len(questions) <= wire.MAX_PROBES:
            raise UsageError(
                f"1 to {wire.MAX_PROBES} questions are screened at once, got {len(questions)}"
            )
        asked = [self._encrypt(described, one, scheme, traffic) for one in questions]
        now = time.perf_counter()
        with self._told():
            requests = iter([one.request for one in asked])
            for message in self._stub.Screen(requests, timeout=self._timeout):
                traffic.download_bytes += message.ByteSize()
                if message.question >= len(asked):
                    raise MalformedMessage(
                        f"{len(asked)} questions were asked, got an answer to {message.question}"
                    )
                now = self._decrypt(asked[message.question], message.scores, traffic, now)
        traffic.clock("answer", now)
        return np.stack([one.whole() for one in asked])

    def _encrypt(
        self,
        described: wire.IndexDescription,
        question: NDArray[np.float32],
        scheme: Scheme,
        traffic: Traffic,
    ) -> "_Asked":
        layout, now = described.layout, time.perf_counter()
        key = scheme.keygen(layout.preset)
        traffic.watch(key)
        public_keys = key.public_keys(layout.public_keys)
        now = traffic.clock("keygen", now)
        chunks = key.encrypt_query(layout.question_polynomials(question))
        request = wire.score_request(described, public_keys, chunks)
        traffic.upload_bytes += request.ByteSize()
        traffic.clock("encrypt", now)
        return _Asked(described, key, request)

    def _decrypt(
        self, asked: "_Asked", message: pb.ScoreResponse, traffic: Traffic, now: float
    ) -> float:
        layout = asked.described.layout
        reply = wire.parse_score_response(message, layout, asked.next_block)
        if asked.next_block == 0:
            self._grant = wire.parse_grant(message)
            traffic.questions_left = wire.parse_left(message)
        now = traffic.clock("answer", now)
        asked.scores.append(asked.key.decrypt_scores(layout, reply).reshape(-1))
        asked.next_block += len(reply.c0)
        return traffic.clock("decrypt", now)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._failed(error) from error

    def fetch(
        self, described: wire.IndexDescription, winners: list[int], count: int, traffic: Traffic
    ) -> dict[int, Released]:
        """Fetch what is released of ``winners``, hidden among decoys.

        Every institution is asked for ``count`` positions, whatever it won, in an order that
        says nothing: it learns that the winners are among them, and not how many they are.
        """
        now = time.perf_counter()
        positions = _with_decoys(winners, count, described.layout.items)
        traffic.items_asked += len(positions)
        traffic.items_wanted += len(winners)
        grant = self._grant
        request = pb.FetchRequest(
            epoch=described.epoch,
            ticket=grant.ticket if grant else b"",
            handles=grant.handles(positions) if grant else [],
        )
        traffic.upload_bytes += request.ByteSize()
        items: list[pb.ReleasedItem] = []
        with self._told():
            for message in self._stub.Fetch(request, timeout=self._timeout):
                traffic.download_bytes += message.ByteSize()
                if not message.items or len(items) + len(message.items) > len(positions):
                    raise MalformedMessage(
                        f"{len(positions)} items are due, got {len(items) + len(message.items)}"
                    )
                if not items:
                    traffic.items_left = wire.parse_left(message)
                items.extend(message.items)
        traffic.clock("fetch", now)
        if [item.position for item in items] != positions:
            raise MalformedMessage(f"{self.name} answered for other items than were asked for")
        for item in items:
            _check_thumbnail(item.thumbnail)
        wanted = set(winners)
        return {
            item.position: Released(
                item.thumbnail,
                item.caption[:_MAX_CAPTION_CHARACTERS],
                item.id[:_MAX_ID_CHARACTERS],
                item.original,
            )
            for item in items
            if item.position in wanted
        }

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
        if self._tunnel:
            self._tunnel.close()

    def _failed(self, error: grpc.RpcError) -> BlindsightError:
        found = error_from_rpc(error, self._who)
        if isinstance(found, ServiceError) and "certificate has expired" in found.message:
            message = f"{self.name} cannot be reached: its certificate has expired"
            return ServiceError(message, "Tell the institution: its coordinator makes a new one.")
        return found

    @property
    def _who(self) -> str:
        return f"{self.name} ({self._tunnel})" if self._tunnel else self.name


@dataclass
class _Asked:
    """A question under its own key, and what was decrypted of the answer so far."""

    described: wire.IndexDescription
    key: SecretKey
    request: pb.ScoreRequest
    next_block: int = 0
    scores: list[NDArray[np.float64]] = field(default_factory=list)

    def whole(self) -> NDArray[np.float64]:
        """Every score float64 [items]. Raises MalformedMessage if the answer was cut short."""
        layout = self.described.layout
        if self.next_block != layout.blocks:
            raise MalformedMessage(f"{layout.blocks} blocks are due, got {self.next_block}")
        return np.concatenate(self.scores)[: layout.items]


def _check_thumbnail(data: bytes) -> None:
    if len(data) > _MAX_THUMBNAIL_BYTES:
        raise MalformedMessage(
            f"a thumbnail has at most {_MAX_THUMBNAIL_BYTES} bytes, got {len(data)}"
        )
    if data and not data.startswith(_JPEG):
        raise MalformedMessage(f"a thumbnail is a JPEG, got bytes that begin {data[:4].hex()}")


def _with_decoys(winners: list[int], count: int, items: int) -> list[int]:
    choose = secrets.SystemRandom()
    positions = set(winners)
    while len(positions) < min(count, items):
        positions.add(choose.randrange(items))
    # Sorted: an order that depends on the positions alone.
    return sorted(positions)
