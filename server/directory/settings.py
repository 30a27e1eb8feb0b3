"""What the coordinator's directory, relay and releases allow at once, and how long they wait."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts are of open calls; times are in seconds.

    A call keeps at most some 2 MB here: a window and two frames in each direction, whatever passes.
    """

    calls: int = 128
    calls_of_searcher: int = 16
    calls_to_institution: int = 64
    accept_seconds: float = 10.0
    """So long an institution may take to come for a call."""
    idle_seconds: float = 120.0
    """So long a call may carry nothing, and a reader of a release read nothing."""
    offer_seconds: float = 900.0
    """So long an offer stands that is not renewed."""
    fetches: int = 32
    fetches_of_member: int = 2
    """Each holds at most a piece and a window here, some 1 MB."""
