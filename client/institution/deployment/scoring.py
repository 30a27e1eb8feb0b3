"""The scoring service as a process of its own: ``serve`` of the settings given as JSON.

An index that came after the institution was started is checked here: whatever model it was made
with, only one that the federation has signed is served. Not by the command line of blindsight,
which is the composition root's and not this room's.
"""

import json
import sys

from client.institution.deployment.place import Place
from client.institution.deployment.releases import check_served
from client.institution.service import serve
from client.institution.settings import ServiceSettings
from protocol.errors import BlindsightError
from protocol.flags import settings_from_flags
from protocol.terminal import fail


def main() -> None:
    """Serve until SIGTERM."""
    given = json.loads(sys.argv[1])
    settings = settings_from_flags(ServiceSettings, "See institution.toml.", **given)
    if settings.home is not None:
        check_served(Place.open(settings.home))
    serve(settings)


if __name__ == "__main__":
    try:
        main()
    except BlindsightError as error:
        sys.exit(fail(error, False))
