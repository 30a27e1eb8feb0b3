"""Who may search this institution, how often, how exactly, and what of its items may leave."""

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from client.institution.policy_table import PolicyTable
from protocol.errors import PolicyError

Form = Literal["id", "caption", "thumbnail", "original"]
"""What a searcher may be given of an item, apart from its score."""

FULL_BITS = 20
"""No noise but what hides the embeddings (docs/protocol.md section 6.4)."""

EVERYBODY = "*"
_ENTRY = re.compile(r"\*|@?[a-z0-9][a-z0-9-]{0,62}")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")

TEMPLATE = """\

[search]
# Names of the federation's searchers, "@group" for one of the groups below, "*" for all of them.
# Nobody may search until somebody is named.
searchers = []
groups = {}
# For each searcher and each day (UTC).
queries-a-day = 100
items-a-day = 2000
# A score carries about so many bits, 4 to 20 (full precision).
score-bits = 12
# Of "id" (the file's name), "caption", "thumbnail" (encoded anew, without any metadata) and
# "original" (the file as it is, with all metadata that is in it).
release = []
# A smaller collection is not searched: its few items could be told apart.
min-items = 100
# When questions are answered, UTC.
hours = "00:00-24:00"
"""


class SearchPolicy(PolicyTable):
    """The table ``[search]``. As it stands without a line: nobody may search."""

    searchers: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    queries_a_day: int = Field(default=100, ge=0)
    items_a_day: int = Field(default=2000, ge=0)
    score_bits: int = Field(default=12, ge=4, le=FULL_BITS)
    release: frozenset[Form] = frozenset()
    min_items: int = Field(default=100, ge=1)
    hours: str = "00:00-24:00"

    @field_validator("searchers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return _entries(value)

    @field_validator("groups", mode="before")
    @classmethod
    def _group(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        found = {name: _entries(members) for name, members in value.items()}
        for name, members in found.items():
            if not isinstance(members, tuple) or any(one[0] in "*@" for one in members):
                raise ValueError(f"group {name!r:.40}: expected a list of searchers' names")
        return found

    @field_validator("release", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return frozenset(value) if isinstance(value, list) else value

    @field_validator("hours")
    @classmethod
    def _span(cls, value: str) -> str:
        found = _HOURS.fullmatch(value)
        if not found or value[6:] > "24:00" or value[:5] == value[6:]:
            raise ValueError('expected hours like "08:00-18:00" or "22:00-06:00"')
        return value

    @model_validator(mode="after")
    def _groups_are_known(self) -> "SearchPolicy":
        for one in self.searchers:
            if one[0] == "@" and one[1:] not in self.groups:
                raise ValueError(f"searchers names the group {one}, which groups does not define")
        return self

    def check(self, name: str, items: int, now: datetime) -> None:
        """Raise PolicyError unless the searcher ``name`` may ask an index of ``items`` now."""
        groups = (one[1:] for one in self.searchers if one[0] == "@")
        named = {*self.searchers, *(name for one in groups for name in self.groups[one])}
        if EVERYBODY not in named and name not in named:
            raise PolicyError(f"this institution's policy does not let {name} search")
        if items < self.min_items:
            raise PolicyError(
                f"this institution lets collections of at least {self.min_items} items be searched"
            )
        clock, (start, end) = f"{now.astimezone(UTC):%H:%M}", self.hours.split("-")
        inside = start <= clock < end if start < end else clock >= start or clock < end
        if not inside:
            raise PolicyError(f"this institution answers from {start} to {end} UTC")


def _entries(value: object) -> object:
    if not isinstance(value, list):
        return value
    for one in value:
        if not isinstance(one, str) or not _ENTRY.fullmatch(one):
            raise ValueError(f'expected names of searchers, "@group" or "*", got {one!r:.80}')
    return tuple(value)
