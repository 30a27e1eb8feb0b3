"""``make fuzz``: every target for its share of the time, guided by coverage (atheris, libFuzzer).

``python -m tests.fuzz NAME FILE`` repeats one input, without atheris.
"""

import argparse
import logging
import multiprocessing
import os
import re
import sys
from math import ceil
from multiprocessing.pool import ThreadPool
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
    asked = parser.parse_args()
    if asked.file:
        taken = check(TARGETS[asked.name], asked.file.read_bytes())
        print("taken" if taken else "refused, as it should be")
        return 0
    names, workers = [asked.name] if asked.name else list(TARGETS), os.cpu_count() or 1
    seconds = ceil(asked.seconds * min(workers, len(names)) / len(names))
    with ThreadPool(workers) as pool:
        broken = pool.map(lambda name: _explore(name, seconds), names, chunksize=1)
    return int(any(broken))


def _explore(name: str, seconds: int) -> bool:
    """Run one target in a process of its own; print one line; return whether it broke."""
    folder = FOUND / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    process = _processes.Process(target=_fuzz, args=(name, folder, seconds))
    process.start()
    process.join()
    log = (folder / "log.txt").read_text(errors="replace")
    runs = [int(one) for one in re.findall(r"^#(\d+)\s", log, re.M)]
    covered = re.findall(r" cov: (\d+)", log)
    if not process.exitcode and not covered:
        process.exitcode or sys.exit(f"{name}: nothing was tried; see {folder}/log.txt")
    what = f"{max(runs, default=0):>9,} inputs  {covered[-1] if covered else 0:>5} branches"
    if process.exitcode:
        saved = re.findall(r"Test unit written to (\S+)", log)
        again = f"python -m tests.fuzz {name} {saved[-1]}" if saved else f"see {folder}/log.txt"
        what = f"BROKEN   {again}"
    print(f"{name:<20} {what}", flush=True)
    return bool(process.exitcode)


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    import atheris

    target, log = TARGETS[name], os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
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
