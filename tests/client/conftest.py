"""A real service for tests: real sockets, real mutual TLS, a real index of random vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.pairs import Pair, write_pairs
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.credentials import Credentials
from protocol.insecure_twin import InsecureTwin
from protocol.wire import IndexDescription
from simulations.authority import ThrowAwayAuthority

RELEASE = "0123456789abcdef"


@dataclass
class Institution:
    """One institution and what only a test may know of it."""

    settings: ServiceSettings
    embeddings: NDArray[np.float32]
    searcher: Credentials
    other: Credentials
    address: str = ""

    def connect(self, timeout: float = 30.0) -> RemoteInstitution:
        return RemoteInstitution(self.settings.name, self.address, self.searcher, timeout)

    def asked(self) -> tuple[RemoteInstitution, IndexDescription]:
        """A connection over which a question was asked, so that items can be fetched."""
        remote = self.connect()
        described = remote.describe(RELEASE)
        remote.score(described, self.embeddings[0], InsecureTwin(), Traffic())
        return remote, described

    def index(self) -> Index:
        return Index(self.settings.index)


@pytest.fixture(scope="session")
def institutions(tmp_path_factory: pytest.TempPathFactory) -> list[Institution]:
    root, authority = tmp_path_factory.mktemp("institutions"), ThrowAwayAuthority()
    searcher = Credentials.in_folder(authority.issue("searcher", root / "searcher"))
    other = Credentials.in_folder(authority.issue("other", root / "other", "searcher"))
    made = []
    for number, name in enumerate(("clinic", "museum", "harbour")):
        home = root / name
        (home / "data").mkdir(parents=True)
        count = 40 + 100 * number
        rows = np.random.default_rng(number).standard_normal((count, 16)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        pairs = [Pair(f"{i}.png", (f"{name} {i}",)) for i in range(count)]
        for i in range(count):
            Image.new("RGB", (32, 24), (i % 256, 90 * number, 7)).save(home / "data" / f"{i}.png")
        write_pairs(home / "data", pairs, None)
        build_index(home / "index", RELEASE, rows, pairs)
        settings = ServiceSettings(
            name=name,
            data=home / "data",
            index=home / "index",
            credentials=authority.issue(name, home / "tls"),
            release=frozenset({"thumbnail"} if number else {"thumbnail", "caption"}),
        )
        made.append(Institution(settings, rows, searcher, other))
    return made


@pytest.fixture
def served(institutions: list[Institution]) -> Iterator[list[Institution]]:
    services = [Service(one.settings) for one in institutions]
    for one, service in zip(institutions, services, strict=True):
        one.address = service.address
        service.__enter__()
    yield institutions
    for service in services:
        service.__exit__()
