"""``make fuzz``: every target for its share of the time, guided by coverage (atheris, libFuzzer).

``python -m tests.fuzz NAME FILE`` repeats one input, without atheris; ``--port`` attacks the real
port of a real service instead, also without.
"""

import argparse
import logging
import multiprocessing
import os
import re
import sys
from importlib.util import find_spec
from math import ceil
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from random import Random
from types import FunctionType, ModuleType

from tests.fuzz.target import Target, check
from tests.fuzz.targets import TARGETS

FOUND = Path("fuzz")
"""Inputs worth keeping, and those that broke something; git does not see it."""
_RESIDENT_MIB = 4096
_processes = multiprocessing.get_context("fork")


def main() -> int:
    """Return 1 if an input broke a target, and say where that input is."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", nargs="?", choices=TARGETS, help="one target, else all")
    parser.add_argument("file", nargs="?", type=Path, help="repeat this input alone")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--port", action="store_true", help="attack the port of a real service")
    parser.add_argument("--messages", type=int, default=1_000_000, help="with --port: at most")
    asked = parser.parse_args()
    if asked.port:
        from tests.fuzz.port import fuzz_port

        found = fuzz_port(asked.seconds, asked.messages)
        print(found)
        return int(bool(found.broken))
    if asked.file:
        taken = check(TARGETS[asked.name], asked.file.read_bytes())
        print("taken" if taken else "refused, as it should be")
        return 0
    if find_spec("atheris") is None:
        parser.error("atheris is not installed: run `make fuzz`, which installs it")
    names = [asked.name] if asked.name else list(TARGETS)
    workers = min(os.cpu_count() or 1, len(names))
    seconds = ceil(asked.seconds * workers / len(names))
    broken, running = False, dict[int, tuple[str, ForkProcess]]()
    while names or running:
        while names and len(running) < workers:
            process = _processes.Process(target=_fuzz, args=(names[0], seconds))
            process.start()
            running[process.sentinel] = (names.pop(0), process)
        for sentinel in wait(running):
            name, process = running.pop(int(sentinel))  # type: ignore[call-overload]
            process.join()
            broken |= _told(name, process.exitcode)
    return int(broken)


def _told(name: str, exit_code: int | None) -> bool:
    """Print one line of what a target's process did; return whether something broke."""
    log = (FOUND / name / "log.txt").read_text(errors="replace")
    inputs = re.findall(r"^#(\d+)\s.* cov: (\d+)", log, re.M)
    if exit_code or not inputs:
        saved = re.findall(r"Test unit written to (\S+)", log)
        again = (
            f"python -m tests.fuzz {name} {saved[-1]}" if saved else f"see {FOUND}/{name}/log.txt"
        )
        print(f"{name:<20} BROKEN  {again}", flush=True)
        return True
    count, branches = inputs[-1]
    print(f"{name:<20} {int(count):>9,} inputs {branches:>5} branches", flush=True)
    return False


def _fuzz(name: str, seconds: int) -> None:
    """Explore one target in a process of its own, whose talk goes to a file."""
    target, folder = TARGETS[name], FOUND / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import atheris

    logging.disable()
    target.decode(target.seeds()[0])  # what is made once is not of any input
    for number, seed in enumerate(target.seeds()):
        check(target, seed)
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    for module in target.modules:
        _instrument(module, atheris.instrument_func)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        """As libFuzzer does, or as the target's own form suggests."""
        random = Random(seed)
        changed = atheris.Mutate(data, longest) if seed % 2 else target.mutate(data, random)
        return bytes(changed[:longest])

    options = {
        "max_total_time": seconds,
        "max_len": target.longest,
        "timeout": ceil(10 * target.seconds),
        "rss_limit_mb": _RESIDENT_MIB,
        "artifact_prefix": f"{folder}/",
    }
    flags = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup(["fuzz", *flags, f"{folder}/corpus"], _feeder(target), custom_mutator=mutate)
    atheris.Fuzz()


def _feeder(target: Target):  # type: ignore[no-untyped-def]
    return lambda data: check(target, data) and None


def _instrument(module: ModuleType, instrument) -> None:  # type: ignore[no-untyped-def]
    """Count branches of a module's own functions; compiled kernels are left as they are."""
    things = list(vars(module).values())
    things += [one for kind in things if isinstance(kind, type) for one in vars(kind).values()]
    for thing in things:
        function = getattr(thing, "__func__", getattr(thing, "fget", thing))
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            instrument(function)


if __name__ == "__main__":
    sys.exit(main())
