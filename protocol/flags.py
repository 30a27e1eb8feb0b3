"""From flags to typed settings: one error for a bad value, wherever it came from."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from protocol.errors import UsageError

S = TypeVar("S", bound=BaseSettings)


def settings_from_flags(kind: type[S], hint: str, **flags: object) -> S:
    """Make settings from the flags that were given; None leaves a value to the other sources.

    Raises :class:`UsageError`, with ``hint``, for a bad value in any source.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        what = f"setting {name}: {first['msg']}, got {first['input']!r:.80}"
        raise UsageError(
            what if name else first["msg"].removeprefix("Value error, "), hint
        ) from error
