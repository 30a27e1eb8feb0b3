"""The node's executor, which has the libraries of training in memory when work arrives.

``python -P executor.py ARGUMENTS of flower-superexec``. Flower starts a fresh ``flwr-clientapp``
for every message, and six seconds pass until its libraries are loaded; with secure aggregation a
round is five messages. Here each message gets a process of its own all the same, but one that is
forked from this one. Nothing of this project is imported: that code comes from the bundle that the
node approved, and from there alone. Besides, the token of a task stands on no command line.

Flower's internals: ``SubprocessExecutor``, its exit handlers, its command ``flwr-clientapp``, and
how long this waits for a part of its message that the node has not got yet (1 s, then 2, 4, 8);
tests/client/test_node.py notices when they change.
"""

import importlib
import os
import signal
import sys
from contextlib import suppress

from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TaskType
from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

LIBRARIES = (
    "torch", "torchvision.transforms.v2", "transformers.modeling_layers", "peft", "scipy.optimize",
    "onnx", "onnxruntime", "numba", "safetensors.torch", "tokenizers", "zstandard", "PIL.Image",
    "pydantic", "cryptography.x509",
)  # fmt: skip
#: Seconds, the first time and at most: the node is on this machine, and asked for nothing else.
WAITS = {"initial_backoff": 0.05, "backoff_cap": 0.5}
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class ForkingExecutor(SubprocessExecutor):
    """Runs each ClientApp in a fork of this process, and refuses every other kind of task."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the work that Flower describes; its process ends with this one."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed(f"no {spec.task_type.value} is run at an institution")
        if os.fork() == 0:
            _become(spec)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Take note of those that ended."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _become(spec: ExecutionSpec) -> None:
    """Be flwr-clientapp, in a process that has nothing left of the executor's own."""
    code = 1
    try:
        registered_exit_handlers.clear()
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        sys.argv = [
            "flwr-clientapp",
            TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address,
            "--token", spec.token,
            "--insecure",  # loopback
            "--parent-pid", str(os.getppid()),
        ]  # fmt: skip
        flwr_clientapp()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Load the libraries, then be flower-superexec."""
    pull = inflatable_utils.pull_and_inflate_object_from_tree
    pull.__kwdefaults__ = {**(pull.__kwdefaults__ or {}), **WAITS}
    for name in LIBRARIES:
        with suppress(ImportError):  # then it is loaded, or missed, by whoever needs it
            importlib.import_module(name)
    setattr(run_superexec, "get_executor", lambda *_, **__: ForkingExecutor())  # noqa: B010
    flower_superexec()


if __name__ == "__main__":
    main()
