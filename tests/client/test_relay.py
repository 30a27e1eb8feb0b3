"""Questions through the relay: what they give, and what happens when the relay lies."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.institution.index_writer import build_index
from client.institution.offer import make_offer
from client.institution.pairs import Pair
from client.institution.relay_link import RelayLink
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.directory import Directory
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from client.searcher.tunnel import Tunnel
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.directory_wire import Offer, accept_frame, connect_frame
from protocol.errors import BlindsightError, ServiceError
from protocol.grpc_errors import error_from_rpc
from protocol.insecure_twin import InsecureTwin
from protocol.pipe import coordinator_channel
from server.directory import service as serving
from server.directory.relay import RelayServicer
from server.directory.settings import Limits
from tests.protocol.relay_parties import Lab

RELEASE = "0123456789abcdef"
QUESTION, ANSWER = os.urandom(1 << 20), os.urandom(1 << 20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


class Clinic:
    """A service that remembers who asked what, and answers with a megabyte."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked.append((context.auth_context()["x509_common_name"][0], request))
        return ANSWER

    def handlers(self) -> grpc.GenericRpcHandler:
        method = grpc.unary_unary_rpc_method_handler(self.answer)
        return grpc.method_handlers_generic_handler("lab", {"Ask": method})


class Asking:
    """A searcher's connection to the clinic above, with its own errors."""

    def __init__(self, lab: Lab, at: str, timeout: float = 10.0) -> None:
        self.tunnel = Tunnel(at, "clinic", lab.credentials("bob"))
        self.remote = RemoteInstitution(
            "clinic", "", lab.credentials("bob"), timeout, tunnel=self.tunnel
        )

    def ask(self) -> bytes:
        ask = self.remote._channel.unary_unary("/lab/Ask")
        try:
            return ask(QUESTION, timeout=self.remote._timeout)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.remote._who) from error

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()


@contextmanager
def clinic(lab: Lab, name: str = "clinic") -> Iterator[tuple[Clinic, int]]:
    """A service of its own and its port."""
    found = Clinic()
    options = [("grpc.max_receive_message_length", 8 << 20)]
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    server.add_generic_rpc_handlers((found.handlers(),))
    port = server.add_secure_port("127.0.0.1:0", lab.credentials(name).for_server())
    server.start()
    try:
        yield found, port
    finally:
        server.stop(0).wait()


@contextmanager
def attached(lab: Lab, at: str, port: int, name: str = "clinic") -> Iterator[RelayLink]:
    """An institution at the relay."""
    link = RelayLink(at, lab.credentials(name), ("127.0.0.1", port))
    thread = threading.Thread(target=link.keep)
    thread.start()
    try:
        until(lambda: link.attached)
        yield link
    finally:
        link.close()
        thread.join(10)
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_real_question_gives_what_it_gives_directly(lab: Lab, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = build_index(
        tmp_path / "index", RELEASE, rows, [Pair(f"{i}.png", ("a",)) for i in range(len(rows))]
    )
    settings = ServiceSettings(
        name="clinic", data=tmp_path, index=tmp_path / "index", credentials=lab.root / "clinic"
    )
    with Service(settings) as service, lab.coordinator() as at:
        port = int(service.address.rpartition(":")[2])
        directory = Directory(at, lab.credentials("bob"), lab.roster)
        with attached(lab, at, port):
            for address in ("", service.address):
                offer = make_offer("clinic", index, lab.credentials("clinic"), address, 100)
                assert (
                    offer.items == 300
                    and make_offer("clinic", index, lab.credentials("clinic"), address, 1000).items
                    == 0
                )
                remote, traffic = directory.connect(offer, 20.0), Traffic()
                described = remote.describe(RELEASE)
                scores = remote.score(described, rows[5], InsecureTwin(), traffic)
                assert np.abs(scores - rows @ rows[5]).max() < 1e-5
                remote.close()


def test_the_institution_sees_the_searcher_himself(lab: Lab) -> None:
    with (
        clinic(lab) as (found, port),
        lab.coordinator() as at,
        attached(lab, at, port),
        Asking(lab, at) as asking,
    ):
        for _ in range(3):
            assert asking.ask() == ANSWER
        assert found.asked == [(b"bob", QUESTION)] * 3


def test_another_institution_at_the_end_of_the_relay_is_not_spoken_to(lab: Lab) -> None:
    with (
        clinic(lab, "museum") as (found, port),
        lab.coordinator() as at,
        attached(lab, at, port),
        Asking(lab, at) as asking,
    ):
        with pytest.raises(ServiceError, match=r"clinic \(by the relay .*cannot be reached"):
            asking.ask()
        assert not found.asked


def test_an_old_key_under_the_same_name_is_not_spoken_to(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with clinic(lab) as (found, port):  # it holds the old certificate, valid for a year
        lab.enrol("clinic", "institution", "new")
        pem = (lab.root / "new/certificate.pem").read_bytes()
        directory = Directory("127.0.0.1:1", lab.credentials("bob"), lab.roster)
        offer = Offer("clinic", RELEASE, 100, f"127.0.0.1:{port}", pem)
        remote = directory.connect(offer, 5.0)
        with pytest.raises(ServiceError, match="clinic cannot be reached"):
            remote.describe(RELEASE)
        remote.close()
        assert not found.asked


Lie = Callable[[AsyncIterator[pb.RelayFrame]], AsyncIterator[pb.RelayFrame]]


async def flips(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        if len(frame.payload) > 2000:
            middle = len(frame.payload) // 2
            changed = bytearray(frame.payload)
            changed[middle] ^= 1
            frame = pb.RelayFrame(payload=bytes(changed))
        yield frame


async def drops(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    gone = False
    async for frame in frames:
        if len(frame.payload) > 20_000 and not gone:
            gone = True
            continue
        yield frame


async def cuts(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        if len(frame.payload) > 20_000:
            yield pb.RelayFrame(payload=frame.payload[:-1000])
            return
        yield frame


async def repeats(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        yield frame
        if len(frame.payload) > 2000:
            yield frame


async def swaps(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    swapped = False
    async for frame in frames:
        if len(frame.payload) > 2000 and not swapped:
            swapped = True
            middle = len(frame.payload) // 2
            yield pb.RelayFrame(payload=frame.payload[middle:])
            frame = pb.RelayFrame(payload=frame.payload[:middle])
        yield frame


async def delays(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        if len(frame.payload) > 20_000:
            await asyncio.sleep(3)
        yield frame


async def makes_up(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        yield pb.RelayFrame(payload=b"\x17\x03\x03\x00\x10" + bytes(16))
        yield frame


async def tells_the_truth(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
    async for frame in frames:
        yield frame


LIES: dict[str, Lie] = {
    one.__name__: one for one in (flips, drops, cuts, repeats, swaps, delays, makes_up)
}


def lying(up: Lie | None, down: Lie | None) -> type[RelayServicer]:
    class Lying(RelayServicer):
        async def Connect(self, frames, context):  # type: ignore[no-untyped-def]
            await super().Connect(_later(frames, up), context)

        async def Accept(self, frames, context):  # type: ignore[no-untyped-def]
            await super().Accept(_later(frames, down), context)

    return Lying


async def _later(
    frames: AsyncIterator[pb.RelayFrame], lie: Lie | None
) -> AsyncIterator[pb.RelayFrame]:
    yield await anext(frames)
    async for frame in frames if lie is None else lie(frames):
        yield frame


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("name", LIES)
def test_a_relay_that_lies_is_noticed(
    lab: Lab, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, down = (LIES[name], None) if way == "up" else (None, LIES[name])
    monkeypatch.setattr(serving, "RelayServicer", lying(up, down))
    with (
        clinic(lab) as (found, port),
        lab.coordinator() as at,
        attached(lab, at, port),
        Asking(lab, at, timeout=1.0) as asking,
    ):
        with pytest.raises(ServiceError, match=r"^clinic \(by the relay 127\.0\.0\.1:\d+"):
            asking.ask()
        for asked in found.asked:
            assert asked == (b"bob", QUESTION)


def test_lies_are_what_makes_it_fail(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "RelayServicer", lying(tells_the_truth, tells_the_truth))
    with (
        clinic(lab) as (_, port),
        lab.coordinator() as at,
        attached(lab, at, port),
        Asking(lab, at, timeout=5.0) as asking,
    ):
        assert asking.ask() == ANSWER


def test_a_call_that_is_replayed_asks_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[pb.RelayFrame] = []
    replaying = threading.Event()

    async def record(frames: AsyncIterator[pb.RelayFrame]) -> AsyncIterator[pb.RelayFrame]:
        if replaying.is_set():
            for frame in list(heard):
                yield frame
            await asyncio.sleep(0.5)
            return
        async for frame in frames:
            heard.append(frame)
            yield frame

    monkeypatch.setattr(serving, "RelayServicer", lying(record, None))
    with clinic(lab) as (found, port), lab.coordinator() as at, attached(lab, at, port):
        with Asking(lab, at) as asking:
            assert asking.ask() == ANSWER
        assert sum(len(one.payload) for one in heard) > 1 << 20, "the whole question"
        replaying.set()
        with Asking(lab, at, timeout=2.0) as asking, pytest.raises(ServiceError, match="relay"):
            asking.ask()
        assert len(found.asked) == 1


def connected(channel: grpc.Channel, name: str = "clinic") -> tuple[object, threading.Event]:
    """A raw call to the relay, which sends nothing after its first frame."""
    done = threading.Event()

    def frames() -> Iterator[pb.RelayFrame]:
        yield connect_frame(name)
        done.wait(30)

    return rpc.RelayStub(channel).Connect(frames()), done


def ending(call: object) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)  # type: ignore[call-overload]
    return caught.value.code().name, caught.value.details()


def test_a_searcher_is_told_why_there_is_no_connection(lab: Lab) -> None:
    with lab.coordinator() as at:
        with Asking(lab, at) as asking, pytest.raises(ServiceError) as caught:
            asking.ask()
        assert f"clinic (by the relay {at}: it cannot be reached: clinic is not attached" in str(
            caught.value
        )
    with Asking(lab, "127.0.0.1:1") as asking, pytest.raises(ServiceError, match="by the relay"):
        asking.ask()
    with (
        lab.coordinator() as at,
        attached(lab, at, 1),  # nobody serves there
        Asking(lab, at, timeout=2.0) as asking,
        pytest.raises(ServiceError, match="by the relay"),
    ):
        asking.ask()


def test_calls_are_limited_and_places_come_back(lab: Lab) -> None:
    limits = Limits(calls_of_searcher=2, calls_to_institution=3, calls=4)
    with (
        clinic(lab) as (_, port),
        clinic(lab, "museum") as (_, other),
        lab.coordinator(limits) as at,
        attached(lab, at, port),
        attached(lab, at, other, "museum"),
        coordinator_channel(at, lab.credentials("bob")) as bob,
        coordinator_channel(at, lab.credentials("eve")) as eve,
    ):
        open_ = [connected(bob), connected(bob)]
        time.sleep(0.3)
        assert ending(connected(bob)[0]) == (
            "RESOURCE_EXHAUSTED",
            "bob has 2 calls open, which is the limit",
        )
        open_.append(connected(eve))
        time.sleep(0.3)
        assert "clinic has 3 calls" in ending(connected(eve)[0])[1]
        open_.append(connected(eve, "museum"))
        time.sleep(0.3)
        open_[0][1].set()  # the first one leaves
        open_[0][0].cancel()  # type: ignore[attr-defined]
        time.sleep(0.3)
        with Asking(lab, at) as asking:
            assert asking.ask() == ANSWER
        for call, done in open_:
            done.set()
            call.cancel()  # type: ignore[attr-defined]


def test_a_silent_call_ends(lab: Lab) -> None:
    with (
        clinic(lab) as (_, port),
        lab.coordinator(Limits(idle_seconds=0.5, accept_seconds=0.5)) as at,
        attached(lab, at, port),
        coordinator_channel(at, lab.credentials("bob")) as bob,
    ):
        start = time.monotonic()
        assert ending(connected(bob)[0]) == ("DEADLINE_EXCEEDED", "nothing came for 0.5 seconds")
        assert time.monotonic() - start < 5
        nothing = rpc.RelayStub(bob).Connect(iter(lambda: time.sleep(30), 0))
        assert ending(nothing) == ("DEADLINE_EXCEEDED", "no first frame came")


def test_the_relay_refuses_who_has_no_business_there(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with (
        clinic(lab) as (_, port),
        lab.coordinator() as at,
        attached(lab, at, port),
        coordinator_channel(at, lab.credentials("bob")) as bob,
        coordinator_channel(at, lab.credentials("museum")) as museum,
    ):
        relay = rpc.RelayStub(museum)
        assert ending(relay.Connect(iter([connect_frame("clinic")])))[0] == "PERMISSION_DENIED"
        assert ending(rpc.RelayStub(bob).Attach(pb.AttachRequest()))[0] == "PERMISSION_DENIED"
        accept = iter([accept_frame(bytes(16))])
        assert ending(rpc.RelayStub(bob).Accept(accept))[0] == "PERMISSION_DENIED"
        assert ending(relay.Accept(iter([accept_frame(bytes(16))])))[0] == "NOT_FOUND"
        for first in ([], [pb.RelayFrame()], [pb.RelayFrame(payload=b"x")], [connect_frame("..")]):
            assert ending(rpc.RelayStub(bob).Connect(iter(first)))[0] == "INVALID_ARGUMENT"
        assert ending(connected(bob, "eve")[0])[0] == "PERMISSION_DENIED"
        long = [connect_frame("clinic"), pb.RelayFrame(payload=bytes(300_000))]
        assert ending(rpc.RelayStub(bob).Connect(iter(long)))[0] == "RESOURCE_EXHAUSTED"
        with Asking(lab, at) as asking:
            assert asking.ask() == ANSWER, "and it goes on"
            lab.revoke("clinic")  # attached as it is
            assert ending(connected(bob)[0])[0] == "PERMISSION_DENIED"


def test_an_institution_comes_back_when_the_relay_does(lab: Lab) -> None:
    with clinic(lab) as (_, port):
        with lab.coordinator() as at:
            link = RelayLink(at, lab.credentials("clinic"), ("127.0.0.1", port))
            thread = threading.Thread(target=link.keep)
            thread.start()
            until(lambda: link.attached)
        until(lambda: not link.attached)
        with lab.coordinator(address=at):
            until(lambda: link.attached)
            with Asking(lab, at) as asking:
                assert asking.ask() == ANSWER
            # A second stream of the same institution takes the place of the first, which may hang.
            with attached(lab, at, port), Asking(lab, at) as asking:
                assert asking.ask() == ANSWER
        link.close()
        thread.join(10)
        assert not thread.is_alive()


def test_frames_that_are_none_are_refused_at_the_ends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Confused(RelayServicer):
        async def Connect(self, frames, context):  # type: ignore[no-untyped-def]
            await context.write(connect_frame("clinic"))

    monkeypatch.setattr(serving, "RelayServicer", Confused)
    with (
        lab.coordinator() as at,
        Asking(lab, at) as asking,
        pytest.raises(BlindsightError, match="expected a frame with a payload alone"),
    ):
        asking.ask()


def test_a_call_is_for_the_institution_that_was_told_of_it(lab: Lab) -> None:
    with (
        lab.coordinator() as at,
        coordinator_channel(at, lab.credentials("bob")) as bob,
        coordinator_channel(at, lab.credentials("clinic")) as clinics,
        coordinator_channel(at, lab.credentials("museum")) as museum,
    ):
        told = rpc.RelayStub(clinics).Attach(pb.AttachRequest())
        told.initial_metadata()
        call, done = connected(bob)
        overheard = next(told).call
        frames = iter([accept_frame(overheard)])
        assert ending(rpc.RelayStub(museum).Accept(frames))[0] == "NOT_FOUND"
        done.set()
        call.cancel()  # type: ignore[attr-defined]
        told.cancel()
