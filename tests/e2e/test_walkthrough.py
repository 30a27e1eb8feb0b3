"""The commands of README.md, docs/operations.md and docs/training.md, run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from safetensors.torch import save_file

from simulations.authority import ThrowAwayAuthority
from tests.protocol.test_encoders import TEXTS, saved

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SHORT = ["--rounds", "1", "--local-epochs", "1"]
QUICK = [*SHORT, "--queries", "3", "--no-baselines"]


def shown(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("blindsight ")]


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "docs/training.md"])
def test_the_commands_work_in_the_order_shown(
    simulated, blindsight, tmp_path: Path, page: str
) -> None:
    out, _ = simulated
    release = next((out / "releases").glob("[0-9a-f]*"))
    names = {"images": out / "scenes", "releases": out / "releases", "demo": out}
    for name, target in names.items():
        (tmp_path / name).symlink_to(target)
    saved(tmp_path / "text-model", TEXTS["bert"]())
    weights = torchvision.models.shufflenet_v2_x0_5().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    authority = ThrowAwayAuthority()
    authority.issue("clinic", tmp_path / "tls")
    authority.issue("searcher", tmp_path / "searcher-tls")
    service = None
    try:
        for words in shown(page):
            if words[0] in ("poc", "train", "status", "logs", "ui") or "--home" in words:
                continue  # test_poc, test_operations, test_relay and test_ui run these
            words = [word.replace("RELEASE_ID", release.name) for word in words]
            if words[0] == "simulate":
                words += [*QUICK, *(["--scenes", "80"] if "--scenes" in words else [])]
            if words[0] == "experiment":
                words += SHORT
            if words[:2] == ["institution", "serve"]:
                command = [sys.executable, "-m", "simulations.cli", *words]
                service = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                assert service.stdout is not None
                assert json.loads(service.stdout.readline()) == {"address": "127.0.0.1:9443"}
                continue
            done = blindsight(*words, cwd=tmp_path)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    finally:
        if service is not None:
            service.terminate()
            service.communicate(timeout=20)
            assert service.returncode == 0
