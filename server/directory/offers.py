"""The offers that stand, in a file: a coordinator that starts again has forgotten none."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol.directory_wire import MAX_LIST_BYTES, Offer
from protocol.errors import MalformedMessage, StorageError
from protocol.files import read_bounded, write_atomically
from protocol.roster import MAX_MEMBERS

FORMAT = 1
_HINT = "Remove the file: every institution registers again within minutes."


class OfferBook:
    """One offer for each institution, and until when it stands."""

    def __init__(self, path: Path, seconds: float, clock: Callable[[], float] = time.time) -> None:
        """Read what is there; offers stand for ``seconds``. Raises StorageError if damaged."""
        self._path, self._seconds, self._clock = path, seconds, clock
        self._offers: dict[str, tuple[Offer, float]] = {}
        if path.exists():
            self._offers = _read(path)

    def register(self, offer: Offer) -> None:
        """Replace what the institution offered before; it is on disk when this returns.

        Renewing what was renewed a moment ago costs no write. Raises StorageError.
        """
        now = self._clock()
        known, until = self._offers.get(offer.institution, (None, 0.0))
        if known == offer and 0.9 * self._seconds < until - now <= self._seconds:
            return
        standing = self._standing(now)
        standing[offer.institution] = (offer, now + self._seconds)
        if len(standing) > MAX_MEMBERS:
            raise StorageError(f"the directory holds at most {MAX_MEMBERS} offers")
        content = [{**_plain(one), "until": until} for one, until in standing.values()]
        write_atomically(self._path, json.dumps({"format": FORMAT, "offers": content}))
        self._offers = standing

    def current(self) -> list[Offer]:
        """The offers that stand now, in order of name."""
        return [one for _, (one, _) in sorted(self._standing(self._clock()).items())]

    def _standing(self, now: float) -> dict[str, tuple[Offer, float]]:
        # An end too far away is of a clock that was set back since.
        return {
            name: (offer, min(until, now + self._seconds))
            for name, (offer, until) in self._offers.items()
            if now < until
        }


def _plain(offer: Offer) -> dict[str, Any]:
    return asdict(offer) | {"certificate": offer.certificate.decode("latin-1")}


def _read(path: Path) -> dict[str, tuple[Offer, float]]:
    try:
        found = json.loads(read_bounded(path, MAX_LIST_BYTES, _HINT))
        if found["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        offers = {}
        for one in found["offers"]:
            until = float(one.pop("until"))
            offer = Offer(**one | {"certificate": one["certificate"].encode("latin-1")})
            offers[offer.institution] = (offer, until)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        MalformedMessage,
    ) as error:
        raise StorageError(f"{path} is damaged: {error}"[:300], _HINT) from error
    return offers
