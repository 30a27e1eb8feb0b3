"""``make fuzz``: one target after the other, guided by coverage, each for its share of the time."""

import os
import subprocess
import sys

import atheris

# numba does not compile what atheris has changed.
COMPILED = [
    *("protocol.bits", "protocol.modular", "protocol.ntt", "protocol.ring", "protocol.seeds"),
    *("client.institution.dot", "client.institution.kernels", "client.institution.randomness"),
]

with atheris.instrument_imports(include=["protocol", "client"], exclude=COMPILED):
    from tests.fuzz import files, messages, models
    from tests.fuzz.target import check

TARGETS = {**messages.TARGETS, **files.TARGETS, **models.TARGETS}


def main() -> None:
    """Fuzz the target that is named; without a name, all of them in processes of their own."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    if len(sys.argv) < 2:
        share = max(seconds // len(TARGETS), 1)
        for name in TARGETS:
            command = [sys.executable, "-m", "tests.fuzz.guided", name, f"-max_total_time={share}"]
            print(name, flush=True)
            subprocess.run([*command, "-verbosity=0"], check=True)
        return
    target = TARGETS[sys.argv.pop(1)]
    for seed in target.seeds():
        check(target, seed)
    atheris.Setup([*sys.argv, f"-max_len={target.longest}"], lambda data: check(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
