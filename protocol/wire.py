"""Messages to native values and back; every foreign byte is checked here (docs/protocol.md 4).

Lengths follow from the described layout and are compared before anything is allocated.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocol.bits import pack, unpack
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.errors import EpochMismatch, MalformedMessage, ReleaseMismatch, UsageError
from protocol.handles import SECRET_BYTES, TICKET_BYTES, Grant
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.params import preset_by_name
from protocol.scheme import EncryptedScores, Seeded
from protocol.seeds import SEED_BYTES

MAX_POSITIONS = 200
"""Items in one fetch."""

MAX_PROBES = 8
"""Questions in one call of Screen: as many as share one pass over an index."""

MAX_ITEMS = 1 << 27
"""Items in one index that a searcher believes in: some 2 GB of reply."""

MAX_LEFT = 1_000_000_000
"""The most that is told of what remains of a day's budget; more is told as this."""

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
"""What an institution can be called: fit for a folder, a certificate and a log."""

_RELEASE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class IndexDescription:
    """What an institution says of the index that it serves."""

    institution: str
    release_id: str
    epoch: int
    layout: Layout

    def __post_init__(self) -> None:
        """Raise :class:`MalformedMessage` for a name or an id of another form."""
        if not re.fullmatch(NAME, self.institution):
            raise MalformedMessage(
                f"an institution's name is {NAME}, got {self.institution[:80]!r}"
            )
        if not _RELEASE.fullmatch(self.release_id):
            raise MalformedMessage(
                f"a release id has 16 hexadecimal digits, got {self.release_id[:80]!r}"
            )

    def to_message(self) -> pb.DescribeResponse:
        """Return the message of this description."""
        return pb.DescribeResponse(
            institution=self.institution,
            release_id=self.release_id,
            epoch=self.epoch,
            preset=self.layout.preset.name,
            dim=self.layout.dim,
            chunk_width=self.layout.chunk_width,
            items=self.layout.items,
        )

    @classmethod
    def from_message(cls, message: pb.DescribeResponse) -> "IndexDescription":
        """Check a description; raise :class:`MalformedMessage` or ``UnknownPreset``."""
        preset = preset_by_name(message.preset)
        if message.items > MAX_ITEMS:
            raise MalformedMessage(f"an index has at most {MAX_ITEMS} items, got {message.items}")
        try:
            layout = Layout(preset, message.dim, message.chunk_width, message.items)
        except UsageError as error:
            raise MalformedMessage(f"a description that cannot be: {error.message}") from error
        return cls(message.institution, message.release_id, message.epoch, layout)


def score_request(
    described: IndexDescription, public_keys: list[Seeded], chunks: list[Seeded]
) -> pb.ScoreRequest:
    """Return the message of one encrypted question."""
    return pb.ScoreRequest(
        release_id=described.release_id,
        epoch=described.epoch,
        preset=described.layout.preset.name,
        public_keys=[_ciphertext(key, described.layout) for key in public_keys],
        chunks=[_ciphertext(chunk, described.layout) for chunk in chunks],
    )


def parse_score_request(
    message: pb.ScoreRequest, served: IndexDescription
) -> tuple[list[Seeded], list[Seeded]]:
    """Check an encrypted question against the index served; return public keys and chunks.

    Raises :class:`ReleaseMismatch`, :class:`EpochMismatch` or :class:`MalformedMessage`.
    """
    if message.release_id != served.release_id:
        raise ReleaseMismatch(
            f"the question was embedded with release {message.release_id[:32]!r}, the index holds "
            f"release {served.release_id!r}",
            "Search with the release that the institution serves.",
        )
    if message.epoch != served.epoch:
        raise EpochMismatch(
            f"the question is for epoch {message.epoch}, the index is at epoch {served.epoch}",
            "Describe the index again and repeat the question.",
        )
    if message.preset != served.layout.preset.name:
        raise MalformedMessage(
            f"the index is packed under preset {served.layout.preset.name!r}, the question is "
            f"encrypted under {message.preset[:32]!r}"
        )
    if len(message.chunks) != served.layout.chunks:
        raise MalformedMessage(
            f"a question has {served.layout.chunks} chunks, got {len(message.chunks)}"
        )
    if len(message.public_keys) != served.layout.public_keys:
        raise MalformedMessage(
            f"a question has {served.layout.public_keys} public keys, "
            f"got {len(message.public_keys)}"
        )
    public_keys = [_parse_ciphertext(key, served.layout) for key in message.public_keys]
    chunks = [_parse_ciphertext(chunk, served.layout) for chunk in message.chunks]
    seeds = {ciphertext.seed for ciphertext in [*public_keys, *chunks]}
    if len(seeds) != len(public_keys) + len(chunks):
        raise MalformedMessage("every ciphertext has a seed of its own, got one twice")
    return public_keys, chunks


def score_response(layout: Layout, scores: EncryptedScores) -> pb.ScoreResponse:
    """Return the message of a run of blocks."""
    c0, c1 = layout.preset.reply_moduli
    return pb.ScoreResponse(
        first_block=scores.first_block,
        blocks=len(scores.c0),
        c0=pack(scores.c0, c0),
        c1=pack(scores.c1, c1),
    )


def parse_score_response(
    message: pb.ScoreResponse, layout: Layout, next_block: int
) -> EncryptedScores:
    """Check a run of blocks that must begin at ``next_block``; or raise MalformedMessage."""
    if message.first_block != next_block:
        raise MalformedMessage(f"block {next_block} comes next, got {message.first_block}")
    left = layout.blocks - next_block
    if not 1 <= message.blocks <= left:
        raise MalformedMessage(f"1 to {left} blocks are left, got {message.blocks}")
    moduli, degree = layout.preset.reply_moduli, layout.preset.ring_degree
    count = int(message.blocks)
    c0 = unpack(message.c0, count * layout.block_items, moduli[0])
    c1 = unpack(message.c1, count * degree, moduli[1])
    return EncryptedScores(next_block, c0.reshape(count, -1), c1.reshape(count, degree))


def parse_fetch_request(
    message: pb.FetchRequest, served: IndexDescription, grant_of: Callable[[bytes], Grant]
) -> list[int]:
    """Check handles and return their positions; raise EpochMismatch or MalformedMessage.

    ``grant_of`` checks the ticket and returns what was granted with it.
    """
    if message.epoch != served.epoch:
        raise EpochMismatch(
            f"the items are of epoch {message.epoch}, the index is at epoch {served.epoch}",
            "Search again.",
        )
    handles = list(message.handles[: MAX_POSITIONS + 1])
    if not 1 <= len(handles) <= MAX_POSITIONS or len(set(handles)) != len(handles):
        raise MalformedMessage(
            f"1 to {MAX_POSITIONS} different items are fetched at once, got {len(message.handles)}"
        )
    return grant_of(message.ticket).positions(handles, served.layout.items)


def parse_grant(message: pb.ScoreResponse) -> Grant:
    """What an answer's first message grants; raise MalformedMessage for another length."""
    if len(message.ticket) != TICKET_BYTES or len(message.secret) != SECRET_BYTES:
        raise MalformedMessage(
            f"an answer begins with a ticket of {TICKET_BYTES} bytes and a secret of "
            f"{SECRET_BYTES}, got {len(message.ticket)} and {len(message.secret)}"
        )
    return Grant(message.ticket, message.secret)


def tell_left(message: pb.ScoreResponse | pb.FetchResponse, left: int | None) -> None:
    """Say in an answer's first message what remains of the day; nothing for None."""
    if left is not None:
        setattr(message, _left(message), min(left, MAX_LEFT))


def parse_left(message: pb.ScoreResponse | pb.FetchResponse) -> int | None:
    """What an answer's first message says remains of the day, None where nothing is counted.

    Raises :class:`MalformedMessage` for more than anybody tells.
    """
    if not message.HasField(_left(message)):  # type: ignore[arg-type]
        return None
    left = int(getattr(message, _left(message)))
    if left > MAX_LEFT:
        raise MalformedMessage(f"at most {MAX_LEFT:,} are left of a day's budget, got {left:,}")
    return left


def _left(message: pb.ScoreResponse | pb.FetchResponse) -> str:
    return "questions_left" if isinstance(message, pb.ScoreResponse) else "items_left"


def _ciphertext(ciphertext: Seeded, layout: Layout) -> pb.SeededCiphertext:
    moduli = layout.preset.data_moduli
    packed = [pack(row, modulus) for row, modulus in zip(ciphertext.c0, moduli, strict=True)]
    return pb.SeededCiphertext(c0=b"".join(packed), seed=ciphertext.seed)


def _parse_ciphertext(message: pb.SeededCiphertext, layout: Layout) -> Seeded:
    if len(message.seed) != SEED_BYTES:
        raise MalformedMessage(f"a seed has {SEED_BYTES} bytes, got {len(message.seed)}")
    lengths = layout.ciphertext_lengths
    if len(message.c0) != sum(lengths):
        raise MalformedMessage(f"c0 takes {sum(lengths)} bytes, got {len(message.c0)}")
    moduli, degree = layout.preset.data_moduli, layout.preset.ring_degree
    c0: U32 = np.empty((len(moduli), degree), np.uint32)
    start = 0
    for row, length, modulus in zip(c0, lengths, moduli, strict=True):
        row[:] = unpack(message.c0[start : start + length], degree, modulus)
        start += length
    return Seeded(c0, message.seed)
