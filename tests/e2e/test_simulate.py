"""``blindsight simulate`` and ``search`` as a user runs them: real processes, real sockets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from client.institution.index import Index

pytestmark = pytest.mark.e2e

TINY = ["--rounds", "1", "--local-epochs", "1", "--queries", "5", "--no-baselines"]


def services() -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if {"institution", "serve"} <= set(one.info["cmdline"] or ())
    ]


def test_the_envelope_carries_the_figures(simulated) -> None:
    out, envelope = simulated
    assert envelope["status"] == "ok"
    assert envelope["schema_version"] == 1
    data = envelope["data"]
    assert data["encrypted_plain_overlap_at_10"] >= 0.99
    assert 0 < data["max_score_error"] < 1e-4
    recall = data["recall_at_10"]
    assert set(recall) == {"federated", "central", "chance", "local"}
    assert len(recall["local"]) == 3
    assert all(0 <= value <= 1 for value in [recall["federated"], recall["central"]])
    assert data["upload_bytes"] > 0 < data["download_bytes"]
    assert Path(data["report"]) == out / "report.html"
    assert json.loads((out / "summary.json").read_text()) == data
    assert sum(one["indexed"] for one in data["institutions"]) == 240
    assert len(data["rounds"]) == 2
    assert data["peak_memory_mb"] < 4000


def test_the_report_is_one_file_that_loads_nothing(simulated) -> None:
    out, _ = simulated
    html = (out / "report.html").read_text()
    assert "data:image/jpeg;base64," in html
    assert "default-src 'none'" in html
    assert 'src="http' not in html
    assert "<script" not in html


def test_no_service_outlives_the_simulation(simulated) -> None:
    out, _ = simulated
    assert not [one for one in services() if str(out) in " ".join(one.cmdline())]


def test_every_index_verifies(simulated) -> None:
    out, _ = simulated
    for home in (out / "institutions").iterdir():
        Index(home / "index").verify()


def test_private_keys_are_readable_by_their_owner_alone(simulated) -> None:
    out, _ = simulated
    keys = list(out.rglob("private-key.pem"))
    assert len(keys) == 4
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)


def test_the_same_seed_gives_the_same_model_to_the_bit(
    simulated, blindsight, tmp_path: Path
) -> None:
    out, _ = simulated
    again = blindsight(
        "simulate", "--scenes", 240, "--institutions", 3, "--no-baselines",
        "--rounds", 2, "--local-epochs", 1, "--queries", 2, "--seed", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    first, second = (
        next((folder / "releases").glob("*/model.safetensors"))
        for folder in (out, tmp_path / "out")
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.parent.name == second.parent.name


def test_search_finds_pictures_and_writes_a_sheet(simulated, blindsight, tmp_path: Path) -> None:
    out, _ = simulated
    sheet = tmp_path / "found.html"
    done = blindsight(
        "search", "a red circle", "--federation", out, "-k", 4, "--sheet", sheet, "--json"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["data"]["results"]
    assert len(results) == 4
    scores = [one["score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert sheet.read_text().count("data:image/jpeg") == 4


def test_a_corrupt_and_a_missing_image_are_skipped_and_reported(
    simulated, blindsight, tmp_path: Path
) -> None:
    out, _ = simulated
    data = tmp_path / "data"
    shutil.copytree(out / "scenes", data)
    images = sorted((data / "images").iterdir())
    images[0].write_bytes(b"not a picture")
    images[1].unlink()
    done = blindsight("simulate", "--data", data, *TINY, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["data"]
    assert sum(one["indexed"] for one in found["institutions"]) == 238
    assert images[0].name in done.stderr
    assert images[1].name in done.stderr


def broken_folder(kind: str, tmp_path: Path) -> list[object]:
    data = tmp_path / "data"
    data.mkdir()
    if kind == "broken line":
        (data / "metadata.jsonl").write_text('{"file_name": "a.png"\n')
    if kind == "nothing usable":
        (data / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": " "}\n')
    return ["--data", data]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no metadata", "metadata.jsonl"),
        ("broken line", "line 1"),
        ("nothing usable", "a.png"),
    ],
)
def test_a_folder_that_cannot_be_used_ends_with_one_message(
    blindsight, tmp_path: Path, kind: str, words: str
) -> None:
    done = blindsight("simulate", *broken_folder(kind, tmp_path), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "what to do:" in done.stderr
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--partition", "fair"], "site"),
        (["--partition", "site", "--institutions", "2", "--data", "SCENES"], "2"),
        (["--rounds", "0"], "rounds"),
        (["--scenes", "50", "--data", "SCENES"], "not both"),
        (["--preset", "quick"], "'private' or 'fast'"),
        (["--data", "SCENES", "--partition", "iid"], "institutions"),
        (["--partition", "dirichlet:0.01", "--data", "SCENES", "--institutions", "60"], "pair"),
    ],
)
def test_flags_that_cannot_work_are_explained(
    simulated, blindsight, tmp_path: Path, flags: list[str], words: str
) -> None:
    flags = [str(simulated[0] / "scenes") if one == "SCENES" else one for one in flags]
    done = blindsight("simulate", *flags, "--out", tmp_path / "out", "--json")
    envelope = json.loads(done.stdout)
    assert done.returncode == 2
    assert envelope["status"] == "error"
    assert words in envelope["message"] + (envelope["hint"] or "")
    assert "Traceback" not in done.stderr


def test_a_folder_of_somebody_else_is_never_touched(blindsight, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = blindsight("simulate", "--scenes", 40, "--out", tmp_path)
    assert done.returncode == 2
    assert "was not made by blindsight" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["precious.txt"]


def test_ctrl_c_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations.cli", "simulate", "--scenes", "2000"]
    process = subprocess.Popen(
        [*command, "--rounds", "50", "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("institutions/*/data/metadata.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not (out / "report.html").exists()
    assert not list((out / "releases").glob("[0-9a-f]*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named(simulated, blindsight, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        done = blindsight("simulate", "--scenes", 400, "--out", small / "out")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert done.returncode == 6, done.stderr
    assert "space" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.realdata
def test_real_drawings_by_three_vendors(blindsight, real_data: Path, tmp_path: Path) -> None:
    done = blindsight(
        "simulate", "--data", real_data / "emoji", "--partition", "site", "--limit", 600, *TINY,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert [one["name"] for one in data["institutions"]] == ["noto", "openmoji", "twemoji"]
    assert data["encrypted_plain_overlap_at_10"] >= 0.99
