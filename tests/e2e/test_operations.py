"""The walk-through of docs/operations.md: two institutions and a coordinator on three addresses."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from client.institution.pairs import read_pairs, write_pairs
from client.searcher.profile import Profile
from simulations.institutions import by_name
from simulations.partition import parse_partition, partition
from simulations.scenes import write_scenes
from tests.e2e.prefork import Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def shown() -> list[list[str]]:
    """The commands of the blocks that are marked sh, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("blindsight ")]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def write_data(root: Path) -> None:
    write_scenes(root / "scenes", 60, 2, 0, lambda _: None)
    folder = read_pairs(root / "scenes")
    shares = by_name(partition(folder, parse_partition("iid"), 2, 0)).values()
    for name, pairs in zip(("clinic", "museum"), shares, strict=True):
        write_pairs(root / "data" / name, pairs, folder)


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for pattern, by in changes:
        text, count = re.subn(pattern, by, text, flags=re.MULTILINE)
        assert count == 1, pattern
    path.write_text(text)


class Walk:
    """Runs the commands, and does what the page says in words."""

    def __init__(self, root: Path, blindsight: Run) -> None:
        self.root, self.blindsight = root, blindsight
        self.names: dict[str, str] = {}
        self.running: dict[str, ExitStack] = {}
        self.directory = free_port()

    def run(self, words: list[str]) -> None:
        words = [self._filled(word) for word in words]
        if words[:2] == ["federation", "init"]:
            for flag in ("--port", "--superlink-port"):
                words += [flag, str(free_port())]
            words += ["--directory-port", str(self.directory)]
        if words[0] == "train":
            words = [*words[:-1], "1", "--local-epochs", "1"]
        if words[1] == "up":
            self.up(words)
            return
        found = self.call(words)
        if words[1] == "request":
            self.names[f"{words[words.index('--name') + 1].upper()}_FINGERPRINT"] = found[
                "fingerprint"
            ]
        if words[:2] == ["federation", "init"]:
            self.names["AUTHORITY_FINGERPRINT"] = found["authority"]
        if words[:2] == ["institution", "install"]:
            home = self.root / words[-3]
            (self.root / "data" / home.name).rename(home / "data")
        if words[:2] == ["federation", "bundle"]:
            self.names["BUNDLE_SHA256"] = found["sha256"]
            for name, host in (("clinic", "127.0.0.2"), ("museum", "127.0.0.3")):
                edit(self.root / name / "policy.toml",
                     (r"^bundles = \[\]", f'bundles = ["{found["sha256"]}"]'),
                     (r"^min-institutions = 3", "min-institutions = 2"),
                     (r"^searchers = \[\]", 'searchers = ["bob"]'),
                     (r"^min-items = 100", "min-items = 10"))  # fmt: skip
                edit(self.root / name / "institution.toml",
                     (r"^node_port = .*", f"node_port = {free_port()}"),
                     (r"^directory_port = .*", f"directory_port = {self.directory}"),
                     (r"^reach = .*", 'reach = "relay"'),
                     (r"^service_host = .*", f'service_host = "{host}"'))  # fmt: skip
        if words[:2] == ["searcher", "install"]:
            edit(self.root / "bob/searcher.toml",
                 (r"^directory = .*", f'directory = "127.0.0.1:{self.directory}"'))  # fmt: skip
        if words[0] == "train":
            self.release_id = found["release_id"]
        if words[:2] == ["index", "build"]:
            assert found["release_id"] == self.release_id
            self.running["clinic"].close()
            self.up(["institution", "up", "--home", "clinic"])
            self.await_listing()
        if words[:2] == ["searcher", "setup"]:
            assert found["release_id"] == self.release_id
            assert found["answered"] == "clinic" and not found["refused"], found
        if words[0] == "search":
            assert found["results"], found

    def await_listing(self) -> None:
        """Registering is a matter of seconds: of a process that is up when the service is."""
        end = time.monotonic() + 60
        bob = Profile.open(self.root / "bob")
        while not bob.directory().listing().offers:
            assert time.monotonic() < end
            time.sleep(0.2)

    def call(self, words: list[str]) -> dict[str, object]:
        done = self.blindsight(*words, "--json", cwd=self.root)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        found: dict[str, object] = json.loads(done.stdout)["data"]
        return found

    def up(self, words: list[str]) -> None:
        stack = self.running[words[-1]] = ExitStack()
        stack.enter_context(running(self._command(words), self.root))

    def _command(self, words: list[str]) -> list[str]:
        return [sys.executable, "-m", "simulations.cli", *words]

    def _filled(self, word: str) -> str:
        return re.sub(r"\b[A-Z]+_[A-Z0-9]+\b", lambda found: self.names[found[0]], word)


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    """It is ready within the block, and has ended in order after it."""
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready, (folder / "up.log").read_text()
        json.loads(ready)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_every_command_works_in_the_order_shown(blindsight: Run, tmp_path: Path) -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    commands = shown()
    assert any(words[0] == "train" for words in commands), f"{PAGE} has no walk-through"
    write_data(tmp_path)
    walk = Walk(tmp_path, blindsight)
    try:
        for words in commands:
            walk.run(words)
    finally:
        for party in reversed(walk.running.values()):
            party.close()
