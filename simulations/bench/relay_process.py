"""The relay's two processes for the benchmark; each ends when its standard input is closed.

``coordinator ROOT HOST:PORT`` says its address, ``link ROOT RELAY SERVICE`` that it is attached.
"""

import asyncio
import sys
import threading
import time
from pathlib import Path

from client.institution.relay_link import RelayLink
from protocol.credentials import Credentials
from protocol.hosts import parse_endpoint
from server.directory.service import CoordinatorService
from simulations.bench.engine import NAME


def coordinator(root: Path, address: str) -> None:
    """Directory and relay of the federation in ``root``."""

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def wait() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=wait, daemon=True).start()
        folder, roster = root / "coordinator", root / "roster.json"
        service = CoordinatorService(
            Credentials.in_folder(folder), roster, folder / "offers.json", address
        )
        await service.run(stop, lambda at: print(at, flush=True))

    asyncio.run(run())


def link(root: Path, relay: str, service: str) -> None:
    """The institution's link to ``relay``."""
    found = RelayLink(relay, Credentials.in_folder(root / NAME), parse_endpoint(service))
    threading.Thread(target=found.keep, daemon=True).start()
    while not found.attached:
        time.sleep(0.05)
    print("attached", flush=True)
    sys.stdin.read()
    found.close()


if __name__ == "__main__":
    if sys.argv[1] == "coordinator":
        coordinator(Path(sys.argv[2]), sys.argv[3])
    else:
        link(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
