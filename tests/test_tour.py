"""The notebook docs/tour.ipynb runs from its first cell to its last, offline."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kernel that is this very interpreter, without a way out of this machine."""
    spec = tmp_path / "kernels" / "tour" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "tour", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    return "tour"


def output(cell: nbformat.NotebookNode) -> str:
    """What a code cell said, as text and as HTML."""
    said = ""
    for one in cell.outputs:
        assert one.output_type != "error", one
        said += one.get("text", "") + "".join(one.get("data", {}).values())
    return said


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert TOUR.stat().st_size < 300_000
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_it_runs(kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    path = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=path).execute()
    said = [output(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert said[0].count("'") == 6, "three institutions"
    assert said[1].count("<img") == 6
    assert all(one.count("<img") == 3 for one in said[3:6])
    assert said[6].count("(") >= 4 and "two blue squares" in said[6]
    assert said[7].splitlines()[-1].endswith("4 pictures")
    assert "True" in said[10]
    assert "keys_destroyed" in said[11] and "decoys" in said[11]
    assert "observatory" in said[12] and said[12].count("<img") == 3
