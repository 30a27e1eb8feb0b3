"""The scoring service as a process of its own: ``serve`` of the settings given as JSON.

Not by the command line of blindsight, which is the composition root's and not this room's.
"""

import json
import sys

from client.institution.service import serve
from client.institution.settings import ServiceSettings
from protocol.errors import BlindsightError
from protocol.flags import settings_from_flags
from protocol.terminal import fail


def main() -> None:
    """Serve until SIGTERM."""
    given = json.loads(sys.argv[1])
    serve(settings_from_flags(ServiceSettings, "See institution.toml.", **given))


if __name__ == "__main__":
    try:
        main()
    except BlindsightError as error:
        sys.exit(fail(error, False))
