"""The shape of the project that other tests take for granted."""

import subprocess
import sys


def test_the_command_starts_without_the_heavy_packages() -> None:
    """So that --help is instant: torch alone takes seconds to import."""
    code = (
        "import sys, simulations.cli\n"
        "heavy = {'torch', 'flwr', 'transformers', 'numpy', 'numba', 'grpc', 'tenseal', 'faiss'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
