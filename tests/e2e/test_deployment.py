"""Flower's own deployment, by the commands of README.md: superlink, supernodes, one round."""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from protocol.model.release import read_release

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def shown(command: str) -> str:
    """The one command of the README that begins with ``command``."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (found,) = re.findall(rf"^{command} .*$", text, re.MULTILINE)
    return str(found)


def wait_until_healthy(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the superlink ended"
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"http://{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)


@pytest.mark.timeout(400)
def test_the_commands_of_the_readme_train_a_release(simulated, tmp_path: Path) -> None:
    homes = {
        home.name: home / "data" for home in sorted((simulated[0] / "institutions").iterdir())[:2]
    }
    config = tmp_path / "user" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        '[superlink]\ndefault = "local-deployment"\n[superlink.local-deployment]\n'
        'address = "127.0.0.1:18000"\ninsecure = true\n'
    )
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **quiet, "FLWR_HOME": str(tmp_path / name)}
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                shlex.split(command), env=environment, stdout=log, stderr=log, cwd=tmp_path
            )
        processes.append(process)
        return process

    try:
        wait_until_healthy("127.0.0.1:18000", start("superlink", shown("flower-superlink")))
        for port, (name, home) in enumerate(homes.items(), 18101):
            command = shown("flower-supernode").replace("/data/clinic", str(home))
            start(name, command.replace('clinic"', f'{name}"').replace("18101", str(port)))
        command = shown("flwr run").replace("/data/releases", str(tmp_path / "releases"))
        done = subprocess.run(
            shlex.split(command.replace("rounds=10", "rounds=1 local-epochs=1")),
            env={**os.environ, **quiet, "FLWR_HOME": str(config.parent)},
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)
    (release,) = (tmp_path / "releases").iterdir()
    assert read_release(release).metrics["rounds"] == 1
