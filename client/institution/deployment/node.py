"""Flower's supernode, which runs no code that the institution's own policy does not approve.

``python -m client.institution.deployment.node HOME``. Flower runs whatever bundle a run brings,
beside the data, unless ``--trusted-entities`` names keys that signed it, and those are made for its
own hub. Here the institution is the one trusted entity: a key that lives in this process's memory
signs each bundle whose bytes the policy approves, and Flower's own check does the rest. It fails
closed: should Flower change so that nothing is signed, every bundle is refused.

The one file with Flower's internals of a node: ``http_request_response``, which fetches a bundle,
how a signature is said, how long it sleeps between two looks for messages, and how long it waits
for a part of one that the superlink has not got yet; tests/client/test_node.py notices when they
change. The keys go to Flower as files in memory, so that no second copy of the institution's own
lies on a disk.
"""

import base64
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign
from flwr.supernode import start_client_internal as internal
from flwr.supernode.cli import flower_supernode

from client.institution.deployment.place import Place
from client.institution.policy import Policy
from protocol.audit import AuditLog
from protocol.errors import BlindsightError
from protocol.identity import Identity
from protocol.terminal import fail, say

CONNECT = "http_request_response"
#: Which parts of what it yields ask for a run and for a bundle.
GET_RUN, GET_FAB = 3, 4
#: The run-config key of approvals that reviewers signed.
APPROVALS = "bundle-approvals"
#: Flower's is 3 s, and secure aggregation has three messages a round, or five.
LOOK_SECONDS = 0.3
#: So long after its last work a node takes the run to go on: others may train longer.
LATELY_SECONDS = 120.0
#: Flower's node sleeps shorter than this while its ClientApp works, and longer when nothing came.
_IDLE_SECONDS = 1.0
#: Flower's are 1 s and 10 s: the next look comes before the coordinator has sent what is missing.
WAITS = {"initial_backoff": 0.2, "backoff_cap": 2.0}
_ENTITY = "institution"
_LICENSE = "valid_license"


class Approval:
    """Signs the bundles that ``policy``, read anew for each, approves; tells ``audit`` of all."""

    def __init__(self, policy: Path, audit: AuditLog) -> None:
        self._policy = policy
        self._audit = audit
        self._key = Ed25519PrivateKey.generate()

    def entities(self) -> bytes:
        """Flower's file of trusted entities: this key alone."""
        form = serialization.PublicFormat.OpenSSH
        line = self._key.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()
        return json.dumps({_ENTITY: line}).encode()  # JSON is YAML

    def judge(self, fab: Fab, run_id: int, approvals: str) -> Fab:
        """The bundle with our signature, or without any: then the run gets an error from Flower.

        What is hashed are the bytes that came, never what was said of them. ``approvals`` are what
        the run brings of ``protocol.bundle_approval``.
        """
        sha256 = hashlib.sha256(fab.content).hexdigest()
        try:
            Policy.read(self._policy).approve_bundle(sha256, approvals)
            self._audit.record("bundle-approved", sha256=sha256, run=str(run_id))
        except BlindsightError as error:
            say(f"bundle {sha256} of run {run_id} was refused: {error.message}")
            self._audit.record(
                "bundle-refused", sha256=sha256, run=str(run_id), why=error.message[:500]
            )
            return Fab(sha256, b"", {})
        now = int(time.time())
        message = create_message_to_sign(bytes.fromhex(sha256), now)
        signature = base64.urlsafe_b64encode(self._key.sign(message)).decode()
        signed = {_ENTITY: json.dumps({"signed_at": now, "signature": signature})}
        return replace(fab, hash_str=sha256, verifications={_LICENSE: "local", **signed})

    def guard(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """Flower's ``http_request_response``, whose bundles have passed ``judge``."""

        @contextmanager
        def guarded(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*args, **kwargs) as connection:
                parts = list(connection)
                get_run, get_fab = parts[GET_RUN], parts[GET_FAB]

                def judged(fab_hash: str, run_id: int) -> Fab:
                    said = get_run(run_id).override_config.get(APPROVALS, "")
                    return self.judge(get_fab(fab_hash, run_id), run_id, str(said))

                parts[GET_FAB] = judged
                yield tuple(parts)

        return guarded


class Clock:
    """What Flower's node has for ``time``, which it uses for nothing but to sleep.

    It sleeps longer when nothing came than while its ClientApp works. So this knows whether a run
    is under way: then it looks often, and else as seldom as Flower does, for every look of every
    institution costs the superlink a query.
    """

    def __init__(self) -> None:
        self._worked = -math.inf

    def sleep(self, seconds: float) -> None:
        """Sleep less, as long as work came lately."""
        now = time.monotonic()
        if seconds < _IDLE_SECONDS:
            self._worked = now
        lately = now - self._worked < LATELY_SECONDS
        time.sleep(min(seconds, LOOK_SECONDS) if lately else seconds)


def run(place: Place, secret: Path) -> None:
    """Become the supernode of ``place``. Raises what reading its key and settings raises."""
    approval = Approval(place.policy, place.audit)
    connect = getattr(internal, CONNECT)
    setattr(internal, CONNECT, approval.guard(connect))
    setattr(internal, "time", Clock())  # noqa: B010 (no name that it exports)
    pull_objects.__kwdefaults__ = {**(pull_objects.__kwdefaults__ or {}), **WAITS}
    key = Identity.load(place.credentials.private_key).key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    sys.argv = [
        "flower-supernode",
        "--superlink", place.institution.coordinator,
        "--root-certificates", str(place.authority),
        "--auth-supernode-private-key", _in_memory("node-key", key),
        "--trusted-entities", _in_memory("trusted-entities", approval.entities()),
        "--node-config", _flags(place.node_config()),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
        "--host", "127.0.0.1",
        "--port", str(place.institution.node_port),
    ]  # fmt: skip
    flower_supernode()


def _in_memory(name: str, content: bytes) -> str:
    """The path of a file that lies in this process's memory alone."""
    file = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(file, content)
    return f"/proc/self/fd/{file}"


def _flags(config: dict[str, str]) -> str:
    """As Flower's --node-config reads them: TOML values, whose text it ends at the next quote."""
    for key, value in config.items():
        if set(value) & {'"', "'", "\\", "\n"}:
            raise ValueError(f"{key}: {value!r} has a quote or a backslash, which Flower mistakes")
    return " ".join(f'{key}="{value}"' for key, value in config.items())


if __name__ == "__main__":
    try:
        run(Place.open(Path(sys.argv[1])), Path(sys.argv[2]))
    except BlindsightError as error:
        sys.exit(fail(error, False))
