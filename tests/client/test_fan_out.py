"""Several institutions at once, some of which are slow, lie, or refuse: real servers, real TLS."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest

from client.searcher.ckks import SealScheme
from client.searcher.query import Query
from client.searcher.remote import RemoteInstitution
from client.searcher.results import Results
from client.searcher.searcher import Searcher
from protocol.bits import pack
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import EpochMismatch, MalformedMessage, ServiceError, UsageError
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.insecure_twin import InsecureTwin
from protocol.params import PRIVATE
from server.provisioning.authority import Authority
from tests.client.perfect import PerfectEncoder, plain_best

Scores = list[pb.ScoreResponse]
Items = list[pb.FetchResponse]


class Crooked(rpc.RetrievalServicer):
    """Stands before a real service with its certificate, and changes what it says."""

    def __init__(
        self,
        one,
        describe: Callable[[pb.DescribeResponse], None] = lambda said: None,
        score: Callable[[Scores], Scores] = lambda said: said,
        fetch: Callable[[Items], Items] = lambda said: said,
    ) -> None:
        self._channel = grpc.secure_channel(one.address, one.searcher.for_client())
        self._real = rpc.RetrievalStub(self._channel)
        self._describe, self._score, self._fetch = describe, score, fetch

    def Describe(self, request, context):
        said = self._real.Describe(request)
        self._describe(said)
        return said

    def Score(self, request, context):
        try:
            yield from self._score(list(self._real.Score(request)))
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())

    def Fetch(self, request, context):
        yield from self._fetch(list(self._real.Fetch(request)))

    def close(self) -> None:
        self._channel.close()


@contextmanager
def crooked(one, **lies: Callable) -> Iterator[RemoteInstitution]:
    """A connection to an institution that lies."""
    server, servicer = grpc.server(ThreadPoolExecutor(4)), Crooked(one, **lies)
    rpc.add_RetrievalServicer_to_server(servicer, server)
    own = Credentials.in_folder(one.settings.credentials)
    port = server.add_secure_port("127.0.0.1:0", own.for_server())
    server.start()
    try:
        name = one.settings.name
        yield RemoteInstitution(name, f"127.0.0.1:{port}", one.searcher, 20)
    finally:
        server.stop(0).wait()
        servicer.close()


@contextmanager
def searching(served: list, scheme=None, **lies: Callable) -> Iterator[Searcher]:
    """A searcher of all three, of which the museum lies."""
    with ExitStack() as stack:
        remotes = [one.connect() for one in served]
        if lies:
            remotes[1].close()
            remotes[1] = stack.enter_context(crooked(served[1], **lies))
        yield stack.enter_context(
            Searcher(PerfectEncoder(served), remotes, scheme or InsecureTwin())
        )


def keys(results: Results) -> list[tuple[str, int]]:
    return [one.key for one in results]


def too_large(said: Scores) -> Scores:
    """Every score a third of the modulus."""
    for message in said:
        modulus = PRIVATE.reply_moduli[0]
        count = len(message.c0) * 8 // (modulus - 1).bit_length()
        message.c0 = pack(np.full(count, modulus // 3, np.uint32), modulus)
    return said


def many_blocks(said: Scores) -> Scores:
    said[0].blocks = 1 << 31
    return said


def too_short(said: Scores) -> Scores:
    said[0].c0 = said[0].c0[:-1]
    return said


def twice(said: Scores) -> Scores:
    return said + said


def nothing(said: list) -> list:
    return []


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (too_large, "a cosine is at most 1"),
        (many_blocks, "blocks are left"),
        (too_short, "residues take"),
        (twice, "block"),
        (nothing, "blocks are due, got 0"),
    ],
)
def test_a_reply_that_is_none_costs_a_note(
    served: list, score: Callable[[Scores], Scores], words: str
) -> None:
    honest = [served[0], served[2]]
    with searching(served, score=score) as searcher:
        results = searcher.search("clinic 7", 5)
    assert isinstance(results.notes["museum"], MalformedMessage)
    assert words in results.notes["museum"].message
    assert keys(results) == plain_best(honest, served[0].embeddings[7], 5)
    assert all(one.thumbnail for one in results)
    assert results.answered == {"clinic", "harbour"} and not results.pending


def test_the_answer_to_another_question_is_noise(served: list) -> None:
    """Encrypted: under another key it decrypts to scores that cannot be."""
    kept: list[Scores] = []

    def replayed(said: Scores) -> Scores:
        kept.append(said)
        return kept[0]

    with searching(served, SealScheme(), score=replayed) as searcher:
        assert not searcher.search("museum 9", 3).notes
        results = searcher.search("clinic 7", 3)
    assert isinstance(results.notes["museum"], MalformedMessage)
    assert results[0].key == ("clinic", 7)


def test_another_epoch_than_is_served_costs_a_note(served: list) -> None:
    def older(said: pb.DescribeResponse) -> None:
        said.epoch += 6

    with searching(served, describe=older) as searcher:
        results = searcher.search("clinic 7", 3)
    assert isinstance(results.notes["museum"], EpochMismatch)
    assert results[0].key == ("clinic", 7)


def test_an_epoch_that_changed_since_it_was_described_is_asked_again(served: list) -> None:
    told: list[int] = []

    def late(said: pb.DescribeResponse) -> None:
        told.append(said.epoch)
        said.epoch += 6 * (len(told) == 1)

    with searching(served, describe=late) as searcher:
        results = searcher.search("museum 9", 3)
    assert len(told) == 2 and not results.notes
    assert results[0].key == ("museum", 9)


def other_items(said: Items) -> Items:
    said[0].items[0].position += 1
    return said


def no_picture(said: Items) -> Items:
    for message in said:
        for item in message.items:
            item.thumbnail = b"<svg/>"
    return said


@pytest.mark.parametrize(
    ("fetch", "words"),
    [
        (other_items, "other items"),
        (no_picture, "a thumbnail is a JPEG"),
        (twice, "items are due"),
        (nothing, "other items"),
    ],
)
def test_pictures_that_are_none_leave_the_scores(
    served: list, fetch: Callable[[Items], Items], words: str
) -> None:
    with searching(served, fetch=fetch) as searcher:
        results = searcher.search("museum 9", 5)
    assert words in results.notes["museum"].message
    assert keys(results) == plain_best(served, served[1].embeddings[9], 5)
    assert all(bool(one.thumbnail) == (one.institution != "museum") for one in results)


def test_a_refusal_is_quoted_without_what_steers_a_terminal(served: list) -> None:
    def refuse(said: Scores) -> Scores:
        raise Refusal

    class Refusal(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.INTERNAL

        def details(self) -> str:
            return "no\x1b[2J\u202e"

        def trailing_metadata(self) -> tuple:
            return ()

    with searching(served, score=refuse) as searcher:
        note = searcher.search("clinic 7", 3).notes["museum"]
    assert isinstance(note, ServiceError)
    assert note.message == str(note) and r"no\x1b[2J\u202e" in note.message


def slow(seconds: float) -> Callable[[list], list]:
    def late(said: list) -> list:
        time.sleep(seconds)
        return said

    return late


def test_who_is_slow_beyond_patience_comes_later_and_so_do_its_pictures(served: list) -> None:
    with searching(served, score=slow(1.5)) as searcher:
        seen = list(searcher.watch(Query("museum 9"), k=5, patience=0.05))
    early = next(one for one in seen if any(found.thumbnail for found in one))
    assert "museum" in early.pending and "museum" not in early.answered
    assert not any(one.institution == "museum" for one in early)
    assert seen[-1][0].key == ("museum", 9) and seen[-1][0].thumbnail
    assert keys(seen[-1]) == plain_best(served, served[1].embeddings[9], 5)
    assert not seen[-1].pending and not seen[-1].notes


def test_with_patience_for_all_no_picture_is_asked_for_before_the_last_answer(
    served: list,
) -> None:
    with searching(served, score=slow(0.5)) as searcher:
        seen = list(searcher.watch(Query("museum 9"), k=5, patience=None))
    for one in seen:
        assert not any(found.thumbnail for found in one) or len(one.answered) == 3
    assert all(found.thumbnail for found in seen[-1])


def test_everybody_is_asked_for_as_many_items_whatever_it_won(served: list) -> None:
    with searching(served) as searcher:
        for k, decoys, asked in ((1, None, 2), (5, None, 10), (5, 0, 5), (3, 17, 20)):
            traffic = searcher.search("museum 9", k, decoys=decoys).traffic
            assert {one.items_asked for one in traffic.values()} == {asked}
            assert sum(one.items_wanted for one in traffic.values()) == k
            assert all(one.decoys == asked - one.items_wanted for one in traffic.values())


@pytest.mark.parametrize(
    ("k", "decoys"), [(0, None), (-1, None), (101, None), (1, -1), (100, 101), (1, 200)]
)
def test_more_than_one_fetch_holds_is_refused(served: list, k: int, decoys: int | None) -> None:
    with (
        searching(served) as searcher,
        pytest.raises(UsageError, match="over all queries 200"),
    ):
        searcher.search("museum 9", k, decoys=decoys)


def test_keys_are_gone_whether_the_question_was_answered_or_not(served: list) -> None:
    for lies in ({}, {"score": too_short}, {"score": nothing}, {"fetch": nothing}):
        with searching(served, SealScheme(), **lies) as searcher:
            results = searcher.search("museum 9", 3)
        gc.collect()
        for account in results.traffic.values():
            assert account.keys_made == account.keys_destroyed == 1


def test_several_at_once_find_what_each_finds_alone(served: list) -> None:
    asked = ["museum 9", Query("clinic 3", without=("museum 9",)), "harbour 200"]
    with searching(served) as searcher:
        together = searcher.search_many(asked, 4)
        alone = [searcher.search_many([one], 4)[0] for one in asked]
        assert [keys(one) for one in together] == [keys(one) for one in alone]
        for one, same in zip(together, alone, strict=True):
            scores = [[found.score for found in each] for each in (one, same)]
            assert np.allclose(*scores, atol=1e-4)
            assert all(found.thumbnail for found in one)
        assert keys(searcher.search("museum 9", 4)) == keys(together[0])
        for count in (0, 9):
            with pytest.raises(UsageError, match="1 to 8 queries"):
                searcher.search_many(["museum 9"] * count)


def test_the_same_in_asyncio(served: list) -> None:
    async def both() -> tuple[Results, list[Results]]:
        found = await searcher.asearch("museum 9", 4)
        return found, [one async for one in searcher.awatch(Query("museum 9"), k=4)]

    with searching(served) as searcher:
        found, watched = asyncio.run(both())
        assert keys(found) == keys(watched[-1]) == keys(searcher.search("museum 9", 4))
    assert len(watched) > 1 and watched[0].pending and not watched[-1].pending


def test_those_who_are_named_are_asked_alone(served: list) -> None:
    with searching(served) as searcher:
        results = searcher.search("museum 9", 3, institutions=["clinic", "harbour"])
        assert set(results.traffic) == {"clinic", "harbour"} == results.answered
        assert not any(one.institution == "museum" for one in results)
        with pytest.raises(UsageError, match="nobody cannot be asked") as caught:
            searcher.search("museum 9", institutions=["clinic", "nobody"])
        assert "clinic, museum, harbour" in caught.value.hint


def test_an_expired_credential_is_named(served: list, tmp_path) -> None:
    key, own = Identity.ephemeral(), Identity.ephemeral()
    authority, now = Authority.create(key, "local"), datetime.now(UTC)
    old = authority.issue(
        own.public, "searcher", "searcher", life=timedelta(days=1), now=now - timedelta(days=3)
    )
    write_atomically(tmp_path / "certificate.pem", old.pem)
    write_atomically(tmp_path / "private-key.pem", own.private_pem())
    write_atomically(tmp_path / "authority.pem", served[0].searcher.authority.read_bytes())
    mine = Credentials.in_folder(tmp_path)
    remotes = [RemoteInstitution(one.settings.name, one.address, mine, 5) for one in served]
    with (
        Searcher(PerfectEncoder(served), remotes, InsecureTwin()) as searcher,
        pytest.raises(ServiceError, match="certificate of searcher expired on") as caught,
    ):
        searcher.search("museum 9")
    assert "Ask the coordinator for a new one" in caught.value.hint
