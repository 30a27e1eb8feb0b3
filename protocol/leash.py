"""Becomes another program that ends with the process that started it, also if that is killed.

``python -I leash.py PARENT PROGRAM ARGUMENT ...``: the kernel sends SIGTERM when the parent, whose
number is given, is gone (Linux, prctl(2), PR_SET_PDEATHSIG). Set here and not between fork and
exec of the parent, which may have threads. It imports nothing of the project: it must start fast.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the program."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(parent):  # it died before the tie was made
        raise SystemExit(1)
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
