"""Structured logs: one JSON object a line on stderr. Who and how long, never what was asked."""

import json
import logging
from datetime import UTC, datetime

_FACTS = "facts"


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``from``, ``message``, and the facts that a record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
            **getattr(record, _FACTS, {}),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


def to_stderr() -> None:
    """Let this process log so; what other libraries say from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for room in ("client", "protocol"):
        logging.getLogger(room).setLevel(logging.INFO)


def facts(**said: object) -> dict[str, dict[str, object]]:
    """What a call of a logger takes as ``extra``."""
    return {_FACTS: said}
