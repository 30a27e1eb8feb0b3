"""Commands in processes of their own that need not import torch first: forks of one that has.

``python -m tests.e2e.prefork`` imports what the commands import, seconds of work, and then answers
a line of JSON (arguments, folder, files for stdout and stderr, seconds) by an exit code, or null if
the command took longer. It has used nothing of what it imported, so it has no thread and no state
that a fork would lose.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]


class Prefork:
    """The process that is forked; ``close`` ends it."""

    def __init__(self) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.prefork"],
            cwd=ROOT, env=os.environ | one, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, *arguments: object, cwd: Path | None = None, timeout: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` of ``blindsight ARGUMENTS``. Raises TimeoutExpired."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        words = list(map(str, arguments))
        with TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("stdout", "stderr")]
            request = [words, str(cwd or Path.cwd()), *map(str, said), timeout]
            print(json.dumps(request), file=stdin, flush=True)
            code = json.loads(stdout.readline())
            if code is None:
                raise subprocess.TimeoutExpired(words, timeout)
            return subprocess.CompletedProcess(words, code, *(one.read_text() for one in said))

    def close(self) -> None:
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


def serve() -> None:
    """Fork a command for every line, one after the other."""
    import simulations.cli
    import simulations.simulate  # noqa: F401 - with it come torch, transformers and flwr

    # Else a collection in a fork would copy half a gigabyte, page by page.
    gc.collect()
    gc.freeze()
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a fork would lose {threads - 1} threads"
    while line := sys.stdin.readline():
        *request, timeout = json.loads(line)
        child = get_context("fork").Process(target=_command, args=request)
        child.start()
        child.join(timeout)
        print(json.dumps(child.exitcode), flush=True)
        child.kill()
        child.join()


def _command(words: list[str], folder: str, stdout: str, stderr: str) -> None:
    from simulations.cli import main

    os.chdir(folder)
    for number, path in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["blindsight", *words]
    main()


if __name__ == "__main__":
    serve()
