"""Credentials: whatever is missing is named, and nothing secret is said."""

from pathlib import Path

import grpc
import pytest

from protocol.credentials import Credentials
from protocol.errors import UsageError

FILES = ("certificate.pem", "private-key.pem", "authority.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_a_folder_has_the_usual_names(folder: Path) -> None:
    credentials = Credentials.in_folder(folder)
    found = (credentials.certificate, credentials.private_key, credentials.authority)
    assert found == tuple(folder / name for name in FILES)


def test_files_that_are_there_make_both_sides(folder: Path) -> None:
    credentials = Credentials.in_folder(folder)
    assert isinstance(credentials.for_client(), grpc.ChannelCredentials)
    assert isinstance(credentials.for_server(), grpc.ServerCredentials)


@pytest.mark.parametrize("side", ["for_client", "for_server"])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str, side: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UsageError) as caught:
        getattr(Credentials.in_folder(folder), side)()
    assert str(folder / name) in caught.value.message
    assert all(file in caught.value.hint for file in FILES)
    assert "content of" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UsageError, match=name):
        Credentials.in_folder(folder).for_client()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Credentials.in_folder(tmp_path / "nowhere").for_server()
    assert "nowhere" in caught.value.message


def test_credentials_do_not_print_what_is_in_the_files(folder: Path) -> None:
    assert "content of" not in repr(Credentials.in_folder(folder))
