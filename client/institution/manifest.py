"""The manifest of an epoch: what lies beside it, checked before anything of that is opened."""

import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.packing import Layout
from protocol.params import preset_by_name

MANIFEST = "manifest.json"
EMBEDDINGS, ITEMS, PACKED = PARTS = ("embeddings", "items", "packed")
SEARCH = "search.faiss"
_SUM = re.compile(r"[0-9a-f]{64}")
FLAT = "Flat"
"""The factory of an index that searches the embeddings themselves."""


class Manifest(BaseModel):
    """What an epoch holds; ``checksums`` maps its parts to 64 hexadecimal digits.

    Of embeddings and the packed form it is the SHA-256 of their segments' digests, which cover the
    rest; of ``search.faiss`` that of the file; of items the sum of what each hashes to (items.py).
    ``items_since`` is the epoch whose build made the table of items. A ``factory`` other than
    "Flat" is FAISS's name of what ``search.faiss`` holds; ``precision`` is the embedder's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    release_id: str
    epoch: int
    preset: str
    dim: int
    chunk_width: int
    items: int
    items_since: int = Field(ge=1)
    precision: str = "float32"
    factory: str = FLAT
    checksums: dict[str, str]

    @model_validator(mode="after")
    def _of_every_part(self) -> "Manifest":
        expected = PARTS if self.factory == FLAT else (*PARTS, SEARCH)
        if set(self.checksums) != set(expected):
            found = sorted(self.checksums)
            raise ValueError(f"checksums of {', '.join(expected)} expected, got {found}")
        if wrong := [one for one in self.checksums.values() if not _SUM.fullmatch(one)]:
            raise ValueError(f"a checksum has 64 hexadecimal digits, got {wrong[0][:80]!r}")
        return self

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse what :meth:`to_json` gave; raise ValueError for another name, type or file."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"its manifest is not one: {where} {first['msg']:.200}") from error

    def to_json(self) -> str:
        """Return the text of the file."""
        return self.model_dump_json(indent=2)

    @property
    def layout(self) -> Layout:
        """How the embeddings are packed; raises BlindsightError for what cannot be."""
        return Layout(preset_by_name(self.preset), self.dim, self.chunk_width, self.items)
