"""The searcher against several real services, some of which misbehave."""

import pickle
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.service import Service
from client.searcher.ckks import SealKey, SealScheme
from client.searcher.remote import RemoteInstitution
from client.searcher.searcher import Searcher
from protocol.errors import ReleaseMismatch, ServiceError, UsageError
from protocol.insecure_twin import InsecureTwin
from protocol.params import PRIVATE, Preset
from protocol.scheme import SecretKey, Seeded

RELEASE = "0123456789abcdef"


class Encoder:
    """Embeds "name number" as that item's own embedding: what a perfect model would do."""

    release_id = RELEASE

    def __init__(self, institutions: list) -> None:
        self._embeddings = {one.settings.name: one.embeddings for one in institutions}

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        named = [text.split() if " " in text else ("clinic", "0") for text in texts]
        return np.stack([self._embeddings[name][int(number)] for name, number in named])


def connected(served: list) -> list[RemoteInstitution]:
    return [one.connect() for one in served]


@pytest.mark.parametrize("scheme", [InsecureTwin(), None], ids=["twin", "seal"])
def test_the_best_of_all_institutions_come_first(served: list, scheme: InsecureTwin | None) -> None:
    encoder = Encoder(served)
    with Searcher(encoder, connected(served), scheme) as searcher:
        for sentence in ("clinic 7", "museum 100", "harbour 239"):
            results = searcher.search(sentence, 5)
            name, number = sentence.split()
            assert (results[0].institution, results[0].position) == (name, int(number))
            assert abs(results[0].score - 1) < 1e-4
            assert results[0].thumbnail
            question = encoder.texts([sentence])[0]
            everything = [
                (float(score), one.settings.name, place)
                for one in served
                for place, score in enumerate(one.embeddings @ question)
            ]
            plain = [(name, place) for _, name, place in sorted(everything, reverse=True)[:5]]
            assert [(one.institution, one.position) for one in results] == plain
            assert not results.notes
            assert set(results.traffic) == {"clinic", "museum", "harbour"}


def test_an_institution_that_is_down_costs_a_note(served: list) -> None:
    remotes = connected(served)
    gone = Service(served[0].settings)
    address = gone.address
    gone.__enter__()
    gone.__exit__()
    remotes[0] = RemoteInstitution("clinic", address, served[0].searcher, 5)
    with Searcher(Encoder(served), remotes) as searcher:
        results = searcher.search("museum 3", 3)
    assert isinstance(results.notes["clinic"], ServiceError)
    assert "cannot be reached" in results.notes["clinic"].message
    assert results[0].institution == "museum"


def test_an_institution_on_another_release_costs_a_note(served: list) -> None:
    encoder = Encoder(served)
    encoder.release_id = "f" * 16
    with (
        Searcher(encoder, connected(served)) as searcher,
        pytest.raises(ServiceError, match=r"none of 3 institutions answered.*serves release"),
    ):
        searcher.search("museum 3", 3)
    with Searcher(Encoder(served), connected(served)) as searcher:
        notes = searcher.search("museum 3", 3).notes
    assert not any(isinstance(note, ReleaseMismatch) for note in notes.values())


@pytest.mark.parametrize("sentence", ["", "  \n", "x" * 2001])
def test_a_sentence_that_is_none_is_refused(served: list, sentence: str) -> None:
    with (
        Searcher(Encoder(served), connected(served)) as searcher,
        pytest.raises(UsageError, match="1 to 2000 characters"),
    ):
        searcher.search(sentence)


def test_there_must_be_someone_to_ask() -> None:
    with pytest.raises(UsageError, match="no institution"):
        Searcher(Encoder([]), [])


def test_a_secret_key_can_be_neither_printed_nor_pickled() -> None:
    key = SealScheme().keygen(PRIVATE)
    assert repr(key) == "<SealKey private, secret>"
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(key)


def test_every_question_and_institution_has_its_own_key(served: list) -> None:
    seeds: list[bytes] = []

    class Watched(SealScheme):
        def keygen(self, preset):  # type: ignore[no-untyped-def]
            key = super().keygen(preset)
            sample = key.public_keys(1)[0]
            seeds.append(sample.seed + sample.c0.tobytes())
            return key

    with Searcher(Encoder(served), connected(served), Watched()) as searcher:
        searcher.search("clinic 1", 2)
        searcher.search("clinic 1", 2)
    assert len(seeds) == len(set(seeds)) == 6


def test_keys_are_made_ahead_and_still_serve_one_question_each(served: list) -> None:
    prepared: list[SecretKey] = []
    used: list[SecretKey] = []

    class Watched(SealScheme):
        def keygen(self, preset: Preset) -> SecretKey:
            return WatchedKey(preset)

    class WatchedKey(SealKey):
        def prepare(self, count: int) -> None:
            super().prepare(count)
            if count > 0:
                prepared.append(self)

        def encrypt_query(self, polynomials: NDArray[np.int64]) -> list[Seeded]:
            used.append(self)
            return super().encrypt_query(polynomials)

    with Searcher(Encoder(served), connected(served), Watched()) as searcher:
        searcher.warm()
        for number in range(3):
            while len(prepared) < 3 * (number + 1):
                time.sleep(0.005)
            time.sleep(0.05)
            assert searcher.search(f"clinic {number}", 2)[0].position == number
            assert set(used[3 * number :]) <= set(prepared[: 3 * (number + 1)]), "made ahead"
    assert len(set(map(id, used))) == len(used) == 9, "each serves one question"
