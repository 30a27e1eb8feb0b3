"""A whole federation in one process: Flower's apps, run by threads.

Flower's own simulation starts Ray, some fifteen seconds before the first batch. This Grid calls
the very same ServerApp and ClientApp objects in threads and starts at once. Every content is
copied on its way, so that nothing is shared that a network would not share.

This is the only file that touches what Flower does not promise, and the reason why flwr is
pinned to 1.41:

* ``flwr.supercore.task_identity.TaskIdentity``: the constructor of Message reads from it who is
  writing; Flower's own runtimes set it, one process a party.
* ``flwr.supercore.run.Run``: the type of two abstract members of Grid.
* ``flwr.supercore.telemetry``: read from the environment at import, which may be long past.
* ``flwr.proto.node_pb2.NodeInfo``: how a Grid tells the names of its nodes.
* ``Metadata.__dict__["_message_id"]``: set by the link between the parties, which we are.
"""

import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self

import torch
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.institution.app import app as client_app
from client.institution.training import interrupted
from protocol.errors import StorageError, UsageError
from protocol.model.adapters import merge
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.release import Release, read_release
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import RECORD, Statistics
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of, load_arrays, unpack
from server.app import app as server_app
from server.app import listening
from server.exchange import exchange
from server.replies import count_bytes
from server.round import RoundReport
from simulations.members import member_name, throw_away_members

_RUN = 1
_COORDINATOR = 0
_RAISED = 2

telemetry.FLWR_TELEMETRY_ENABLED = "0"
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


class InProcessGrid(Grid):
    """Institutions as threads. A context manager: leaving it ends what is still running.

    ``nodes`` are the institutions' own settings (``node_config``) with their "name"; node ids
    count from 1 in that order. ``workers`` threads train at a time, each with one torch thread,
    so that the bits of the result depend neither on their number nor on the machine's cores.
    ``bytes_down`` and ``bytes_up`` count the contents that passed.
    """

    def __init__(
        self,
        app: Callable[..., Message],
        nodes: Sequence[UserConfig],
        run_config: UserConfig | None = None,
        workers: int | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN, _COORDINATOR, 1
        self._app = app
        self._run = Run.create_empty(_RUN)
        self._contexts = {
            node: Context(
                _RUN, node, {**config, "simulation": True}, RecordDict(), dict(run_config or {})
            )
            for node, config in enumerate(nodes, start=1)
        }
        # An institution answers one message at a time: its state is one.
        self._busy = {node: Lock() for node in self._contexts}
        #: Answers that nobody has pulled, and when nobody wants them any more.
        self._pending: dict[str, tuple[Future[Message], float]] = {}
        self._pool = ThreadPoolExecutor(
            workers or os.cpu_count() or 1,
            thread_name_prefix="institution",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        self.bytes_down = 0
        self.bytes_up = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads: those in training stop at their next batch."""
        self._forget(math.inf)
        interrupted.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        interrupted.clear()

    @property
    def run(self) -> Run:
        """The run that this grid is in: always the same."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Takes note of the run."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to an institution, as Message itself makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """1 to n, in the order of the institutions."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The institutions with their names."""
        return [
            NodeInfo(node_id=node, name=str(context.node_config.get("name", node)))
            for node, context in self._contexts.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Starts the work of each message in a thread; returns the messages' ids."""
        self._forget(time.monotonic())
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            metadata = deepcopy(message.metadata)
            metadata.__dict__["_message_id"] = identifier
            copy = Message(deepcopy(message.content), metadata=metadata)  # type: ignore[call-overload]
            self.bytes_down += count_bytes(copy)
            answer = self._pool.submit(self._answer, copy)
            self._pending[identifier] = answer, time.monotonic() + metadata.ttl
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each once."""
        replies = []
        for identifier in message_ids:
            answer, _ = self._pending.get(identifier, (None, 0.0))
            if answer is not None and answer.done():
                del self._pending[identifier]
                replies.append(answer.result())
                self.bytes_up += count_bytes(replies[-1])
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pushes, and pulls until all have answered or ``timeout`` seconds are over."""
        return exchange(self, messages, math.inf if timeout is None else timeout)

    def _forget(self, now: float) -> None:
        """What comes later than its message lives is not wanted any more."""
        for identifier in [one for one, (_, until) in self._pending.items() if until <= now]:
            self._pending.pop(identifier)[0].cancel()

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with self._busy[node]:
            try:
                reply = self._app(message=message, context=self._contexts[node])
            except Exception as error:
                # The class alone: an exception's text may quote what must not leave.
                return Message(Error(_RAISED, type(error).__name__), reply_to=message)
        if reply.has_content():
            reply.content = deepcopy(reply.content)
        return reply


@dataclass(frozen=True, slots=True)
class FederatedRun:
    """What a run in this process gave; ``release`` is None when none was asked for.

    ``recalls`` is each institution's validation recall@10 of the finished model.
    """

    model: TwoTowers
    reports: tuple[RoundReport, ...]
    recalls: dict[str, float]
    release: Release | None


def run_in_process(
    institutions: Mapping[str, Path],
    settings: TrainingSettings,
    *,
    encoders: EncoderChoice | None = None,
    own: UserConfig | None = None,
    releases: Path | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    share_counts: bool = True,
    on_round: Callable[[RoundReport], None] | None = None,
    app: Callable[..., Message] = client_app,
) -> FederatedRun:
    """Trains one model over ``institutions`` (name: folder of pairs) with Flower, in threads.

    All hold the same ``encoders`` (from scratch unless said otherwise), and have the settings
    ``own`` besides their name and data, by the names of ``client.institution.app``.
    The same settings, folders and order of institutions give the same model, to the bit,
    whatever ``workers``. With ``releases`` the model is written below that folder. With
    ``checkpoints`` every round is saved there, with what each institution keeps between rounds;
    ``resume`` goes on after the last one, to the same bits, and ``on_round`` is told of the
    earlier ones at once. ``app`` stands in for the institutions' own, where a test wants another.
    Raises TrainingError, UsageError for fewer institutions than the
    quorum; StorageError. An interrupt from the keyboard ends it within a batch.
    """
    if len(institutions) < settings.quorum:
        raise UsageError(
            f"{len(institutions)} institutions cannot make a quorum of {settings.quorum}",
            "name more institutions, or lower the quorum",
        )
    held = (encoders or EncoderChoice()).to_config()
    nodes: list[UserConfig] = [
        {"name": name, "data": str(data), "share-counts": share_counts, **held, **(own or {})}
        for name, data in institutions.items()
    ]
    run_config: UserConfig = {**settings.to_run_config(), **held, "resume": resume}
    if releases is not None:
        run_config["releases"] = str(releases)
    if checkpoints is not None:
        run_config["checkpoints"] = str(checkpoints)
        for number, node in enumerate(nodes, start=1):  # a name may be no name for a folder
            node["state"] = str(checkpoints / "institutions" / str(number))
    reports: list[RoundReport] = []

    def report(finished: RoundReport) -> None:
        reports.append(finished)
        if on_round is not None:
            on_round(finished)

    context = Context(_RUN, _COORDINATOR, {}, RecordDict(), run_config)
    with ExitStack() as stack:
        if settings.secure_aggregation:
            _enrol(stack.enter_context(throw_away_members(len(nodes))), nodes, run_config)
        stack.enter_context(_quiet())
        stack.enter_context(listening(report))
        grid = stack.enter_context(InProcessGrid(app, nodes, run_config, workers))
        server_app(grid=grid, context=context)
    chosen = EncoderChoice.from_config(held, settings.towers.dim)
    model = Pretrained.load(chosen).agree(settings.towers).start(settings)
    load_arrays(model, unpack(context.state.array_records["arrays"], arrays_of(model)))
    if RECORD in context.state.array_records:
        found = Statistics.from_record(context.state.array_records[RECORD], model.image.width)
        model.standardise(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    measured = context.state.metric_records["recalls"]
    recalls = {name: value for name, value in measured.items() if isinstance(value, float)}
    return FederatedRun(merge(model), tuple(reports), recalls, _release(context, releases))


def _enrol(folder: Path, nodes: Sequence[UserConfig], run_config: UserConfig) -> None:
    """Tells everybody who is in the federation: each keeps the same roster and a key of its own."""
    run_config |= {"roster": str(folder / "roster.json"), "identity": str(folder)}
    for number, node in enumerate(nodes, start=1):
        node["roster"] = str(folder / "roster.json")
        node["identity"] = str(folder / member_name(number))


def _release(context: Context, releases: Path | None) -> Release | None:
    if releases is None:
        return None
    release_id = context.state.config_records["release"]["release-id"]
    if not isinstance(release_id, str):
        raise StorageError(f"{releases}: the run left no release", "train again")
    return read_release(releases / release_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower tells every step to the terminal; here the caller draws a progress bar."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
