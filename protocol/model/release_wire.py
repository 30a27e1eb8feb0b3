"""Messages by which a release travels, to native values and back (docs/protocol.md 10.3).

No name of a file is among them: first comes what signs and describes the release, then the bytes of
tokenizer.json, where the model has one, then those of model.safetensors. How many is known before.
"""

from dataclasses import dataclass

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.directory_wire import FRAME_BYTES, RELEASE_ID
from protocol.errors import MalformedMessage
from protocol.model.release import MANIFEST_BYTES, TOKENIZER_BYTES
from protocol.model.signature import SIGNATURE_BYTES

PIECE_BYTES = FRAME_BYTES
"""Payload of one piece, at most."""


@dataclass(frozen=True, slots=True)
class ReleaseHead:
    """The first piece: manifest.json, signature.json, and the size of tokenizer.json or 0."""

    manifest: bytes
    signature: bytes
    tokenizer_bytes: int

    def __post_init__(self) -> None:
        """Raise MalformedMessage for a size that no release has."""
        for name, found, most in (
            ("a manifest", len(self.manifest), MANIFEST_BYTES),
            ("a signature", len(self.signature), SIGNATURE_BYTES),
        ):
            if not 0 < found <= most:
                raise MalformedMessage(f"release: {name} has 1 to {most:,} bytes, got {found:,}")
        if not 0 <= self.tokenizer_bytes <= TOKENIZER_BYTES:
            raise MalformedMessage(
                f"release: a tokenizer has at most {TOKENIZER_BYTES:,} bytes, got "
                f"{self.tokenizer_bytes:,}"
            )

    def to_message(self) -> pb.ReleasePiece:
        """Return the first piece."""
        return pb.ReleasePiece(
            manifest=self.manifest,
            signature=self.signature,
            tokenizer_bytes=self.tokenizer_bytes,
        )

    @classmethod
    def from_message(cls, message: pb.ReleasePiece) -> "ReleaseHead":
        """Check a foreign first piece. Raises MalformedMessage."""
        if message.payload:
            raise MalformedMessage("release: expected a first piece without a payload")
        return cls(message.manifest, message.signature, message.tokenizer_bytes)


def parse_release_id(text: str) -> str:
    """The release that is asked for. Raises MalformedMessage unless it has the form of an id."""
    if not RELEASE_ID.fullmatch(text):
        raise MalformedMessage(
            f"a release id has 16 hexadecimal digits, got {text!r:.80}",
            "It is the name of a release's folder, and what blindsight train says at the end.",
        )
    return text


def parse_latest(message: pb.LatestResponse) -> str | None:
    """The newest release; None where nothing is released yet. Raises MalformedMessage."""
    return parse_release_id(message.release_id) if message.release_id else None


def parse_piece(message: pb.ReleasePiece, due: int) -> bytes:
    """The bytes of a later piece, at most the ``due`` ones of its file. Raises MalformedMessage."""
    if message.manifest or message.signature or message.tokenizer_bytes:
        raise MalformedMessage("release: expected a piece with a payload alone")
    most = min(due, PIECE_BYTES)
    if not 0 < len(message.payload) <= most:
        raise MalformedMessage(
            f"release: expected 1 to {most:,} bytes of a file, got {len(message.payload):,}"
        )
    return message.payload
