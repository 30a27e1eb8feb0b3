"""Makes an institution known and reachable, as a process of its own: registers, and attaches.

``python -m client.institution.reach HOME``. It holds no data, and needs the service beside it only
when somebody asks through the relay.
"""

import os
import sys
import threading
from pathlib import Path

from client.institution.deployment.place import Place
from client.institution.index import Index
from client.institution.offer import keep_registered, make_offer
from client.institution.relay_link import RelayLink
from protocol.child import Program
from protocol.directory_wire import Offer
from protocol.errors import BlindsightError, UsageError
from protocol.hosts import from_here
from protocol.supervision import stopping
from protocol.terminal import fail


def program(place: Place) -> list[Program]:
    """How a supervisor starts it, where the settings ask for it and there is an index; else none.

    It asks for nothing at the start: the coordinator may come later.
    """
    if place.institution.reach == "none" or place.index is None:
        return []
    command = (sys.executable, "-m", "client.institution.reach", str(place.root))
    return [Program("reach", command, place.log("reach"), {"PATH": os.defpath})]


def run(place: Place) -> None:
    """Keep ``place`` in the directory, and at the relay if its settings say so, until SIGTERM."""
    settings, coordinator = place.institution, place.directory
    address = settings.public_address if settings.reach == "direct" else ""
    if settings.reach == "direct" and not address:
        raise UsageError(
            "reach is direct, and no address is known",
            "Set public_address in institution.toml to HOST:PORT that searchers dial.",
        )

    def offer() -> Offer:
        index = Index(place.root / settings.index)
        return make_offer(settings.name, index, place.credentials, address, settings.round_items_to)

    with stopping() as stop:
        arguments = (coordinator, place.credentials, offer, stop)
        threading.Thread(target=keep_registered, args=arguments, daemon=True).start()
        link = None
        if settings.reach == "relay":
            link = RelayLink(coordinator, place.credentials, _service(place))
            threading.Thread(target=link.keep, daemon=True).start()
        stop.wait()
        if link is not None:
            link.close()


def _service(place: Place) -> tuple[str, int]:
    """Where the service can be dialled from this machine."""
    return from_here(place.institution.service_host), place.institution.service_port


if __name__ == "__main__":
    try:
        run(Place.open(Path(sys.argv[1])))
    except BlindsightError as error:
        sys.exit(fail(error, False))
