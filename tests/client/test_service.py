"""The institution's service over a real socket and real mutual TLS."""

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from client.institution import servicer
from client.institution.index import build_index
from client.institution.pairs import Pair
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.ckks import SealScheme
from client.searcher.remote import RemoteInstitution, Traffic
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import (
    EpochMismatch,
    MalformedMessage,
    ReleaseMismatch,
    ServiceError,
    StorageError,
    UsageError,
)
from protocol.flags import settings_from_flags
from protocol.insecure_twin import InsecureTwin
from protocol.params import Preset
from protocol.scheme import Scheme, SecretKey
from protocol.wire import IndexDescription, longest_request, score_requests
from simulations.authority import ThrowAwayAuthority

RELEASE = "0123456789abcdef"


@pytest.mark.parametrize("scheme", [InsecureTwin(), SealScheme()], ids=["twin", "seal"])
def test_a_question_is_answered(served: list, scheme: Scheme) -> None:
    for one in served:
        remote, traffic = one.connect(), Traffic()
        described = remote.describe(RELEASE)
        question = one.embeddings[5]
        scores = remote.score(described, question, scheme, traffic)
        assert np.abs(scores - one.embeddings @ question).max() < 1e-5
        assert int(scores.argmax()) == 5
        layout = described.layout
        assert layout.upload_bytes <= traffic.upload_bytes < layout.upload_bytes + 500
        assert layout.download_bytes <= traffic.download_bytes < layout.download_bytes + 500
        remote.close()


def test_only_the_winners_come_back_and_decoys_are_asked_for(served: list) -> None:
    one, traffic = served[1], Traffic()
    remote = one.connect()
    released = remote.fetch(remote.describe(RELEASE), [3, 77], 20, traffic)
    assert sorted(released) == [3, 77]
    assert Image.open(io.BytesIO(released[77].thumbnail)).getpixel((5, 5))[0] in range(70, 85)
    assert released[3].caption == "", "captions are not released here"
    assert traffic.download_bytes > 15 * len(released[3].thumbnail), "decoys came along"
    remote.close()


def test_what_is_not_released_stays(served: list) -> None:
    clinic = served[0].connect()
    assert clinic.fetch(clinic.describe(RELEASE), [3], 4, Traffic())[3].caption == "clinic 3"
    clinic.close()


def test_thumbnails_carry_no_metadata(served: list) -> None:
    one = served[2]
    picture = Image.new("RGB", (300, 200), "white")
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe, born 1970"
    picture.save(one.settings.data / "0.png", exif=exif)
    remote = one.connect()
    thumbnail = remote.fetch(remote.describe(RELEASE), [0], 1, Traffic())[0].thumbnail
    assert b"Jane" not in thumbnail
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "JPEG"
    assert max(image.size) <= 160
    assert not image.getexif()
    remote.close()


def test_another_release_is_refused_with_both_ids(served: list) -> None:
    remote = served[0].connect()
    with pytest.raises(ReleaseMismatch, match=f"{RELEASE}.*ffffffffffffffff"):
        remote.describe("f" * 16)
    remote.close()


def test_an_address_that_is_another_institution_is_refused(served: list) -> None:
    wrong = RemoteInstitution("museum", served[0].address, served[0].searcher, 10)
    with pytest.raises(MalformedMessage, match="museum expected at this address, got clinic"):
        wrong.describe(RELEASE)
    wrong.close()


class Raw:
    """A searcher that says what it likes."""

    def __init__(self, one, credentials: Credentials | None = None) -> None:
        known = credentials or one.searcher
        self.channel = grpc.secure_channel(one.address, known.for_client())
        self.stub = rpc.RetrievalStub(self.channel)

    def score(self, requests: Iterable[pb.ScoreRequest]) -> list[pb.ScoreResponse]:
        return list(self.stub.Score(iter(requests), timeout=20))

    def question(self) -> list[pb.ScoreRequest]:
        """A good one."""
        described = IndexDescription.from_message(self.stub.Describe(pb.DescribeRequest()))
        layout = described.layout
        key, vector = InsecureTwin().keygen(layout.preset), np.eye(layout.dim, dtype=np.float32)[0]
        chunks = key.encrypt_query(layout.question_polynomials(vector))
        return list(score_requests(described, key.public_keys(layout.public_keys), chunks))


def refused(call, *arguments) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    code = {one.key: one.value for one in caught.value.trailing_metadata() or ()}
    return caught.value.code().name, code.get("blindsight-code", "")


@pytest.fixture
def wide(institutions: list, tmp_path: Path) -> Iterator:
    """An institution that is asked in eight chunks."""
    one, rows = institutions[0], np.eye(40, 1024, dtype=np.float32)
    build_index(tmp_path / "wide", RELEASE, rows, [Pair("0.png", ("a",))] * len(rows))
    settings = one.settings.model_copy(update={"index": tmp_path / "wide"})
    with Service(settings) as service:
        yield replace(one, settings=settings, embeddings=rows, address=service.address)


MALFORMED = ("INVALID_ARGUMENT", "malformed_message")


def test_hostile_questions_are_refused_with_their_reason(wide) -> None:
    raw = Raw(wide)
    assert raw.score(raw.question())

    def broken(change: Callable[[list[pb.ScoreRequest]], object]) -> list[pb.ScoreRequest]:
        messages = raw.question()
        change(messages)
        return messages

    empty = pb.ScoreRequest(head=pb.QuestionHead())
    assert refused(raw.score, [empty]) == ("FAILED_PRECONDITION", "release_mismatch")
    stale = broken(lambda m: setattr(m[0].head, "epoch", 9))
    assert refused(raw.score, stale) == ("ABORTED", "epoch_mismatch")
    seed = raw.question()[0].head.public_keys[0].seed
    for change in (
        lambda m: setattr(m[0].head, "preset", "fast"),
        lambda m: setattr(m[1].chunks[0], "c0", m[1].chunks[0].c0[:-1]),
        lambda m: setattr(m[-1].chunks[-1], "c0", b"\xff" * len(m[-1].chunks[-1].c0)),
        lambda m: setattr(m[1].chunks[0], "seed", m[0].head.public_keys[0].seed),
        lambda m: setattr(m[0].head.public_keys[0], "seed", b"short"),
        lambda m: m.clear(),
        lambda m: m.insert(0, pb.ScoreRequest()),
        lambda m: m.insert(1, m[0]),
        lambda m: m.pop(0),
        lambda m: m.pop(),
        lambda m: m[-1].chunks.pop(),
        lambda m: m.append(pb.ScoreRequest(chunks=[{"c0": m[-1].chunks[0].c0, "seed": seed}])),
    ):
        assert refused(raw.score, broken(change)) == MALFORMED
    assert raw.score(raw.question()), "and the service goes on"
    raw.channel.close()


def test_no_message_is_longer_than_the_longest_right_one(wide) -> None:
    """A whole question in one message would be; it is refused unread."""
    raw = Raw(wide)
    described = IndexDescription.from_message(raw.stub.Describe(pb.DescribeRequest()))
    longest = longest_request(described.layout)
    assert longest < described.layout.upload_bytes
    for place in (0, 1):
        messages = raw.question()
        message = messages[place]
        ciphertext = message.chunks[0] if place else message.head.public_keys[0]
        ciphertext.c0 += bytes(longest + 1 - message.ByteSize())
        assert refused(raw.score, messages)[0] == "RESOURCE_EXHAUSTED"
        ciphertext.c0 = ciphertext.c0[: longest - message.ByteSize() - 1]
        assert refused(raw.score, messages) == MALFORMED
    raw.channel.close()


class Slow:
    """Messages of a question, of which all from ``stops`` on never come."""

    def __init__(self, messages: list[pb.ScoreRequest], stops: int) -> None:
        self._messages, self._stops, self._end = messages, stops, threading.Event()

    def __iter__(self) -> Iterator[pb.ScoreRequest]:
        yield from self._messages[: self._stops]
        self._end.wait(20)

    def close(self) -> None:
        self._end.set()


def test_a_question_that_does_not_come_in_time_is_refused(
    wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More silent calls than there are workers: they hold the service up for that time alone."""
    monkeypatch.setattr(servicer, "QUESTION_SECONDS", 0.5)
    raw = Raw(wide)
    good = raw.question()
    slow = [Slow(good, number % 3) for number in range(servicer.WORKERS + 4)]
    since = time.monotonic()
    calls = [raw.stub.Score(iter(one), timeout=20) for one in slow]
    for call in calls:
        assert refused(list, call) == MALFORMED
        assert call.details() == "a question's messages come within 0.5 seconds"
    assert 0.9 < time.monotonic() - since < 10
    monkeypatch.setattr(servicer, "QUESTION_SECONDS", 20)
    with ThreadPoolExecutor(servicer.WORKERS) as pool:
        assert all(pool.map(raw.score, [good] * 2 * servicer.WORKERS)), "nobody is held any more"
    for one in slow:
        one.close()
    raw.channel.close()


def test_a_searcher_who_leaves_amid_a_question_is_forgotten(
    wide, caplog: pytest.LogCaptureFixture
) -> None:
    raw = Raw(wide)
    good = raw.question()
    slow = [Slow(good, number % 3) for number in range(2 * servicer.WORKERS)]
    calls = [raw.stub.Score(iter(one), timeout=20) for one in slow]
    time.sleep(0.2)
    for call in calls:
        call.cancel()
    since = time.monotonic()
    assert raw.score(good)
    assert time.monotonic() - since < 5
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    for one in slow:
        one.close()
    raw.channel.close()


class Failing(InsecureTwin):
    """Its third chunk fails; and how many were encrypted."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.encrypted = error, 0

    def keygen(self, preset: Preset) -> SecretKey:
        key, outer = super().keygen(preset), self

        class Key(type(key)):  # type: ignore[misc]
            def encrypt_query(self, polynomials):  # type: ignore[no-untyped-def]
                if len(polynomials) < 3:  # public keys
                    yield from super().encrypt_query(polynomials)
                    return
                for chunk in super().encrypt_query(polynomials):
                    outer.encrypted += 1
                    if outer.encrypted == 3 and outer.error:
                        raise outer.error
                    time.sleep(0.1)
                    yield chunk

        return Key(preset)  # type: ignore[no-any-return]


def test_what_fails_while_encrypting_reaches_the_caller_as_it_is(wide) -> None:
    one = wide
    remote = one.connect()
    described = remote.describe(RELEASE)
    remote.score(described, one.embeddings[0], InsecureTwin(), Traffic())
    before = set(threading.enumerate())
    for error in (MalformedMessage("no"), ZeroDivisionError("bug")):
        with pytest.raises(type(error)) as caught:
            remote.score(described, one.embeddings[0], Failing(error), Traffic())
        assert caught.value is error
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), "nothing waits for the chunks that never came"
    with pytest.raises(UsageError, match="coordinates"):
        remote.score(described, np.zeros(3, np.float32), InsecureTwin(), Traffic())
    scores = remote.score(described, one.embeddings[5], InsecureTwin(), Traffic())
    assert int(scores.argmax()) == 5, "and the connection goes on"
    remote.close()


def test_every_millisecond_is_booked_once(wide) -> None:
    """Encrypting takes what it takes, and only what is left to wait for then is waiting."""
    one, slow, traffic = wide, Failing(None), Traffic()
    remote = one.connect()
    described = remote.describe(RELEASE)
    since = time.perf_counter()
    remote.score(described, one.embeddings[0], slow, traffic)
    took = 1e3 * (time.perf_counter() - since)
    booked = traffic.milliseconds
    assert set(booked) == {"keygen", "encrypt", "answer", "decrypt"}
    assert took - 50 < sum(booked.values()) <= took
    assert booked["encrypt"] >= 100 * described.layout.chunks
    assert booked["answer"] < 50 * described.layout.chunks
    remote.close()


def test_hostile_fetches_are_refused(served: list) -> None:
    raw = Raw(served[0])
    for positions in ([], [1, 1], [40], [2**63], list(range(201))):
        request = pb.FetchRequest(epoch=1, positions=positions)
        assert refused(raw.stub.Fetch, request) == MALFORMED
    assert refused(raw.stub.Fetch, pb.FetchRequest(epoch=2, positions=[1]))[1] == "epoch_mismatch"
    raw.channel.close()


def test_strangers_are_not_spoken_to(served: list, tmp_path: Path) -> None:
    stranger = Credentials.in_folder(ThrowAwayAuthority().issue("searcher", tmp_path / "other"))
    mixed = Credentials(stranger.certificate, stranger.private_key, served[0].searcher.authority)
    for credentials in (stranger, mixed):
        raw = Raw(served[0], credentials)
        assert refused(raw.stub.Describe, pb.DescribeRequest())[0] == "UNAVAILABLE"
        raw.channel.close()
    plain = grpc.insecure_channel(served[0].address)
    assert refused(rpc.RetrievalStub(plain).Describe, pb.DescribeRequest())[0] == "UNAVAILABLE"
    plain.close()


def test_a_missing_picture_costs_itself_alone(served: list) -> None:
    one = served[1]
    (one.settings.data / "9.png").unlink(missing_ok=True)
    remote = one.connect()
    released = remote.fetch(remote.describe(RELEASE), [8, 9], 2, Traffic())
    assert released[9].thumbnail == b""
    assert released[8].thumbnail
    remote.close()


def test_what_goes_wrong_inside_stays_inside(served: list) -> None:
    one = served[1]
    items = one.settings.index / "epoch-000001" / "items.sqlite"
    items.rename(items.with_suffix(".away"))
    remote = one.connect()
    with pytest.raises(ServiceError) as caught:
        remote.fetch(remote.describe(RELEASE), [9], 1, Traffic())
    assert caught.value.message == (
        "museum did not answer: INTERNAL: the institution cannot answer now"
    )
    items.with_suffix(".away").rename(items)
    remote.close()


def test_a_port_in_use_is_named(served: list) -> None:
    port = int(served[0].address.split(":")[1])
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}.*in use"):
        Service(served[0].settings.model_copy(update={"port": port}))


def test_an_answer_from_an_older_epoch_is_refused(served: list) -> None:
    one = served[0]
    remote = one.connect()
    described = remote.describe(RELEASE)
    stale = replace(described, epoch=7)
    with pytest.raises(EpochMismatch):
        remote.score(stale, one.embeddings[0], InsecureTwin(), Traffic())
    remote.close()


def test_a_packed_index_of_other_embeddings_is_not_served(
    institutions: list, tmp_path: Path
) -> None:
    one = institutions[0]
    rows = one.embeddings.copy()
    other = tmp_path / "index"
    build_index(other, RELEASE, -rows, [Pair("a.png", ("a",))] * len(rows))
    mixed = tmp_path / "mixed"
    shutil.copytree(one.settings.index, mixed)
    shutil.copy(other / "epoch-000001" / "packed.bin", mixed / "epoch-000001" / "packed.bin")
    with pytest.raises(StorageError, match=r"scores -1\.0000 against itself, expected 1\.0000"):
        Service(one.settings.model_copy(update={"index": mixed}))


def test_settings_of_a_service_also_come_from_the_environment(
    institutions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = institutions[0].settings.model_dump(include={"name", "data", "index", "credentials"})
    monkeypatch.setenv("BLINDSIGHT_INSTITUTION_PORT", "7000")
    assert settings_from_flags(ServiceSettings, "", **given, port=None).port == 7000
    assert settings_from_flags(ServiceSettings, "", **given, port=8000).port == 8000
    with pytest.raises(UsageError, match="setting port"):
        settings_from_flags(ServiceSettings, "", **given, port=70000)
