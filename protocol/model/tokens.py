"""Captions to numbers: by hashing, or by the tokenizer that a pretrained encoder came with.

A vocabulary built from captions would tell the other parties which words an institution's
captions hold. By the hashing trick (Weinberger et al. 2009, §2) a word's number is a hash of its
letters, so every party computes the same numbers and nothing has to be collected, sent or agreed
on but the number of buckets. A pretrained tokenizer is public, and known by its hash.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from tokenizers import Tokenizer as FastTokenizer

from protocol.errors import MalformedMessage

PAD, START, RESERVED = 0, 1, 4
_WORD = re.compile(r"\w+")
_CAPTION_LETTERS = 4096


class Tokenizer(Protocol):
    """What the text tower needs."""

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids and mask, int64 [n, t], 1 in the mask where there is a token."""
        ...

    def cut(self, texts: Sequence[str]) -> int:
        """How many of ``texts`` are longer than what is read of them."""
        ...


class JsonTokenizer:
    """A pretrained tokenizer, from the text of its tokenizer.json.

    Raises MalformedMessage when its SHA-256 is not ``sha256`` or the library refuses it.
    """

    def __init__(self, text: str, sha256: str, max_tokens: int, pad_to_max: bool) -> None:
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != sha256:
            raise MalformedMessage(
                f"tokenizer: expected the one with SHA-256 {sha256[:16]}…, got {found[:16]}…"
            )
        try:
            self._tokenizer = FastTokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise MalformedMessage(f"tokenizer: not a tokenizer.json: {error!s:.100}") from error
        self.text = text
        self._max_tokens = max_tokens
        length = max_tokens if pad_to_max else None
        padding = self._tokenizer.padding or {"pad_id": 0, "pad_token": "[PAD]"}
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(
            pad_id=padding["pad_id"], pad_token=padding["pad_token"], length=length
        )
        self._see_padding = pad_to_max

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids and mask, int64 [n, t], t at most ``max_tokens``, its own marks included.

        An encoder that was trained on texts filled up to one length sees the filling: its mask
        is all ones (SigLIP).
        """
        encoded = self._tokenizer.encode_batch([text[:_CAPTION_LETTERS] for text in texts])
        width = len(encoded[0]) if encoded else 1
        ids = torch.tensor([one.ids for one in encoded], dtype=torch.int64).reshape(-1, width)
        mask = torch.tensor([one.attention_mask for one in encoded], dtype=torch.int64)
        return ids, torch.ones_like(ids) if self._see_padding else mask.reshape(-1, width)

    def cut(self, texts: Sequence[str]) -> int:
        """How many of ``texts`` have more than ``max_tokens`` tokens."""
        encoded = self._tokenizer.encode_batch([text[:_CAPTION_LETTERS] for text in texts])
        return sum(bool(one.overflowing) for one in encoded)


class HashTokenizer:
    """Numbers captions: lower-cased words, each hashed by BLAKE2b into one of ``buckets``.

    Ids 0 to 3 are reserved (pad, start, two spare); words take ``RESERVED`` to ``buckets - 1``.
    Two words may share a number; with b buckets and w words about w²/2b pairs of words do.
    """

    def __init__(self, buckets: int, max_tokens: int) -> None:
        self.buckets = buckets
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids int64 [n, t] and mask int64 [n, t], 1 where there is a token.

        t is the length of the longest text here, start token included, at most
        ``max_tokens``; what is longer is cut. A text without a word is the start token alone.
        """
        rows = [self._row(text) for text in texts]
        width = max((len(row) for row in rows), default=1)
        ids = torch.tensor(
            [row + [PAD] * (width - len(row)) for row in rows], dtype=torch.int64
        ).reshape(len(rows), width)
        return ids, (ids != PAD).long()

    def cut(self, texts: Sequence[str]) -> int:
        """How many of ``texts`` have more than ``max_tokens`` - 1 words."""
        return sum(len(_WORD.findall(text[:_CAPTION_LETTERS])) >= self.max_tokens for text in texts)

    def _row(self, text: str) -> list[int]:
        # Half a megabyte of caption must not cost more than its first words do.
        plain = unicodedata.normalize("NFKC", text[:_CAPTION_LETTERS]).casefold()
        words = _WORD.findall(plain)[: self.max_tokens - 1]
        return [START, *(RESERVED + _hash(word) % (self.buckets - RESERVED) for word in words)]


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    """Depends on the word alone, on every machine; Python's own ``hash`` does not."""
    digest = hashlib.blake2b(
        word.encode("utf-8", "replace"), digest_size=8, person=b"token"
    ).digest()
    return int.from_bytes(digest, "little")
