"""What is looked for, as people say it, and the one embedding that it becomes.

All arithmetic on embeddings is done here, before anything is encrypted: whatever a query is made
of, an institution receives one ciphertext of one unit vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.errors import DataError, UsageError
from protocol.files import read_bounded
from protocol.model.pictures import IMAGE_BYTES, Fit, read_picture

MAX_CHARACTERS = 2000
WITHOUT_WEIGHT = 0.5
"""How much a negative term counts against what is looked for."""

Vector = NDArray[np.float32]


class Encoder(Protocol):
    """What a searcher needs of a model: ``protocol.model.embedder.Embedder`` is one."""

    @property
    def release_id(self) -> str:
        """The release that embeds."""

    @property
    def fit(self) -> tuple[int, float | None, str]:
        """How pictures become squares, as ``protocol.model.pictures.Fit`` takes it."""

    def texts(self, texts: Sequence[str]) -> Vector:
        """Embed n sentences as unit vectors float32 [n, dim]."""

    def pixels(self, pixels: NDArray[np.uint8]) -> Vector:
        """Embed n pictures uint8 [n, 3, size, size] as unit vectors float32 [n, dim]."""


@dataclass(frozen=True)
class Query:
    """A sentence, a picture, or both ("like this, but blue"), and what it shall not be.

    ``image`` is a path, or the bytes of a picture. Raises UsageError for a sentence that is empty
    or longer than 2,000 characters, or if there is neither sentence nor picture.
    """

    text: str = ""
    image: Path | bytes | None = field(default=None, repr=False)
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sentences = [self.text] * (self.image is None or bool(self.text)) + [*self.without]
        for one in sentences:
            if not one.strip() or len(one) > MAX_CHARACTERS:
                raise UsageError(
                    f"a sentence has 1 to {MAX_CHARACTERS} characters, got {len(one.strip())}",
                    "Say what the pictures shall show, or give a picture.",
                )

    def __str__(self) -> str:
        picture = [] if self.image is None else ["like a picture"]
        return ", ".join(
            [*([self.text] if self.text else []), *picture, *(f"not {x}" for x in self.without)]
        )

    def embed(self, encoder: Encoder) -> Vector:
        """Return it as a unit vector float32 [dim]. Raises DataError for what is no picture."""
        wanted = list(encoder.texts([self.text])) if self.text else []
        if self.image is not None:
            wanted.append(embed_picture(encoder, *_read(self.image)))
        vector = np.stack(wanted).sum(axis=0)
        if self.without:
            vector = vector - WITHOUT_WEIGHT * encoder.texts(list(self.without)).sum(axis=0)
        return unit(vector)


def embed_picture(encoder: Encoder, name: str, data: bytes) -> Vector:
    """Embed the picture in ``data`` as float32 [dim]. Raises DataError that names ``name``."""
    picture = read_picture(name, data, Fit(*encoder.fit))
    return encoder.pixels(np.asarray(picture).transpose(2, 0, 1)[None]).reshape(-1)


def unit(vector: NDArray[np.floating]) -> Vector:
    """Scale to length one. Raises UsageError for a vector that points nowhere."""
    length = float(np.linalg.norm(vector))
    if not length > 1e-6:
        raise UsageError("what is looked for and what is not cancel out", "Say it differently.")
    return (vector / length).astype(np.float32)


def _read(image: Path | bytes) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        return "the picture", image
    try:
        return str(image), read_bounded(image, IMAGE_BYTES, "Scale the picture down.")
    except OSError as error:
        raise DataError(f"{image}: cannot be read: {error.strerror}", "Name a picture.") from error
