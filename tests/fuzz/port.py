"""The real port of a real service under attack: ``python -m tests.fuzz --port``.

A member of the federation sends random and mutated messages as fast as it can, holds connections
half open, reads slowly and lets calls hang; another one asks on. The service must refuse each
message by an error of its own, keep its memory, and answer the other searcher as before.
"""

import json
import multiprocessing
import socket
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import numpy as np
import psutil

from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.insecure_twin import InsecureTwin
from protocol.wire import IndexDescription, score_request
from simulations.bench.engine import NAME
from simulations.bench.guarded_home import GuardedHome
from simulations.bench.service import memory_of
from simulations.process import ServiceProcess
from tests.client.unit_items import unit_vectors
from tests.fuzz.mutations import of_bytes, of_message
from tests.fuzz.target import MIB

RELEASE = "0123456789abcdef"
ITEMS, DIM = 400, 8
MEMORY = 100 * MIB
SECONDS = 5.0
"""An honest question takes at most so long, whatever else goes on."""
_ATTACKERS = 2
_UNDER_WAY = 4  # calls of an attacker: together what one searcher may have
_REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "ABORTED", "RESOURCE_EXHAUSTED",
             "UNIMPLEMENTED", "OK"}  # fmt: skip
_VERBS = {"Describe": pb.DescribeRequest, "Score": pb.ScoreRequest, "Screen": pb.ScoreRequest,
          "Fetch": pb.FetchRequest, "Nothing": pb.FetchRequest}  # fmt: skip


@dataclass
class Found:
    """What came of it; ``broken`` says what should not be."""

    messages: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    honest: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    audit_bytes: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        before, after = self.memory[0] / 1e6, self.memory[-1] / 1e6
        lines = [
            f"{self.messages:,} messages in {self.seconds:.0f} s: {dict(self.codes)}",
            f"memory {before:.0f} MB before, {after:.0f} after, {max(self.memory) / 1e6:.0f} most",
            f"open files {self.files[0]} before, {self.files[-1]} after; audit log grew by "
            f"{self.audit_bytes:,} bytes",
        ]
        if self.honest:
            half, most = np.percentile(self.honest, (50, 100))
            lines.append(
                f"another searcher: {len(self.honest)} questions answered, {1e3 * half:.0f} ms "
                f"median, {1e3 * most:.0f} most"
            )
        return "\n".join([*lines, *(f"BROKEN: {one}" for one in self.broken)])


def fuzz_port(seconds: float, messages: int, seed: int = 0) -> Found:
    """Attack for ``seconds``, or until ``messages`` were sent."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="blindsight-port-") as name, ExitStack() as stack:
        home = GuardedHome(Path(name), 3)
        rows = unit_vectors(ITEMS, DIM)
        pairs = [Pair(f"{i}.png", ("a caption",)) for i in range(ITEMS)]
        build_index(home.root / "index", RELEASE, rows, pairs)
        service = stack.enter_context(
            ServiceProcess(NAME, home.root / "log", home=home.root, port=0, seconds=10, threads=1)
        )
        address = service.address(60.0)
        process, audit = psutil.Process(service.pid), home.root / "audit.log"
        honest = _connect(address, home.root / "searcher-1")
        stack.enter_context(closing(honest))
        described = honest.describe(RELEASE)
        _ask(honest, described, rows, found, 0)
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(_ATTACKERS))
        shares = [
            (address, home.root / "searcher-0", seconds, messages // _ATTACKERS, seed + i)
            for i in range(_ATTACKERS)
        ]
        pool.starmap(attack, [(*share[:2], 0.5, 50, share[4]) for share in shares])
        found.memory.append(memory_of(service.pid))
        found.files.append(process.num_fds())
        size, since = audit.stat().st_size, time.monotonic()
        stop = threading.Event()
        bother = threading.Thread(
            target=hold_up, args=(address, home.root / "searcher-2", described, stop)
        )
        bother.start()
        waiting = pool.starmap_async(attack, shares)
        while not waiting.ready():
            _ask(honest, described, rows, found, len(found.honest) % ITEMS)
            found.memory.append(memory_of(service.pid))
            waiting.wait(0.5)
        found.seconds = time.monotonic() - since
        stop.set()
        bother.join()
        for codes in waiting.get():
            found.codes += codes
        found.messages = found.codes.total()
        time.sleep(11)  # what hangs is cancelled by then
        _ask(honest, described, rows, found, 1)
        found.memory.append(memory_of(service.pid))
        found.files.append(process.num_fds())
        found.audit_bytes = audit.stat().st_size - size
        log = (home.root / "log").read_text(errors="replace")
    _judge(found, log)
    return found


def attack(
    address: str, credentials: Path, seconds: float, messages: int, seed: int
) -> Counter[str]:
    """Send changed and random messages to every verb; count how each was answered."""
    random, codes = Random(seed), Counter[str]()
    room, lock = threading.Semaphore(_UNDER_WAY), threading.Lock()
    known = Credentials.in_folder(credentials)
    with closing(_connect(address, credentials)) as remote:
        described = remote.describe(RELEASE)
        seeds = _seeds(described)
    options = [("grpc.ssl_target_name_override", f"{NAME}.blindsight.internal")]
    with grpc.secure_channel(address, known.for_client(), options) as channel:
        verbs = {name: channel.unary_unary(f"/blindsight.v1.Retrieval/{name}") for name in _VERBS}

        def done(call: grpc.Future) -> None:
            code = _code(call)
            with lock:
                codes[code] += 1
            room.release()

        end, sent = time.monotonic() + seconds, 0
        while sent < messages and time.monotonic() < end:
            verb = random.choice(list(_VERBS))
            room.acquire()
            sent += 1
            verbs[verb].future(_message(verb, seeds, random), timeout=30).add_done_callback(done)
        for _ in range(_UNDER_WAY):
            room.acquire()
    return codes


def hold_up(
    address: str, credentials: Path, described: IndexDescription, stop: threading.Event
) -> None:
    """Half-open connections, readers that do not read, and calls that never end."""
    host, port = address.split(":")
    known, random = Credentials.in_folder(credentials), Random(1)
    options = [("grpc.ssl_target_name_override", f"{NAME}.blindsight.internal")]
    idle: list[socket.socket] = []
    with grpc.secure_channel(address, known.for_client(), options) as channel:
        stub, question = rpc.RetrievalStub(channel), _question(described)
        while not stop.is_set():
            with suppress(OSError):
                one = socket.create_connection((host, int(port)), 5)
                if random.random() < 0.5:
                    one.sendall(random.randbytes(random.randrange(1, 300)))
                idle.append(one)
            calls = [stub.Score(question, timeout=60), stub.Screen(_never(stop), timeout=60)]
            stop.wait(2)
            if random.random() < 0.5:
                for call in calls:
                    call.cancel()
            while len(idle) > 100:
                idle.pop(0).close()
    for one in idle:
        one.close()


def _never(stop: threading.Event):  # type: ignore[no-untyped-def]
    stop.wait()
    yield from ()


def _message(verb: str, seeds: dict[str, bytes], random: Random) -> bytes:
    kind = random.random()
    if kind < 0.25:
        return random.randbytes(random.choice((0, 1, 10, 100, 1000)))
    if kind < 0.4:
        return of_bytes(random.choice(list(seeds.values())), random)  # of another verb, perhaps
    if verb == "Describe":  # which has no field to change
        return seeds["Fetch"]
    return of_message(_VERBS[verb])(seeds[verb], random)


def _seeds(described: IndexDescription) -> dict[str, bytes]:
    question = _question(described).SerializeToString()
    fetch = pb.FetchRequest(
        epoch=described.epoch, ticket=bytes(32), handles=[bytes([i] * 16) for i in range(20)]
    ).SerializeToString()
    return {"Describe": b"", "Score": question, "Screen": question, "Fetch": fetch,
            "Nothing": fetch}  # fmt: skip


def _question(described: IndexDescription) -> pb.ScoreRequest:
    key, layout = InsecureTwin().keygen(described.layout.preset), described.layout
    chunks = key.encrypt_query(layout.question_polynomials(unit_vectors(1, DIM)[0]))
    return score_request(described, key.public_keys(layout.public_keys), chunks)


def _code(call: grpc.Future) -> str:
    code = call.code().name
    return str(code)


def _connect(address: str, credentials: Path) -> RemoteInstitution:
    return RemoteInstitution(NAME, address, Credentials.in_folder(credentials), 30.0)


def _ask(
    remote: RemoteInstitution,
    described: IndexDescription,
    rows: np.ndarray,
    found: Found,
    item: int,
) -> None:
    since = time.perf_counter()
    scores = remote.score(described, rows[item], InsecureTwin(), Traffic())
    found.honest.append(time.perf_counter() - since)
    if np.abs(scores - rows @ rows[item]).max() > 2.0**-10:
        found.broken.append(f"another searcher got wrong scores for item {item}")


def _judge(found: Found, log: str) -> None:
    if unknown := set(found.codes) - _REFUSALS:
        found.broken.append(f"answers that are no refusals: {sorted(unknown)}")
    if max(found.honest) > SECONDS:
        found.broken.append(f"another searcher waited {max(found.honest):.1f} s")
    if max(found.memory) > found.memory[0] + MEMORY:
        found.broken.append(f"memory grew by more than {MEMORY >> 20} MiB")
    if found.files[-1] > found.files[0] + 20:
        found.broken.append("files stay open")
    for line in log.splitlines():
        if '"error"' in line and json.loads(line).get("level") == "error":
            found.broken.append(f"the service says: {line[:300]}")
            break
