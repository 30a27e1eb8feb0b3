"""Nothing of a query and no secret key leaves the searcher, and keys do not outlive a search.

One real searcher, real services in processes of their own, TLS between them. It is overheard in a
network of its own: every packet, and inside TLS every message. ``overheard`` says how.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import overheard
from tests.e2e.secret_words import Keys, memory

pytestmark = pytest.mark.e2e

ALONE = [
    "unshare", "-rn", "sh", "-c",
    # Whatever is addressed to the world goes to loopback as well, where it is seen.
    'ip link set lo up && ip route add default dev lo && exec "$@"', "sh",
]  # fmt: skip
CAPTURE = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)"


@dataclass
class Searched:
    """A process that has searched and holds one more key, what it reports, and all its keys."""

    process: subprocess.Popen[str]
    root: Path
    report: dict[str, Any]
    keys: Keys
    count: int

    def heard(self, what: str) -> Any:
        if what not in self.report:
            pytest.skip("packets cannot be captured: unshare -rn, and ip of iproute2, are needed")
        return self.report[what]

    def in_memory(self) -> set[int]:
        try:
            return set().union(*map(self.keys.found, memory(self.process.pid)))
        except PermissionError:
            pytest.skip("the memory of another process cannot be read here")


@pytest.fixture(scope="module")
def searched(
    simulated: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searched]:
    root = tmp_path_factory.mktemp("overheard") / "federation"
    shutil.copytree(simulated[0], root)
    tried = subprocess.run([*ALONE, sys.executable, "-c", CAPTURE], capture_output=True)
    alone, mode = ([], "messages") if tried.returncode else (ALONE, "packets")
    files = [os.memfd_create("key", 0) for _ in range(64)]
    here = {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(root), "HOME": str(root)}
    with (root / "stderr.log").open("w") as talk:
        process = subprocess.Popen(
            [*alone, sys.executable, overheard.__file__, root, mode, *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            text=True,
            pass_fds=files,
            env={**os.environ, **here},
        )
    assert process.stdout is not None and process.stdin is not None
    line = process.stdout.readline()
    assert line, (root / "stderr.log").read_text()[-5000:]
    saved = [content for file in files if (content := os.pread(file, 1 << 20, 0))]
    yield Searched(process, root, json.loads(line), Keys(saved), len(saved))
    process.stdin.close()
    process.stdout.close()
    assert process.wait(20) == 0
    for file in files:
        os.close(file)


def test_no_packet_holds_the_query(searched: Searched) -> None:
    assert searched.heard("packets") > 100 and searched.heard("dropped") == 0
    assert searched.heard("in packets") == []


def test_no_packet_leaves_the_machine(searched: Searched) -> None:
    assert searched.heard("abroad") == []


def test_no_message_inside_tls_holds_the_query_or_a_score(searched: Searched) -> None:
    assert searched.report["messages"] > 50
    assert searched.report["in messages"] == []


def test_no_file_and_no_log_holds_the_query(searched: Searched) -> None:
    assert "DEBUG:" in (searched.root / "stderr.log").read_text()
    assert searched.report["in files"] == {}


def test_the_capture_sees_what_is_said_aloud(searched: Searched) -> None:
    assert f"{overheard.SENTENCE!r} as utf-8" in searched.heard("control in packets")
    assert searched.heard("control abroad") == ["203.0.113.9"]


def test_the_scan_finds_an_embedding_in_a_message(searched: Searched) -> None:
    found = searched.report["control in messages"]
    assert f"the embedding of {overheard.SENTENCE!r} as <f4" in found
    # TLS hides it from the packets: that is why messages are looked at as well.
    assert not any("embedding" in one for one in searched.heard("control in packets"))


def test_no_message_log_or_file_holds_a_secret_key(searched: Searched) -> None:
    assert searched.count > 2 * overheard.INSTITUTIONS
    paths = [path for path in searched.root.rglob("*") if path.is_file()]
    assert {"messages", "stderr.log", "service.log"} <= {path.name for path in paths}
    assert not [path for path in paths if searched.keys.found(path.read_bytes())]


def test_after_a_search_its_keys_are_gone_from_memory(searched: Searched) -> None:
    # The last one is held to show that the scan can see one; those of the searches are gone.
    assert searched.in_memory() == {searched.count - 1}
    process = searched.process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "dropped\n"
    assert searched.in_memory() == set()
