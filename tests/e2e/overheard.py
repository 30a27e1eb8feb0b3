"""What an eavesdropper has: every packet, every message inside TLS, and a list of what to look for.

Run as a program it is a searcher that is overheard: it starts a federation's services, searches in
every way there is, and prints what was found of the query as one JSON line. It then keeps a secret
key until a line comes on standard input, and lives on until the input ends.
"""

import gc
import io
import json
import logging
import mmap
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from PIL import Image

from client.searcher.ckks import SealScheme, seal
from client.searcher.conversation import Conversation
from client.searcher.query import Query
from client.searcher.remote import RemoteInstitution
from client.searcher.searcher import Searcher
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.credentials import Credentials
from protocol.hosts import member_host
from protocol.model.embedder import Embedder
from protocol.params import PRIVATE
from simulations.authority import ThrowAwayAuthority
from simulations.federation import LocalFederation
from simulations.process import ServiceProcess

SENTENCE = "a heliotrope dodecahedron beside a vermilion ellipsoid"
OTHER = "an ultramarine heptagram above a chartreuse trapezoid"
TERM = "translucent cuboctahedra in thick fog"
INSTITUTIONS = 2
RUN = 4
"""So many neighbours of a row of numbers must be together to count as found."""

_SOL_PACKET, _FRAME, _FRAMES = 263, 1 << 17, 1024
_BROAD = 24  # bits of a pattern that are looked at first


class Patterns:
    """Byte strings of eight bytes and more, by what they would give away."""

    def __init__(self) -> None:
        self._by_head: dict[bytes, list[tuple[str, bytes]]] = {}
        self._heads = np.zeros(1 << _BROAD, bool)

    def add(self, name: str, pattern: bytes) -> None:
        assert len(pattern) >= 8, name
        self._by_head.setdefault(pattern[:8], []).append((name, pattern))
        self._heads[int.from_bytes(pattern[:3], "little")] = True

    def add_text(self, text: str) -> None:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            for words in (text, *(word for word in text.split() if len(word) >= 8)):
                self.add(f"{words!r} as {encoding}", words.encode(encoding))

    def add_row(self, name: str, row: Any, *kinds: str) -> None:
        """Each run of neighbours in a row of numbers, as numbers of these kinds."""
        assert len(row) >= RUN, name
        for kind in (order + kind for kind in kinds for order in "<>"):
            written = np.asarray(row).astype(kind)
            for start in range(len(written) - RUN + 1):
                self.add(f"{name} as {kind}", written[start : start + RUN].tobytes())

    def found(self, data: bytes) -> set[str]:
        if len(data) < 8:
            return set()
        all_bytes = np.frombuffer(data, np.uint8).astype(np.uint32)
        heads = all_bytes[:-2] | all_bytes[1:-1] << 8 | all_bytes[2:] << 16
        return {
            name
            for at in np.flatnonzero(self._heads[heads]).tolist()
            for name, pattern in self._by_head.get(data[at : at + 8], ())
            if data.startswith(pattern, at)
        }

    def found_in(self, many: Iterable[bytes]) -> list[str]:
        return sorted(set().union(*map(self.found, many)))


class Packets:
    """All packets that this network sends, on every interface, while the block runs.

    The kernel puts them into a ring that is shared with it (packet(7), PACKET_RX_RING, version 1):
    a socket's own buffer is too small here, and would drop some.
    """

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        request = struct.pack("4I", _FRAME, _FRAMES, _FRAME, _FRAMES)
        self._socket.setsockopt(_SOL_PACKET, 5, request)  # PACKET_RX_RING
        self._ring = mmap.mmap(self._socket.fileno(), _FRAME * _FRAMES)
        self._packets: list[bytes] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.2)
        self._ends.set()
        self._thread.join()
        counts = self._socket.getsockopt(_SOL_PACKET, 6, 8)  # PACKET_STATISTICS
        self.dropped = struct.unpack("II", counts)[1]
        self._ring.close()
        self._socket.close()

    def _listen(self) -> None:
        at = 0
        while not self._ends.is_set():
            if not self._ring[at] & 1:  # the frame is still the kernel's
                select.select([self._socket], [], [], 0.1)
                continue
            length, kept, start = struct.unpack_from("8xIIH", self._ring, at)
            assert kept == length
            if self._ring[at + 42] == socket.PACKET_OUTGOING:  # loopback brings each twice
                self._packets.append(self._ring[at + start : at + start + length])
            self._ring[at : at + 8] = bytes(8)
            at = (at + _FRAME) % (_FRAME * _FRAMES)

    @property
    def count(self) -> int:
        return len(self._packets)

    def abroad(self) -> list[str]:
        """To whom packets went beyond this machine."""
        to = {_destination(packet) for packet in self._packets}
        return sorted(one for one in to if not one.startswith("127.") and one != "::1")

    def streams(self) -> Iterator[bytes]:
        """What each TCP connection carried, each way, in order; and all packets as they were."""
        flows: dict[bytes, dict[int, bytes]] = {}
        for packet in self._packets:
            if packet[12:14] == b"\x08\x00" and packet[23] == 6:  # IPv4, TCP
                head = 14 + 4 * (packet[14] & 15)
                sequence = int.from_bytes(packet[head + 4 : head + 8], "big")
                data = packet[head + 4 * (packet[head + 12] >> 4) :]
                flow = flows.setdefault(packet[26:34] + packet[head : head + 4], {})
                first = next(iter(flow), sequence)
                flow[first + ((sequence - first + (1 << 31)) % (1 << 32) - (1 << 31))] = data
        for flow in flows.values():
            yield b"".join(data for _, data in sorted(flow.items()))
        yield from self._packets


def _destination(packet: bytes) -> str:
    kind = packet[12:14]
    if kind == b"\x08\x00":
        return socket.inet_ntop(socket.AF_INET, packet[30:34])
    if kind == b"\x86\xdd":
        return socket.inet_ntop(socket.AF_INET6, packet[38:54])
    return f"ethertype {kind.hex()}"


class Recorder(grpc.GenericRpcHandler):
    """Stands before one institution's service, with its certificate, and keeps every message."""

    def __init__(self, address: str, name: str, own: Credentials, searcher: Credentials) -> None:
        self.messages: list[bytes] = []
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.ssl_target_name_override", member_host(name)),
        ]
        self._channel = grpc.secure_channel(address, searcher.for_client(), options)
        self._server = grpc.server(ThreadPoolExecutor(16), (self,), options=options[:1])
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', own.for_server())}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        metadata = details.invocation_metadata

        def forward(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.messages.append(repr((details.method, metadata)).encode())
            answers = self._channel.stream_stream(details.method)(self._kept(requests))
            yield from self._kept(answers)

        return grpc.stream_stream_rpc_method_handler(forward)

    def _kept(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for one in messages:
            self.messages.append(one)
            yield one

    def close(self) -> None:
        self._server.stop(1).wait()
        self._channel.close()


def query_patterns(embedder: Embedder, queries: list[Query]) -> Patterns:
    """What no packet and no message may hold of these queries."""
    patterns = Patterns()
    for query in queries:
        patterns.add_row(f"the embedding of {query}", query.embed(embedder), "f8", "f4", "f2")
        for text in (query.text, *query.without):
            patterns.add_text(text)
            patterns.add_row(f"the embedding of {text!r}", embedder.texts([text])[0], "f4")
            ids = embedder.model.tokenizer([text])[0][0].numpy()
            patterns.add_row(f"the tokens of {text!r}", ids, "i8", "i4", "i2")
            patterns.add(f"the tokens of {text!r} as varints", b"".join(map(_varint, ids)))
        if isinstance(query.image, bytes):
            patterns.add("the picture", query.image[:64])
    return patterns


def _varint(number: int) -> bytes:
    more, last = divmod(int(number), 128)
    return bytes([last | 128]) + _varint(more) if more else bytes([last])


def picture() -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, "PNG")
    return file.getvalue()


def watch_keys(files: list[int]) -> None:
    """Save each secret key that SEAL makes to the next of these memory files."""
    make, left = seal.KeyGenerator.secret_key, iter(files)

    def saved(generator: Any) -> Any:
        key = make(generator)
        if files:
            key.save(f"/proc/self/fd/{next(left)}")
        return key

    seal.KeyGenerator.secret_key = saved


def search(stack: ExitStack, root: Path) -> tuple[list[Recorder], Patterns]:
    """Search a federation in every way; return who overheard it, and what must not be heard."""
    local, authority = LocalFederation(root), ThrowAwayAuthority()
    own = Credentials.in_folder(authority.issue("searcher", root / "searcher/tls"))
    processes = []
    for name in local.names[:INSTITUTIONS]:
        folder = local.institution(name)
        tls = authority.issue(name, folder / "tls")
        flags = {"data": folder / "data", "index": folder / "index", "credentials": tls}
        log = folder / "service.log"
        processes.append(
            stack.enter_context(ServiceProcess(name, log, release="thumbnail", **flags))
        )
    recorders = []
    for one in processes:
        tls = Credentials.in_folder(local.institution(one.name) / "tls")
        recorders.append(Recorder(one.address(120), one.name, tls, own))
        stack.callback(recorders[-1].close)
    embedder = Embedder(local.read_release())
    remotes = [
        RemoteInstitution(process.name, recorder.address, own, 60.0)
        for process, recorder in zip(processes, recorders, strict=True)
    ]
    first, second = Query(SENTENCE, picture(), (TERM,)), Query(OTHER)
    with Searcher(embedder, remotes) as searcher:
        searcher.warm()
        talk = Conversation(searcher, 4)
        found = talk.search(first)
        assert len(found) == 4 and not found.notes, found.notes
        talk.refine([found[0]], [found[1]])
        both = searcher.search_many([first, second], 2)
        assert all(len(one) == 2 and not one.notes for one in both)
        patterns = query_patterns(embedder, [first, second])
        scores = searcher.ask(searcher.embed(first)).scores.values()
        for row in scores:
            patterns.add_row("scores", row[:50], "f8", "f4")
        moved = talk.steps[-1].vector
        patterns.add_row("the refined embedding", moved, "f8", "f4", "f2")
    return recorders, patterns


def leak(recorder: Recorder, root: Path, embedding: np.ndarray) -> None:
    """Put an embedding into a message to an institution, in a field that it does not know."""
    name = recorder.address
    own = Credentials.in_folder(root / "searcher/tls")
    options = [("grpc.ssl_target_name_override", member_host(LocalFederation(root).names[0]))]
    data = embedding[:16].astype("<f4").tobytes()
    with grpc.secure_channel(name, own.for_client(), options) as channel:
        call = channel.unary_unary("/blindsight.v1.Retrieval/Describe")
        assert pb.DescribeResponse.FromString(call(bytes([0x7A, len(data)]) + data, timeout=20))


def say_aloud() -> None:
    """Send the sentence over a plain connection on this machine, and a datagram abroad."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as connection:
            for part in (SENTENCE[:20], SENTENCE[20:]):
                connection.sendall(part.encode())
        server.accept()[0].close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as abroad:
        abroad.sendto(b"anybody there?", ("203.0.113.9", 53))


def main(root: Path, packets: bool, files: list[int]) -> None:
    logging.basicConfig(level=logging.DEBUG)
    watch_keys(files)
    report: dict[str, Any] = {}
    with ExitStack() as stack:
        if packets:
            with Packets() as heard:
                recorders, patterns = search(stack, root)
            report |= {
                "packets": heard.count,
                "dropped": heard.dropped,
                "abroad": heard.abroad(),
                "in packets": patterns.found_in(heard.streams()),
            }
        else:
            recorders, patterns = search(stack, root)
        report |= {
            "messages": sum(len(one.messages) for one in recorders),
            "in messages": patterns.found_in(
                message for one in recorders for message in one.messages
            ),
        }
        files_found = {}
        for path in (one for one in root.rglob("*") if one.is_file()):
            if found := patterns.found(path.read_bytes()):
                files_found[str(path)] = sorted(found)
        report["in files"] = files_found
        leaked = Embedder(LocalFederation(root).read_release()).texts([SENTENCE])[0]
        (root / "messages").write_bytes(b"".join(b"".join(one.messages) for one in recorders))
        with ExitStack() as controlled:
            control = controlled.enter_context(Packets()) if packets else None
            leak(recorders[0], root, leaked)
            if control:
                say_aloud()
        report["control in messages"] = patterns.found_in(recorders[0].messages)
        if control:
            report |= {
                "control in packets": patterns.found_in(control.streams()),
                "control abroad": control.abroad(),
            }
    del recorders, patterns
    key = SealScheme().keygen(PRIVATE)
    gc.collect()
    print(json.dumps(report), flush=True)
    sys.stdin.readline()
    assert key.public_keys(1)
    del key
    gc.collect()
    print("dropped", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "packets", [int(one) for one in sys.argv[3:]])
