"""What a searcher checks before it searches."""

from pathlib import Path

from protocol.provisioning.home import Home
from protocol.provisioning.preflight import Check, check_identity


def examine_searcher(root: Path) -> list[Check]:
    """Every check of a searcher; whom it can reach, searching itself shows."""
    return check_identity(Home(root))
