"""``blindsight data inspect``: what a folder is taken for, and what would be skipped."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from client.institution.pairs import METADATA
from simulations.cli import app


def inspect(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["data", "inspect", *map(str, arguments), "--json"])
    found = json.loads(done.stdout)
    assert (found["status"], done.exit_code) == ("ok", 0), found
    return found["data"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    lines = []
    for number in range(12):
        name, kind = (f"{number}.jpg", "JPEG") if number % 3 else (f"{number}.png", "PNG")
        Image.new("RGB", (20 + number, 10), (20 * number, 0, 0)).save(root / name, kind)
        lines.append(
            {
                "file_name": name,
                "captions": [f"<b>number</b> {number}", "two words"][: 1 + number % 2],
                "split": ("train", "val")[number % 2],
                "site": "clinic" if number < 4 else None,
                "patient": number // 4 * 2 + number % 2,
            }
        )
    lines += [{"file_name": f"no{number}.png", "text": "x"} for number in range(5)]
    for name in ("bad1.png", "bad2.png"):
        (root / name).write_bytes(b"no image")
        lines.append({"file_name": name, "text": "x", "split": "test"})
    (root / METADATA).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return root


def test_what_a_folder_holds(root: Path) -> None:
    data = inspect(root, "--group-key", "patient")
    assert (data["form"], data["pairs"], data["looked_at"]) == ("imagefolder", 14, 14)
    assert data["splits"] == {"train": 6, "val": 6, "test": 2}
    assert (data["sites"], data["groups"]) == ({"clinic": 4}, 6)
    assert data["formats"] == {"JPEG": 8, "PNG": 4}
    assert data["captions_per_image"] == {"least": 1, "median": 1, "most": 2}
    assert (data["width"]["least"], data["width"]["most"]) == (20, 31)
    assert data["height"] == {"least": 10, "median": 10, "most": 10}
    assert [(one["why"], one["count"], len(one["first"])) for one in data["skipped"]] == [
        ("no such image file", 5, 3),
        ("cannot be read as an image", 2, 2),
    ]
    assert "bad1.png" in data["skipped"][1]["first"][0]
    assert (data["identifying_tags"], data["notices"]) == ([], [])
    assert inspect(root / METADATA, "--all")["pairs"] == 14


def test_what_people_read(root: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "inspect", str(root)])
    assert done.exit_code == 0
    for part in ("imagefolder, 14 pairs", "train 6, val 6, test 2", "clinic 4", "JPEG 8, PNG 4"):
        assert part in done.stdout
    assert "skipped    5: no such image file" in done.stdout


def test_errors_are_those_of_every_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations.cli", "data", "inspect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing here describes images" in done.stderr
    assert "what to do: " in done.stderr


def test_the_sheet_stands_alone(root: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    inspect(root, "--sheet", sheet)
    text = sheet.read_text()
    assert text.count("<img ") == 12
    assert text.count("cannot be read as an image") == 2
    assert "&lt;b&gt;number&lt;/b&gt; 3" in text
    assert "<b>" not in text
    assert not re.search(r"(src|href)='?\"?(?!data:)[a-z/]", text)
    assert "default-src 'none'" in text
    assert sheet.stat().st_mode & 0o077 == 0


def test_identifying_tags_are_named_and_not_shown(tmp_path: Path) -> None:
    some = Dataset()
    some.file_meta = FileMetaDataset()
    some.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    some.file_meta.MediaStorageSOPClassUID = some.SOPClassUID = CTImageStorage
    some.file_meta.MediaStorageSOPInstanceUID = some.SOPInstanceUID = generate_uid()
    some.PatientName, some.PatientID, some.OperatorsName = "Doe^Jane", "P-4711", "Roe^Richard"
    some.PatientBirthDate, some.BurnedInAnnotation, some.Modality = "19700101", "YES", "CT"
    some.Rows, some.Columns, some.SamplesPerPixel = 8, 8, 1
    some.BitsAllocated, some.BitsStored, some.HighBit = 8, 8, 7
    some.PixelRepresentation, some.PhotometricInterpretation = 0, "MONOCHROME2"
    some.PixelData = np.arange(64, dtype=np.uint8).tobytes()
    some["PixelData"].VR = "OB"
    some.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / "a.txt").write_text("clear")
    data = inspect(tmp_path, "--sheet", tmp_path / "sheet.html")
    assert data["form"] == "DICOM studies"
    assert data["formats"] == {"DICOM": 1}
    assert data["groups"] == 1
    assert data["identifying_tags"] == [
        "OperatorsName",
        "PatientBirthDate",
        "PatientID",
        "PatientName",
        "SOPInstanceUID",
    ]
    assert "middle frame" in data["notices"][0]
    assert "burned into" in data["notices"][1]
    for text in (json.dumps(data), (tmp_path / "sheet.html").read_text()):
        assert not re.search("Jane|4711|Richard|19700101", text)


@pytest.mark.realdata
def test_real_folders(real_data: Path) -> None:
    emoji = inspect(real_data / "emoji")
    assert (emoji["pairs"], emoji["groups"], emoji["skipped"]) == (5845, 0, [])
    assert emoji["sites"] == {"noto": 1618, "openmoji": 2362, "twemoji": 1865}
    assert "'group'" in emoji["notices"][0]
    assert "topic" in emoji["notices"][0]
    flickr = inspect(real_data / "flickr8k")
    assert flickr["splits"] == {"train": 6000, "val": 1000, "test": 1000}
    assert flickr["captions_per_image"] == {"least": 5, "median": 5, "most": 5}
    assert (flickr["formats"], flickr["notices"]) == ({"JPEG": 1000}, [])
