"""Words to numbers without a vocabulary: the hashing trick (Weinberger et al. 2009, §2).

A vocabulary built from captions would tell the other parties which words an institution's
captions hold. Here a word's number is a hash of its letters, so every party computes the same
numbers and nothing has to be collected, sent or agreed on but the number of buckets.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch

PAD, START, RESERVED = 0, 1, 4
_WORD = re.compile(r"\w+")
_CAPTION_LETTERS = 4096


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
