"""The shape of the project that other tests take for granted."""

import subprocess
import sys
import tomllib
from pathlib import Path

from protocol.model.pretrained import EncoderChoice
from protocol.model.settings import TrainingSettings


def test_the_command_starts_without_the_heavy_packages() -> None:
    """So that --help is instant: torch alone takes seconds to import."""
    code = (
        "import sys, simulations.cli\n"
        "heavy = {'torch', 'flwr', 'transformers', 'numpy', 'numba', 'grpc', 'tenseal', 'faiss'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_flower_app_has_the_defaults_of_training() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    assert config.pop("releases") == "releases"
    assert config.pop("checkpoints") == "" and config.pop("resume") is False
    assert config.pop("identity") == config.pop("roster") == config.pop("bundle-approvals") == ""
    defaults = TrainingSettings().to_run_config() | EncoderChoice().to_config()
    del defaults["towers"]  # JSON text: whoever wants other towers gives them whole
    assert config == defaults
