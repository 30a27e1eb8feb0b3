"""The messages on the wire are a promise: numbers, names and types stay, and stubs are fresh."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

from protocol.blindsight.v1 import directory_pb2, retrieval_pb2

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "protocol" / "blindsight" / "v1"
GOLDEN = Path(__file__).parents[1] / "vectors" / "schema.json"
FILES = {"retrieval.proto": retrieval_pb2.DESCRIPTOR, "directory.proto": directory_pb2.DESCRIPTOR}
TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def shape(file: FileDescriptor) -> dict[str, Any]:
    """What a file promises: services with their streams, messages with their fields."""
    services = {
        service.name: {
            method.name: [
                ("stream " if method.client_streaming else "") + method.input_type.name,
                ("stream " if method.server_streaming else "") + method.output_type.name,
            ]
            for method in service.methods
        }
        for service in file.services_by_name.values()
    }
    messages = {
        message.name: {
            str(field.number): " ".join(
                [
                    *(["repeated"] if field.is_repeated else []),
                    *(["optional"] if field.has_presence and not field.message_type else []),
                    field.message_type.name if field.message_type else TYPES[field.type],
                    field.name,
                ]
            )
            for field in message.fields
        }
        for message in file.message_types_by_name.values()
    }
    return {"package": file.package, "services": services, "messages": messages}


@pytest.mark.parametrize("name", FILES)
def test_no_promise_is_broken(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())["files"]
    assert sorted(golden) == sorted(FILES)
    assert shape(FILES[name]) == golden[name]


def test_the_checked_in_stubs_are_fresh(tmp_path: Path) -> None:
    plugins = Path(sys.executable).parent
    kinds = ("python", "grpc_python", "mypy", "mypy_grpc")
    quiet = {"mypy": "quiet:", "mypy_grpc": "quiet:"}
    made = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
            *(f"--{kind}_out={quiet.get(kind, '')}{tmp_path}" for kind in kinds),
            *(f"protocol/blindsight/v1/{name}" for name in sorted(FILES)),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{plugins}{os.pathsep}{os.environ.get('PATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    fresh = tmp_path / "protocol" / "blindsight" / "v1"
    names = sorted(path.name for path in fresh.iterdir())
    assert names == sorted(path.name for path in STUBS.glob("*_pb2*.py*"))
    assert len(names) == 4 * len(FILES)
    stale = [name for name in names if (fresh / name).read_bytes() != (STUBS / name).read_bytes()]
    assert not stale, f"run make stubs; stale: {', '.join(stale)}"


def test_every_proto_file_is_held_to_its_promise() -> None:
    assert sorted(path.name for path in STUBS.glob("*.proto")) == sorted(FILES)
