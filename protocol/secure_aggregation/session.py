"""Which sum of which run, and on what terms: everything of a session is bound to it.

Keys, signatures and masks of one session are of no use in another. What every institution has to
hold alike is a part of it, so that a coordinator that says different things to different ones gets
signatures that do not verify and masks that do not cancel.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Literal

from protocol.errors import MalformedMessage
from protocol.roster import MAX_MEMBERS

Purpose = Literal["statistics", "train", "evaluate"]
PURPOSES: tuple[Purpose, ...] = ("statistics", "train", "evaluate")
#: More would leave a 32-bit sum too few bits for each.
MAX_PARTICIPANTS = 1_000
MIN_PARTICIPANTS = 2
MAX_NUMBER = 20_000
_RUN = re.compile(r"[0-9a-f]{32}")
assert MAX_PARTICIPANTS <= MAX_MEMBERS


@dataclass(frozen=True, slots=True)
class Session:
    """One sum. ``run`` is 32 hexadecimal digits; ``number`` counts the sums of one ``purpose``.

    ``threshold`` is the share of the participants of which more than that many have to agree
    before anything is unmasked; at least a half, so that two disjoint groups never can.
    ``clipping_range`` bounds each value of an update, ``max_weight`` an institution's weight.
    Raises MalformedMessage for a value out of range.
    """

    federation: str
    run: str
    purpose: str
    number: int
    threshold: float
    clipping_range: float
    max_weight: int

    def __post_init__(self) -> None:
        if not isinstance(self.run, str) or not _RUN.fullmatch(self.run):
            raise MalformedMessage(f"run: expected 32 hexadecimal digits, got {self.run!r:.40}")
        if self.purpose not in PURPOSES:
            raise MalformedMessage(f"purpose: expected one of {PURPOSES}, got {self.purpose!r:.40}")
        if type(self.number) is not int or not 0 <= self.number <= MAX_NUMBER:
            raise MalformedMessage(f"number: expected 0 to {MAX_NUMBER}, got {self.number!r:.40}")
        if not 0.5 <= self.threshold < 1 or not 0 < self.clipping_range < math.inf:
            raise MalformedMessage("threshold or clipping range: out of range")
        if not 1 <= self.max_weight <= 1_000_000:
            raise MalformedMessage(f"max weight: expected 1 to 1,000,000, got {self.max_weight}")

    @property
    def label(self) -> bytes:
        """The session in one byte string; two different ones have different labels."""
        values = [getattr(self, name) for name in self.__slots__]
        return json.dumps(values, separators=(",", ":")).encode()

    def least(self, participants: int) -> int:
        """How many of ``participants`` unmask together: floor(threshold * n) + 1, at least 2."""
        # The rounding of a product such as 2/3 * 3 must not decide.
        return max(MIN_PARTICIPANTS, math.floor(self.threshold * participants + 1e-9) + 1)

    def __str__(self) -> str:
        return f"{self.purpose} {self.number} of run {self.run[:8]}"
