"""The names of augmentations in a training setting: a list with commas, or ``none``."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from protocol.errors import UsageError

T = TypeVar("T")


def named(setting: str, names: str, known: Mapping[str, T]) -> tuple[T, ...]:
    """What ``names`` ("crop,flip") stands for in ``known``, in the same order; ``none``: nothing.

    Raises UsageError, speaking of ``setting``, for a name that is not known.
    """
    if names == "none":
        return ()
    chosen = names.split(",")
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(name[:40], known, 1)
            raise UsageError(
                f"{setting}: expected none, or some of {', '.join(known)}, got {name!r:.40}",
                f"did you mean {near[0]}?" if near else f"write it like {','.join([*known][:2])}",
            )
    return tuple(known[name] for name in chosen)
