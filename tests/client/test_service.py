"""The institution's service over a real socket and real mutual TLS."""

import io
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from client.institution.index_writer import IndexWriter, build_index
from client.institution.items import Item
from client.institution.pairs import Pair
from client.institution.service import Service
from client.institution.settings import ServiceSettings
from client.searcher.ckks import SealScheme
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import (
    EpochMismatch,
    ReleaseMismatch,
    ServiceError,
    StorageError,
    UsageError,
)
from protocol.flags import settings_from_flags
from protocol.insecure_twin import InsecureTwin
from protocol.scheme import Scheme
from protocol.wire import score_request
from simulations.authority import ThrowAwayAuthority

RELEASE = "0123456789abcdef"


@pytest.mark.parametrize("scheme", [InsecureTwin(), SealScheme()], ids=["twin", "seal"])
def test_a_question_is_answered(served: list, scheme: Scheme) -> None:
    for one in served:
        remote, traffic = one.connect(), Traffic()
        described = remote.describe(RELEASE)
        question = one.embeddings[5]
        scores = remote.score(described, question, scheme, traffic)
        assert np.abs(scores - one.embeddings @ question).max() < 1e-5
        assert int(scores.argmax()) == 5
        layout = described.layout
        assert layout.upload_bytes <= traffic.upload_bytes < layout.upload_bytes + 500
        assert layout.download_bytes <= traffic.download_bytes < layout.download_bytes + 500
        remote.close()


def test_only_the_winners_come_back_and_decoys_are_asked_for(served: list) -> None:
    one, traffic = served[1], Traffic()
    remote, described = one.asked()
    released = remote.fetch(described, [3, 77], 20, traffic)
    assert sorted(released) == [3, 77]
    assert Image.open(io.BytesIO(released[77].thumbnail)).getpixel((5, 5))[0] in range(70, 85)
    assert released[3].caption == "", "captions are not released here"
    assert traffic.download_bytes > 15 * len(released[3].thumbnail), "decoys came along"
    remote.close()


def test_what_is_not_released_stays(served: list) -> None:
    clinic, described = served[0].asked()
    assert clinic.fetch(described, [3], 4, Traffic())[3].caption == "clinic 3"
    clinic.close()


def test_an_item_leaves_only_as_its_own_rights_allow(institutions: list, tmp_path: Path) -> None:
    one = institutions[0]
    rights = [None, frozenset({"thumbnail"}), frozenset({"caption"}), frozenset()]
    items = [Item(f"{i}.png", "said", release=forms) for i, forms in enumerate(rights)]
    with IndexWriter(tmp_path) as writer:
        writer.build(RELEASE, one.embeddings[:4], items).close()
    with Service(one.settings.model_copy(update={"index": tmp_path})) as service:
        remote = RemoteInstitution("clinic", service.address, one.searcher, 10)
        described = remote.describe(RELEASE)
        remote.score(described, one.embeddings[0], InsecureTwin(), Traffic())
        found = remote.fetch(described, [0, 1, 2, 3], 4, Traffic())
        remote.close()
    left = [(found[i].caption, bool(found[i].thumbnail)) for i in range(4)]
    assert left == [("said", True), ("", True), ("said", False), ("", False)]


def test_thumbnails_carry_no_metadata(served: list) -> None:
    one = served[2]
    picture = Image.new("RGB", (300, 200), "white")
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe, born 1970"
    picture.save(one.settings.data / "0.png", exif=exif)
    remote, described = one.asked()
    thumbnail = remote.fetch(described, [0], 1, Traffic())[0].thumbnail
    assert b"Jane" not in thumbnail
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "JPEG"
    assert max(image.size) <= 160
    assert not image.getexif()
    remote.close()


def test_another_release_is_refused_with_both_ids(served: list) -> None:
    remote = served[0].connect()
    with pytest.raises(ReleaseMismatch, match=f"{RELEASE}.*ffffffffffffffff"):
        remote.describe("f" * 16)
    remote.close()


def test_an_address_that_is_another_institution_is_refused(served: list) -> None:
    wrong = RemoteInstitution("museum", served[0].address, served[0].searcher, 10)
    with pytest.raises(ServiceError, match="museum cannot be reached"):
        wrong.describe(RELEASE)
    wrong.close()


class Raw:
    """A searcher that says what it likes."""

    def __init__(self, one, credentials: Credentials | None = None) -> None:
        known = credentials or one.searcher
        self.channel = grpc.secure_channel(one.address, known.for_client())
        self.stub = rpc.RetrievalStub(self.channel)

    def score(self, request: pb.ScoreRequest) -> list[pb.ScoreResponse]:
        return list(self.stub.Score(request, timeout=20))


def refused(call, *arguments) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    code = {one.key: one.value for one in caught.value.trailing_metadata() or ()}
    return caught.value.code().name, code.get("blindsight-code", "")


def test_hostile_questions_are_refused_with_their_reason(served: list) -> None:
    one = served[0]
    raw = Raw(one)
    described = one.connect().describe(RELEASE)
    key = InsecureTwin().keygen(described.layout.preset)
    chunks = key.encrypt_query(described.layout.question_polynomials(one.embeddings[0]))
    good = score_request(described, key.public_keys(described.layout.public_keys), chunks)
    assert raw.score(good)

    def broken(**changes: object) -> pb.ScoreRequest:
        message = pb.ScoreRequest.FromString(good.SerializeToString())
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    assert refused(raw.score, pb.ScoreRequest()) == ("FAILED_PRECONDITION", "release_mismatch")
    assert refused(raw.score, broken(epoch=9)) == ("ABORTED", "epoch_mismatch")
    malformed = ("INVALID_ARGUMENT", "malformed_message")
    assert refused(raw.score, broken(preset="fast")) == malformed
    short = broken()
    short.chunks[0].c0 = short.chunks[0].c0[:-1]
    assert refused(raw.score, short) == malformed
    out_of_range = broken()
    out_of_range.chunks[0].c0 = b"\xff" * len(out_of_range.chunks[0].c0)
    assert refused(raw.score, out_of_range) == malformed
    same_seed = broken()
    same_seed.public_keys[0].seed = same_seed.chunks[0].seed
    assert refused(raw.score, same_seed) == malformed
    bad_seed = broken()
    bad_seed.public_keys[0].seed = b"short"
    assert refused(raw.score, bad_seed) == malformed
    enormous = broken()
    enormous.chunks[0].c0 = bytes(8 << 20)
    assert refused(raw.score, enormous)[0] == "RESOURCE_EXHAUSTED"
    assert raw.score(good), "and the service goes on"
    raw.channel.close()


def test_hostile_fetches_are_refused(served: list) -> None:
    one = served[0]
    raw, (remote, _) = Raw(one), one.asked()
    grant = remote._grant
    assert grant is not None

    def fetch(handles: list[bytes], ticket: bytes = grant.ticket, epoch: int = 1) -> list:
        return list(raw.stub.Fetch(pb.FetchRequest(epoch=epoch, ticket=ticket, handles=handles)))

    good = grant.handles([5, 3])
    assert [item.position for message in fetch(good) for item in message.items] == [5, 3]
    malformed = ("INVALID_ARGUMENT", "malformed_message")
    for positions in ([], [1, 1], [40], [2**63], list(range(201))):
        assert refused(fetch, grant.handles(positions)) == malformed
    for handle in (b"", bytes(16), good[0][:15], good[0] + b"x", bytes(15) + b"\1"):
        assert refused(fetch, [handle]) == malformed
    changed = bytes([grant.ticket[0] ^ 1]) + grant.ticket[1:]
    later = grant.ticket[:-1] + bytes([grant.ticket[-1] ^ 1])
    for ticket in (b"", changed, later, grant.ticket + b"x"):
        assert refused(fetch, good, ticket) == malformed
    assert refused(fetch, good, grant.ticket, 2)[1] == "epoch_mismatch"
    other = Raw(one, one.other)
    request = pb.FetchRequest(epoch=1, ticket=grant.ticket, handles=good)
    assert refused(lambda: list(other.stub.Fetch(request))) == malformed, "another searcher's"
    for each in (raw, other):
        each.channel.close()
    remote.close()


def test_strangers_are_not_spoken_to(served: list, tmp_path: Path) -> None:
    stranger = Credentials.in_folder(ThrowAwayAuthority().issue("searcher", tmp_path / "other"))
    mixed = Credentials(stranger.certificate, stranger.private_key, served[0].searcher.authority)
    for credentials in (stranger, mixed):
        raw = Raw(served[0], credentials)
        assert refused(raw.stub.Describe, pb.DescribeRequest())[0] == "UNAVAILABLE"
        raw.channel.close()
    plain = grpc.insecure_channel(served[0].address)
    assert refused(rpc.RetrievalStub(plain).Describe, pb.DescribeRequest())[0] == "UNAVAILABLE"
    plain.close()


def test_a_missing_picture_costs_itself_alone(served: list) -> None:
    one = served[1]
    picture = one.settings.data / "9.png"
    picture.rename(picture.with_suffix(".away"))
    try:
        remote, described = one.asked()
        released = remote.fetch(described, [8, 9], 2, Traffic())
    finally:
        picture.with_suffix(".away").rename(picture)
    assert released[9].thumbnail == b""
    assert released[8].thumbnail
    remote.close()


def test_what_goes_wrong_inside_stays_inside(served: list) -> None:
    one = served[1]
    items = one.settings.index / "items-000001.sqlite"
    items.rename(items.with_suffix(".away"))
    remote, described = one.asked()
    with pytest.raises(ServiceError) as caught:
        remote.fetch(described, [9], 1, Traffic())
    assert caught.value.message == (
        "museum did not answer: INTERNAL: the institution cannot answer now"
    )
    items.with_suffix(".away").rename(items)
    remote.close()


def test_a_port_in_use_is_named(served: list) -> None:
    port = int(served[0].address.split(":")[1])
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}.*in use"):
        Service(served[0].settings.model_copy(update={"port": port}))


def test_an_answer_from_an_older_epoch_is_refused(served: list) -> None:
    one = served[0]
    remote = one.connect()
    described = remote.describe(RELEASE)
    stale = type(described)(described.institution, RELEASE, 7, described.layout)
    with pytest.raises(EpochMismatch):
        remote.score(stale, one.embeddings[0], InsecureTwin(), Traffic())
    remote.close()


def test_a_packed_index_of_other_embeddings_is_not_served(
    institutions: list, tmp_path: Path
) -> None:
    one = institutions[0]
    rows = one.embeddings.copy()
    other = tmp_path / "index"
    build_index(other, RELEASE, -rows, [Pair(f"{i}.png", ("a",)) for i in range(len(rows))])
    mixed = tmp_path / "mixed"
    shutil.copytree(one.settings.index, mixed)
    name = "epoch-000001/packed-000000.bin"
    shutil.copy(other / name, mixed / name)
    with pytest.raises(StorageError, match=r"scores -1\.0000 against itself, expected 1\.0000"):
        Service(one.settings.model_copy(update={"index": mixed}))


def test_settings_of_a_service_also_come_from_the_environment(
    institutions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = institutions[0].settings.model_dump(include={"name", "data", "index", "credentials"})
    monkeypatch.setenv("BLINDSIGHT_INSTITUTION_PORT", "7000")
    assert settings_from_flags(ServiceSettings, "", **given, port=None).port == 7000
    assert settings_from_flags(ServiceSettings, "", **given, port=8000).port == 8000
    with pytest.raises(UsageError, match="setting port"):
        settings_from_flags(ServiceSettings, "", **given, port=70000)
