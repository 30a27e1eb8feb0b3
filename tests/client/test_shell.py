"""The shell, line by line against real institutions, and as a process at a terminal."""

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from client.institution.service import Service
from client.searcher.prompt import history_file
from client.searcher.query import Query
from client.searcher.results import Results
from client.searcher.searcher import Searcher
from client.searcher.shell import COMMANDS, Shell
from protocol.errors import BlindsightError, DataError, UsageError
from protocol.insecure_twin import InsecureTwin
from protocol.model.release import write_release
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from tests.client.perfect import PerfectEncoder


@pytest.fixture
def shell(served: list) -> Shell:
    remotes = [one.connect() for one in served]
    with Searcher(PerfectEncoder(served), remotes, InsecureTwin()) as searcher:
        yield Shell(searcher, 4, pictures=False)


def places(text: str) -> list[str]:
    """Institution and position of each line that is a result."""
    found = re.findall(r"^ +\d+  [+-]\S+  (\S+) +#(\d+)", text, re.MULTILINE)
    return [f"{name} {position}" for name, position in found]


def test_a_sentence_searches(shell: Shell) -> None:
    text = shell.do("museum 9\n")
    assert text.startswith("museum 9\n") and places(text)[0] == "museum 9"
    assert len(places(text)) == 4 and "3 institutions answered" in text
    assert places(shell.do("  clinic 3 ")) == places(shell.do("search clinic 3"))
    assert shell.do("   ") == ""


def test_a_conversation(shell: Shell) -> None:
    first = places(shell.do("clinic 7"))
    assert places(shell.do("k 2")) == [] and len(places(shell.do("clinic 7"))) == 2
    assert shell.do("not museum 9").startswith("clinic 7, not museum 9\n")
    assert "clinic 7" in places(shell.do("undo"))
    assert places(shell.do("from museum,harbour")) == []
    assert all(not one.startswith("clinic") for one in places(shell.do("clinic 7")))
    shell.do("from all")
    assert places(shell.do("clinic 7")) == first[:2]
    assert shell.do("more 1").startswith("like clinic #7\n")


def test_marks_refine(shell: Shell) -> None:
    first = places(shell.do("harbour 30"))
    assert shell.do("good 3") == "1 good, 0 bad; again looks on with them"
    assert shell.do("bad 3, 2").startswith("0 good, 2 bad")
    assert shell.do("good 3").startswith("1 good, 1 bad")
    assert shell.do("again").startswith("harbour 30\n")
    step = shell._conversation.steps[-1]
    marked = [
        [f"{one.institution} {one.position}" for one in side] for side in (step.good, step.bad)
    ]
    assert marked == [[first[2]], [first[1]]]
    with pytest.raises(UsageError, match="no result was marked"):
        shell.do("again")
    assert places(shell.do("undo")) == first
    shell.do("less 1")
    assert [one.position for one in shell._conversation.steps[-1].bad] == [30]
    assert places(shell.do("undo")) == first


def test_an_image_searches(shell: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "a picture.png"
    Image.new("RGB", (8, 8), (30, 180, 7)).save(picture)
    for line in (f"image {picture}", f"image '{picture}'"):
        text = shell.do(line)
        assert text.startswith("like a picture\n") and places(text)[0] == "harbour 30"
    with pytest.raises(DataError, match="cannot be read"):
        shell.do("image /nowhere.png")


def test_results_are_saved(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was searched"):
        shell.do(f"save {tmp_path}/a.html")
    shell.do("museum 9")
    assert shell.do(f"save {tmp_path}/a.html") == f"written: {tmp_path}/a.html"
    assert "museum" in (tmp_path / "a.html").read_text()
    shell.do(f"save {tmp_path}/folder")
    assert len(list((tmp_path / "folder").iterdir())) == 4


def test_privacy_is_told(shell: Shell) -> None:
    shell.do("museum 9")
    rows = [line.split() for line in shell.do("privacy").splitlines()]
    told = {row[0]: row for row in rows if row}
    for name in ("clinic", "museum", "harbour"):
        assert told[name][3] == "8", "as many items are asked for everywhere"
        assert told[name][5:9] == ["1", "made,", "1", "destroyed"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("more", "takes a number"),
        ("more dogs in snow", "search more dogs in snow"),
        ("more 5", "1 to 4, got 5"),
        ("more 0", "1 to 4"),
        ("less 1 2", "takes a number"),
        ("good one", "takes numbers"),
        ("good ²", "takes numbers"),
        ("k 101", "1 to 100"),
        ("k -1", "takes a number"),
        ("from nobody", "clinic, museum, harbour"),
        ("from", "clinic, museum, harbour"),
        ("undo it", "search undo it"),
        ("not", "1 to 2000 characters"),
        ("image", "takes a path"),
        ("save", "takes a path"),
        ("search", "1 to 2000 characters"),
        ("open 9", "1 to 4"),
        ("ask more blue", "there is no assistant"),
        ("rerank", "there is no assistant"),
    ],
)
def test_a_slip_is_an_error_and_asks_nobody(shell: Shell, line: str, words: str) -> None:
    shell.do("museum 9")
    steps = len(shell._conversation.steps)
    with pytest.raises(BlindsightError) as caught:
        shell.do(line)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert len(shell._conversation.steps) == steps


class Backwards:
    """An assistant that has no model behind it."""

    def rewrite(self, history: list[Query], follow_up: str) -> Query:
        return Query(f"{history[-1]}", without=(follow_up,))

    def rerank(self, question: str, results: Results) -> Results:
        return replace(results, ranked=results.ranked[::-1])


def test_an_assistant_words_a_follow_up_and_orders_pictures(served: list) -> None:
    remotes = [one.connect() for one in served]
    with Searcher(PerfectEncoder(served), remotes, InsecureTwin()) as searcher:
        shell = Shell(searcher, 4, False, Backwards())
        first = places(shell.do("museum 9"))
        assert places(shell.do("rerank")) == first[::-1]
        assert places(shell.do("search museum 9")) == first
        assert shell.do("ask without people").startswith("museum 9, not without people\n")


def test_errors_are_words_and_the_next_line_goes_on(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run(["museum 9", "more \x1b[2J", "clinic 2", "quit", "clinic 1"])
    told = capsys.readouterr()
    assert "more takes a number" in told.err and "\x1b" not in told.err
    assert "\nclinic 2\n" in told.out and "\nclinic 1\n" not in told.out


def test_help_names_every_command(shell: Shell) -> None:
    told = shell.do("help")
    assert all(f"\n{name}" in f"\n{told}" for name in COMMANDS)


def test_the_history_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    kept = tmp_path / "blindsight" / "history"
    kept.parent.mkdir()
    kept.write_text("older")
    kept.chmod(0o644)
    assert history_file() == kept
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.read_text() == "older"
    kept.unlink()
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        history_file()
    assert not (tmp_path / "elsewhere").exists()


PROGRAM = """
import sys
from client.searcher.prompt import lines
from client.searcher.shell import COMMANDS

for line in lines(list(COMMANDS), ["clinic"], True):
    print("GOT", line.strip(), flush=True)
"""


def test_a_pipe_gives_line_by_line_without_a_prompt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=b"a red car\n\xff\xfe\nlast",
        capture_output=True,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.decode().splitlines() == ["GOT a red car", "GOT \ufffd\ufffd", "GOT last"]
    assert not list(tmp_path.iterdir())


def test_a_terminal_has_a_prompt_completion_and_a_history(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""

    def until(words: bytes) -> None:
        """Read on until these come, and past them."""
        nonlocal seen
        end = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096)
        seen = seen.partition(words)[2]

    def type_in(keys: bytes) -> None:
        """At a prompt: what is typed between two would be lost."""
        until(b"search>")
        os.write(ours, keys)

    try:
        type_in(b"a red car\r")
        until(b"GOT a red car")
        type_in(b"priv\t")
        until(b"acy")
        os.write(ours, b"\r")
        until(b"GOT privacy")
        type_in(b"nothing\x03")  # Ctrl-C empties the line
        type_in(b"clinic 1\r")
        until(b"GOT clinic 1")
        type_in(b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    kept = tmp_path / "blindsight" / "history"
    assert "+a red car" in kept.read_text().splitlines()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.e2e
def test_the_command_takes_lines_from_a_pipe(institutions: list, tmp_path: Path) -> None:
    tiny = TowerSettings(dim=16, image_size=32, text_width=16, text_heads=2, buckets=64)
    release = write_release(tmp_path / "releases", TwoTowers.initial(tiny, 0), {})
    clinic = institutions[0]
    pairs = [Pair(f"{i}.png", (f"clinic {i}",)) for i in range(len(clinic.embeddings))]
    build_index(tmp_path / "index", release.release_id, clinic.embeddings, pairs)
    settings = clinic.settings.model_copy(update={"index": tmp_path / "index"})
    own = clinic.searcher.certificate.parent
    command = [sys.executable, "-m", "simulations.cli", "shell", "-k", "3", "--release"]
    command += [str(release.path), "--credentials", str(own), "--institution"]
    with Service(settings) as service:
        done = subprocess.run(
            [*command, f"clinic={service.address}"],
            input=b"a red circle\nmore 9\nk 2\nnot blue\nprivacy\nquit\n",
            capture_output=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode() == "more takes 1 to 3, got 9\n"
    told = done.stdout.decode()
    assert "\x1b" not in told and "search>" not in told
    assert told.startswith("a red circle\n") and "a red circle, not blue\n" in told
    assert len(places(told)) == 5 and "1 made, 1 destroyed" in told
