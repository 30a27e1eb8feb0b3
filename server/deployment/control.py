"""The coordinator's hand on its superlink: nodes and runs, by Flower's Control API on loopback.

The one file with Flower's internals for it; tests/server/test_deployment.py notices when they
change. The Control API asks nobody who he is: whoever reaches it may run code at every institution.
So it is reached on loopback alone, and nginx answers 404 for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from protocol.errors import MalformedMessage, ServiceError
from protocol.identity import PublicIdentity
from protocol.roster import Roster
from server.deployment.bundle import Bundle

Scalar = bool | float | int | str


@dataclass(frozen=True, slots=True)
class Node:
    """An institution's node as the superlink knows it."""

    node_id: int
    name: str
    identity: PublicIdentity | None
    online: bool


@dataclass(frozen=True, slots=True)
class RunState:
    """One of Flower's runs: ``details`` say why it ended, in the ServerApp's own words if it did.

    ``status`` is pending, starting, running or finished; ``ending`` completed, failed or stopped.
    """

    run_id: int
    status: str
    ending: str
    details: str

    @property
    def over(self) -> bool:
        """Whether nothing follows."""
        return self.status == "finished"


class Control:
    """A connection to the superlink at ``address``, whose certificate ``authority`` signed.

    Every method raises ServiceError where the superlink does not answer, or refuses.
    """

    def __init__(self, address: str, authority: Path) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[
                CliClientHttpInterceptor(),
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        """All nodes that are registered, by name."""
        with self._asking():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return sorted(
            (
                Node(one.node_id, one.name, _identity(one.public_key), one.status == "online")
                for one in found
                if one.status != "unregistered"
            ),
            key=lambda node: (node.name, node.node_id),
        )

    def enrol(self, roster: Roster) -> tuple[list[str], list[str]]:
        """Make the roster's institutions, and nobody else, nodes; names that came and that went."""
        there = {node.identity: node for node in self.nodes()}
        members = {member.identity: member for member in roster.of_role("institution")}
        went = [one for key, one in there.items() if key is None or key not in members]
        came = [one for key, one in members.items() if key not in there]
        with self._asking():
            for node in went:
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            for member in came:
                key = public_key_to_bytes(member.identity.key)
                self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=member.name))
        return [one.name for one in came], [one.name for one in went]

    def start(self, bundle: Bundle, config: Mapping[str, Scalar]) -> int:
        """Start a run of ``bundle``; returns Flower's number of it."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle.sha256, bundle.content, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        with self._asking():
            return int(self._client.StartRun(request).run_id)

    def run(self, run_id: int) -> RunState | None:
        """How a run is; None for one that the superlink does not know."""
        with self._asking():
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in found:
            return None
        status = found[run_id].status
        return RunState(run_id, status.status, status.sub_status, status.details)

    def active(self) -> list[int]:
        """The runs that are not over."""
        with self._asking():
            found = self._client.ListRuns(ListRunsRequest()).run_dict
        return [number for number, run in found.items() if run.status.status != "finished"]

    def stop(self, run_id: int) -> None:
        """End a run; its checkpoints stay."""
        with self._asking():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def log(self, run_id: int) -> str:
        """What the ServerApp of a run has printed until now."""
        with self._asking():
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id)):
                return part.log_output  # the first piece is all that is there
        return ""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            said = known.public_details or known.message if known else error.response.reason_phrase
            raise ServiceError(
                f"the superlink at {self._address} refused: {said}"[:500],
                "See superlink.log in the coordinator's state/logs.",
            ) from error
        except httpx.HTTPError as error:
            raise ServiceError(
                f"the superlink at {self._address} does not answer ({type(error).__name__})",
                "Is it up? blindsight coordinator up --home DIR",
            ) from error


def _identity(public_key: bytes) -> PublicIdentity | None:
    try:
        return PublicIdentity.of(load_pem_public_key(public_key))
    except (ValueError, MalformedMessage):
        return None
