"""Tiny real files of every form, and what is refused of each."""

import io
import json
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from client.institution.formats import dicom_header, dicom_pixels, shard, source
from client.institution.images import load_image, load_pixels, measure_image
from client.institution.pairs import METADATA, Pair, PairFolder, read_pairs, stamp, write_pairs
from protocol.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(path: Path, colour: str = "red") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path.name


def encoded(colour: str = "red", kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


def colour_of(folder: PairFolder, name: str) -> tuple[int, ...]:
    """The first pixel of one image, to the nearest pure colour."""
    pair = next(pair for pair in folder.pairs if pair.file_name == name)
    pixels, kept, skips = load_pixels(folder, [pair], 4)
    assert (kept, skips) == ([0], ())
    return tuple(255 * int(value > 127) for value in pixels[0, :, 0, 0])


def dump(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def refusal(root: Path, match: str) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        read_pairs(root)
    assert caught.value.hint
    assert len(caught.value.message) < 500
    return caught.value


# --- COCO


def coco(*names: str, **more: object) -> dict[str, Any]:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    said = [
        {"id": 9 * i + j, "image_id": i, "caption": f" {name} {j} "}
        for i, name in enumerate(names)
        for j in range(2)
    ]
    return {"info": {}, "images": images, "annotations": said, **more}


def test_coco_in_its_usual_places(tmp_path: Path) -> None:
    for folder, colour in (("train2017", "red"), ("val2017", "blue")):
        for name in ("1.jpg", "2.jpg"):
            picture(tmp_path / folder / name, colour)
    dump(tmp_path / "annotations/captions_train2017.json", coco("1.jpg", "2.jpg"))
    dump(tmp_path / "annotations/captions_val2017.json", coco("2.jpg", "none.jpg"))
    dump(tmp_path / "annotations/instances_val2017.json", {"images": [], "annotations": []})
    folder = read_pairs(tmp_path)
    assert folder.form == "COCO captions"
    assert [(pair.file_name, pair.split) for pair in folder.pairs] == [
        ("train2017/1.jpg", "train"),
        ("train2017/2.jpg", "train"),
        ("val2017/2.jpg", "val"),
    ]
    assert folder.pairs[0].captions == ("1.jpg 0", "1.jpg 1")
    assert [skip.why for skip in folder.skipped] == ["none.jpg: no such image file"]
    assert "captions_val2017.json, images[1]" in folder.skipped[0].where
    assert colour_of(folder, "train2017/2.jpg") == RED
    assert colour_of(folder, "val2017/2.jpg") == BLUE
    alone = read_pairs(tmp_path / "annotations/captions_val2017.json")
    assert alone.root == tmp_path
    assert [pair.file_name for pair in alone.pairs] == ["val2017/2.jpg"]


def test_coco_with_groups_and_orphans(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    found = coco("a.png")
    found["images"][0] |= {"patient": 7, "site": "clinic"}
    found["annotations"] += [{"image_id": 99, "caption": "x"}, {"image_id": 0, "bbox": [1]}]
    dump(tmp_path / "captions.json", found)
    folder = read_pairs(tmp_path, "patient")
    (pair,) = folder.pairs
    assert (pair.file_name, pair.group, pair.site) == ("photos/a.png", "7", "clinic")
    assert sorted(skip.why for skip in folder.skipped) == [
        "an annotation that is no caption",
        "captions of an unknown image 99",
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": {}}, "images: expected a list, got {}"),
        ({"images": [7]}, r"images\[0\]: expected a JSON object, got 7"),
        ({"images": [{"id": 1.5, "file_name": "a.png"}]}, r"images\[0\]: id: expected a whole"),
        ({"images": [{"id": 0}]}, r"images\[0\]: file_name: expected a string, got nothing"),
        ({"images": [{"id": 0, "file_name": "a.png"}] * 2}, r"images\[1\]: id: expected an id of"),
        ({"images": [{"id": 0, "file_name": "../a.png"}]}, "expected a relative path"),
        ({"images": [{"id": 0, "file_name": "/etc/passwd"}]}, "expected a relative path"),
        ({"annotations": None}, "annotations: expected a list, got nothing"),
        ({"annotations": [{"image_id": 0, "caption": 7}]}, r"annotations\[0\]: caption: expected"),
        ({"annotations": [{"image_id": [], "caption": "x"}]}, r"annotations\[0\]: image_id"),
    ],
)
def test_bad_coco(tmp_path: Path, change: dict[str, object], match: str) -> None:
    picture(tmp_path / "a.png")
    dump(tmp_path / "captions.json", coco("a.png", note=["caption"], **change))
    refusal(tmp_path, match)


def test_json_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    path = dump(tmp_path / "captions.json", coco("a.png"))
    assert len(read_pairs(tmp_path).pairs) == 1
    monkeypatch.setattr(source, "JSON_VALUES", 10)
    refusal(tmp_path, "expected at most 10 values")
    monkeypatch.undo()
    with path.open("ab") as file:
        file.truncate(source.JSON_BYTES + 1)
    refusal(tmp_path, "expected at most 268,435,456 bytes")
    dump(path, '{"images": "caption", "annotations": ' + "[" * 100_000)
    refusal(tmp_path, "not a JSON object")


# --- Karpathy


def karpathy(*names: str, **more: object) -> dict[str, Any]:
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": f"{name} 0", "tokens": []}]}
        for name in names
    ]
    for image in images:
        image.update(more)
    return {"images": images, "dataset": "flickr8k"}


def test_karpathy(tmp_path: Path) -> None:
    for name in ("images/1.jpg", "images/2.jpg", "val2014/3.jpg"):
        picture(tmp_path / name)
    found = karpathy("1.jpg", "2.jpg", "3.jpg", "4.jpg")
    found["images"][0]["split"] = "restval"
    found["images"][1]["split"] = "test"
    found["images"][2] |= {"split": "val", "filepath": "val2014"}
    dump(tmp_path / "dataset_flickr8k.json", found)
    folder = read_pairs(tmp_path)
    assert folder.form == "Karpathy splits"
    assert [(pair.file_name, pair.split) for pair in folder.pairs] == [
        ("images/1.jpg", "train"),
        ("images/2.jpg", "test"),
        ("val2014/3.jpg", "val"),
    ]
    assert folder.pairs[0].captions == ("1.jpg 0",)
    assert len(folder.skipped) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"split": "training"}, "split: expected one of"),
        ({"filename": 7}, "filename: expected a string, got 7"),
        ({"filename": "/etc/passwd"}, "expected a relative path"),
        ({"filepath": ".."}, "expected a relative path"),
        ({"filepath": 7}, "filepath: expected a string or nothing"),
        ({"sentences": ["x"]}, r"sentences\[0\]: expected a JSON object"),
        ({"sentences": [{"raw": 7}]}, "sentences: expected objects"),
    ],
)
def test_bad_karpathy(tmp_path: Path, change: dict[str, object], match: str) -> None:
    picture(tmp_path / "a.png")
    dump(tmp_path / "dataset.json", karpathy("a.png", note=["raw"], **change))
    refusal(tmp_path, r"images\[0\].*" + match)


# --- token files


def test_flickr8k_tokens(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / "Flicker8k_Dataset" / f"{name}.jpg")
    dump(
        tmp_path / "Flickr8k.token.txt",
        "".join(f"{name}.jpg#{n}\t{name} {n} .\n" for name in "abcd" for n in range(2)),
    )
    dump(tmp_path / "Flickr8k.lemma.token.txt", "a.jpg#0\tlemma\n")
    dump(tmp_path / "readme.txt", "read me")
    dump(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg\n")
    dump(tmp_path / "Flickr_8k.devImages.txt", "b.jpg\n")
    dump(tmp_path / "Flickr_8k.testImages.txt", "c.jpg\n\n")
    folder = read_pairs(tmp_path)
    assert folder.form == "Flickr token file"
    assert [(pair.file_name, pair.split) for pair in folder.pairs] == [
        ("Flicker8k_Dataset/a.jpg", "train"),
        ("Flicker8k_Dataset/b.jpg", "val"),
        ("Flicker8k_Dataset/c.jpg", "test"),
    ]
    assert folder.pairs[0].captions == ("a 0 .", "a 1 .")
    assert [skip.why for skip in folder.skipped] == ["d.jpg: in none of the lists of splits"]


def test_flickr30k_tokens_have_no_splits(tmp_path: Path) -> None:
    picture(tmp_path / "flickr30k-images/1.jpg")
    dump(tmp_path / "results_20130124.token", "1.jpg#0\tTwo men .\n1.jpg#1\tMen .\n2.jpg#0\tx\n")
    folder = read_pairs(tmp_path)
    assert folder.pairs == (Pair("flickr30k-images/1.jpg", ("Two men .", "Men .")),)
    assert len(folder.skipped) == 1
    assert read_pairs(tmp_path / "results_20130124.token").pairs == folder.pairs


@pytest.mark.parametrize("bad", ["a.jpg", "a.jpg\tx", "a.jpg#x\ty", "#0 x", "../a.jpg#0\tx"])
def test_bad_tokens(tmp_path: Path, bad: str) -> None:
    picture(tmp_path / "a.jpg")
    dump(tmp_path / "x.token", f"a.jpg#0\tgood\n{bad}\n")
    refusal(tmp_path, "line 2: ")


# --- tables


def test_flickr30k_results(tmp_path: Path) -> None:
    """As it is published: bars, spaces, quotation marks, and one row without its last bar."""
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / "flickr30k_images/flickr30k_images" / name)
    dump(
        tmp_path / "flickr30k_images/results.csv",
        'image_name| comment_number| comment\n1.jpg| 0| Two "men" , one | dog .\n'
        '1.jpg| 1| " Men " .\n2.jpg| 4   A dog runs .\n2.jpg| 3| A dog .\n',
    )
    folder = read_pairs(tmp_path / "flickr30k_images")
    assert [pair.file_name for pair in folder.pairs] == [
        "flickr30k_images/1.jpg",
        "flickr30k_images/2.jpg",
    ]
    assert folder.pairs[0].captions == ('Two "men" , one', '" Men " .')
    assert [skip.why[:9] for skip in folder.skipped] == ["2 columns"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_tables(tmp_path: Path, delimiter: str) -> None:
    for name in ("a.png", "sub/b.png"):
        picture(tmp_path / name)
    rows = [
        ["Path", "Report", "split", "site", "Patient", "other"],
        ["a.png", '"lungs clear', 'on two lines"', "test", "clinic", "P1", "x"],
        ["sub/b.png", "heart", "", "", "P2", ""],
        ["sub/b.png", "larger", "", "", "P2", ""],
        ["", "no image", "", "", "", ""],
    ]
    text = "\n".join(delimiter.join(row) for row in rows)
    text = text.replace(f'clear{delimiter}on two lines"', 'clear\non two lines"')
    dump(tmp_path / "reports.csv", "\ufeff" + text)
    folder = read_pairs(tmp_path, "Patient")
    assert folder.form == "table"
    assert folder.pairs[0] == Pair("a.png", ("lungs clear\non two lines",), "test", "clinic", "P1")
    assert folder.pairs[1] == Pair("sub/b.png", ("heart", "larger"), None, None, "P2")
    assert [skip.where[-6:] for skip in folder.skipped] == ["line 6"]


def test_tables_side_by_side_are_splits(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    dump(tmp_path / "train.csv", "image,caption\na.png,x\n")
    dump(tmp_path / "test.tsv", "image\ttitle\nb.png\ty\n")
    dump(tmp_path / "notes.csv", "when,what\n1,2\n")
    assert {pair.file_name: pair.split for pair in read_pairs(tmp_path).pairs} == {
        "images/a.png": "train",
        "images/b.png": "test",
    }
    assert read_pairs(tmp_path / "test.tsv").pairs == (Pair("images/b.png", ("y",)),)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ("/etc/passwd,x,,", "line 2.*expected a relative path"),
        ("../a.png,x,,", "expected a relative path"),
        ("a.png,x,training,", "line 2: split: expected one of"),
        ("a.png,x,,../clinic", "line 2: site: expected a plain name"),
        ("a.png,x,train,\na.png,y,test,", "line 3: another split, site or group than in line 2"),
        ('a.png,"x,,\n' + "y" * 200_000, "not a row of a table: field larger"),
        ("a.png,\0\udcff,,", "not UTF-8"),
        ("a.png,,,", "no usable pair, 1 skipped"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: str, match: str) -> None:
    picture(tmp_path / "a.png")
    text = f"path,text,split,site\n{rows}\n"
    (tmp_path / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    refusal(tmp_path, match)


def test_a_table_without_the_right_header(tmp_path: Path) -> None:
    dump(tmp_path / "a.csv", "when,what\n1,2\n")
    refusal(tmp_path, "nothing here describes images")
    refusal(tmp_path / "a.csv", "nothing here describes images")


NAMES = st.text("abc-_ äß", min_size=1, max_size=6).map(lambda name: f"{name.strip()}x.png")
SAID = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, st.lists(SAID, min_size=1, max_size=3), min_size=1, max_size=4))
def test_what_csv_writes_is_read(said: dict[str, list[str]]) -> None:
    import csv

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for one in said:
            (root / one).touch()
        with (root / "t.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "caption"])
            writer.writerows((one, text) for one, texts in said.items() for text in texts)
        wanted = {
            one: found
            for one, texts in said.items()
            if (found := tuple(text.strip() for text in texts if text.strip()))
        }
        try:
            found = {pair.file_name: pair.captions for pair in read_pairs(root).pairs}
        except DataError as error:
            assert "no usable pair" in error.message
            found = {}
    assert found == wanted


# --- WebDataset


def write_tar(path: Path, members: dict[str, bytes], kind: str = "w") -> None:
    with tarfile.open(path, kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "cats-train-0.tar",
        {
            "a/0001.jpg": encoded("red"),
            "a/0001.txt": b"a cat\n",
            "a/0001.json": json.dumps({"caption": None, "patient": "P1", "site": "x"}).encode(),
            "0002.PNG": encoded("blue", "PNG"),
            "0002.json": b'{"captions": ["a", "b"]}',
            "0003.txt": b"no image",
            "0004.jpg": encoded(),
            "._0001.jpg": b"resource fork",
            "0005.cls": b"\x80\x04",
            "longer" * 40 + ".webp": encoded("blue", "WEBP"),
            "longer" * 40 + ".txt": "Kätzin".encode(),
        },
    )
    write_tar(tmp_path / "cats-val-0.tar", {"a/0001.jpg": encoded(), "a/0001.txt": b"other"})
    folder = read_pairs(tmp_path, "patient")
    assert folder.form == "WebDataset"
    first, second, third, fourth = folder.pairs
    assert first == Pair("cats-train-0.tar/a/0001.jpg", ("a cat",), "train", "x", "P1")
    assert (second.file_name, second.captions) == ("cats-train-0.tar/0002.PNG", ("a", "b"))
    assert third.captions == ("Kätzin",)
    assert (fourth.file_name, fourth.split) == ("cats-val-0.tar/a/0001.jpg", "val")
    assert sorted(skip.why for skip in folder.skipped) == [
        "cats-train-0.tar/0004.jpg: no caption, or only empty ones",
        "no image",
        "no image",
    ]
    assert folder.read(first) == encoded("red")
    assert colour_of(folder, first.file_name) == RED
    assert colour_of(folder, second.file_name) == BLUE
    assert measure_image(folder.path(third)) == ("WEBP", 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cats-train-0.tar",
        "cats-val-0.tar",
    ]
    with pytest.raises(DataError, match="no such image"):
        load_image(tmp_path / "cats-val-0.tar" / "none.jpg")
    assert [pair.split for pair in read_pairs(tmp_path / "cats-val-0.tar").pairs] == ["val"]


def test_a_shard_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_tar(path, {"a.jpg": encoded("red"), "a.txt": b"x"})
    before, folder = stamp(tmp_path), read_pairs(tmp_path)
    assert colour_of(folder, "0.tar/a.jpg") == RED
    write_tar(path, {"pad": b"x" * 5000, "a.txt": b"x", "a.jpg": encoded("blue")})
    assert colour_of(folder, "0.tar/a.jpg") == BLUE
    assert stamp(tmp_path) != before


def test_pairs_of_a_shard_are_dealt_out_as_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": encoded("red"), "a.txt": b"x"})
    folder = read_pairs(tmp_path)
    for _ in range(2):
        write_pairs(tmp_path / "home", folder.pairs, folder)
    copied = read_pairs(tmp_path / "home")
    assert copied.pairs == folder.pairs
    assert colour_of(copied, "0.tar/a.jpg") == RED
    with pytest.raises(DataError, match="no such image"):
        write_pairs(tmp_path / "home", [Pair("0.tar/none.jpg", ("x",))], tmp_path)


def test_hostile_member_names(tmp_path: Path) -> None:
    for name in ("../a.jpg", "/a.jpg", "a/../../b.jpg", "a\\b.jpg"):
        write_tar(tmp_path / "0.tar", {"ok.jpg": encoded(), "ok.txt": b"x", name: encoded()})
        refusal(tmp_path, "0.tar, member .*expected a relative path")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.jpg")
            tar.addfile(info, io.BytesIO())
    refusal(tmp_path, "member 'a.jpg': stands there twice")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    refusal(tmp_path, "no usable pair, 0 skipped")
    assert not (tmp_path.parent / "a.jpg").exists()


def test_bad_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"a.jpg": encoded(), "a.txt": b"x"}
    path = tmp_path / "0.tar"
    write_tar(path, good)
    whole = path.read_bytes()
    path.write_bytes(whole[:600])
    refusal(tmp_path, "0.tar")
    path.write_bytes(b"\0" * 4 + whole[4:])
    refusal(tmp_path, "cannot be read as a tar")
    write_tar(path, good, "w:gz")
    refusal(tmp_path, "cannot be read as a tar")
    write_tar(path, good | {"a.txt": b"\xff"})
    refusal(tmp_path, "key a: not UTF-8")
    write_tar(path, good | {"a.json": b"[" * 5000})
    refusal(tmp_path, "key a: not a JSON object")
    write_tar(path, good | {"a.txt": b"x" * (source.LINE_BYTES + 1)})
    refusal(tmp_path, "a.txt: expected at most 1,048,576 bytes")
    monkeypatch.setattr(shard, "MEMBERS", 1)
    write_tar(path, good)
    refusal(tmp_path, "more than 1 files")
    path.unlink()
    os.mkfifo(path)
    refusal(tmp_path, "expected a file, got a folder or a device")


def header_of(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    raw[124:136] = (
        struct.pack(">Q", 0x80 << 56)[:1] + bytes(3) + struct.pack(">Q", size)
        if size >= 0
        else b"\xff" * 4 + struct.pack(">q", size)
    )
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize("kind", [b"x", b"L", b"g", b"0"])
@pytest.mark.parametrize("size", [1 << 40, 1 << 62, -512, -1024])
def test_sizes_that_a_tar_makes_up(tmp_path: Path, kind: bytes, size: int) -> None:
    ok = header_of("ok.txt", 0, b"0")
    (tmp_path / "0.tar").write_bytes(ok + header_of("a.jpg", size, kind) + bytes(2048))
    with pytest.raises(DataError):
        read_pairs(tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_tar_is_read_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "0.tar"
        write_tar(path, {"a.jpg": encoded(), "a.txt": b"x", "b" * 120 + ".json": b"{}"})
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(raw) - 1))
            raw[place : place + 1] = data.draw(st.binary(min_size=1, max_size=3))
        path.write_bytes(raw)
        try:
            folder = read_pairs(Path(name))
        except DataError as error:
            assert error.hint
        else:
            assert [folder.read(pair) for pair in folder.pairs]


# --- DICOM


def study(values: np.ndarray, **tags: object) -> Dataset:
    """A real data set: uncompressed, explicit little endian."""
    some = Dataset()
    some.file_meta = FileMetaDataset()
    some.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    some.file_meta.MediaStorageSOPClassUID = some.SOPClassUID = CTImageStorage
    some.file_meta.MediaStorageSOPInstanceUID = some.SOPInstanceUID = generate_uid(
        entropy_srcs=["i"]
    )
    some.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    some.PatientName, some.PatientID = "Doe^Jane", "P-4711"
    some.Modality = "CT"
    frames = values.ndim == 3 and values.shape[-1] != 3
    some.SamplesPerPixel = 3 if values.shape[-1] == 3 else 1
    some.PhotometricInterpretation = "RGB" if some.SamplesPerPixel == 3 else "MONOCHROME2"
    if some.SamplesPerPixel == 3:
        some.PlanarConfiguration = 0
    if frames:
        some.NumberOfFrames = len(values)
    some.Rows, some.Columns = values.shape[1:3] if frames else values.shape[:2]
    some.BitsAllocated = some.BitsStored = 8 * values.dtype.itemsize
    some.HighBit = some.BitsStored - 1
    some.PixelRepresentation = int(values.dtype.kind == "i")
    some.PixelData = values.tobytes()
    some["PixelData"].VR = "OW" if values.dtype.itemsize > 1 else "OB"
    for tag, value in tags.items():
        setattr(some, tag, value)
    return some


def save(some: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    some.save_as(path, enforce_file_format=True)
    return path


def greys(some: Dataset, tmp_path: Path) -> np.ndarray:
    image = load_image(save(some, tmp_path / "one.dcm"))
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0]


RAMP = np.arange(-1024, 1024, 32, dtype=np.int16).reshape(8, 8)


def test_rescale_and_window(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1, computed by hand: slope 2, intercept -100, window 40 +- 200."""
    some = study(
        RAMP, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="40", WindowWidth="400"
    )
    units = 2.0 * RAMP - 100
    light = np.clip((units - 39.5) / 399 + 0.5, 0, 1)
    assert np.abs(greys(some, tmp_path).astype(float) - 255 * light).max() <= 1
    some.PhotometricInterpretation = "MONOCHROME1"
    assert np.abs(greys(some, tmp_path).astype(float) - 255 * (1 - light)).max() <= 1
    some.WindowCenter, some.WindowWidth = ["40", "1"], ["400", "2"]
    assert np.abs(greys(some, tmp_path).astype(float) - 255 * (1 - light)).max() <= 1


def test_without_a_window_the_values_are_spread(tmp_path: Path) -> None:
    found = greys(study(RAMP), tmp_path)
    assert (found.min(), found.max()) == (0, 255)
    assert (np.diff(found.ravel().astype(int)) > 0).all()
    assert (greys(study(np.zeros((8, 8), np.uint8)), tmp_path) == 0).all()
    assert (greys(study(RAMP, WindowCenter="0", WindowWidth="100000"), tmp_path) > 100).all()


def table_of(values: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = values
    item["LUTData"].VR = "US"
    return item


def test_a_table_of_values(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 10
    some = study(values, VOILUTSequence=[table_of([0, 1000, 4095], 100, 12)])
    found = greys(some, tmp_path).ravel()
    assert (found[:11] == 0).all()
    assert (found[11:] == 255).all()
    some = study(values, VOILUTSequence=[table_of(list(range(256)) * 2, 0, 8)])
    assert greys(some, tmp_path)[3, 6] == 300 - 256


def test_the_middle_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 8), value, np.uint8) for value in (0, 50, 200, 250, 255)])
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    for some in (study(frames, **window), compressed(study(frames, **window), RLELossless)):
        assert abs(int(greys(some, tmp_path)[0, 0]) - 200) <= 1
    item = Dataset()
    item.WindowCenter, item.WindowWidth = "200", "100"
    groups = [Dataset() for _ in frames]
    groups[2].FrameVOILUTSequence = [item]
    some = study(frames, PerFrameFunctionalGroupsSequence=groups)
    assert abs(int(greys(some, tmp_path)[0, 0]) - 128) <= 2


def compressed(some: Dataset, syntax: str) -> Dataset:
    """``some`` with its frames compressed; JPEG through Pillow, RLE through pydicom."""
    frames = some.pixel_array
    frames = frames if "NumberOfFrames" in some else frames[None]
    made = []
    for frame in frames:
        if syntax == RLELossless:
            plain = study(frame)
            made.append(
                get_encoder(RLELossless).encode(
                    frame.tobytes(),
                    rows=plain.Rows,
                    columns=plain.Columns,
                    number_of_frames=1,
                    samples_per_pixel=plain.SamplesPerPixel,
                    bits_allocated=plain.BitsAllocated,
                    bits_stored=plain.BitsStored,
                    pixel_representation=plain.PixelRepresentation,
                    photometric_interpretation=plain.PhotometricInterpretation,
                    planar_configuration=0,
                )
            )
        else:
            file = io.BytesIO()
            kind = "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000"
            options = {"quality": 95} if kind == "JPEG" else {"no_jp2": True}
            Image.fromarray(frame).save(file, kind, **options)
            made.append(file.getvalue())
    some.PixelData = encapsulate(made)
    some["PixelData"].VR = "OB"
    some["PixelData"].is_undefined_length = True
    some.file_meta.TransferSyntaxUID = syntax
    return some


@pytest.mark.parametrize("syntax", [RLELossless, JPEGBaseline8Bit, JPEG2000Lossless])
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    values = np.linspace(0, 255, 4096).astype(np.uint8).reshape(64, 64)
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    found = greys(compressed(study(values, **window), syntax), tmp_path)
    assert np.abs(found.astype(int) - values).max() <= 4
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[..., 0] = 255
    some = compressed(study(colours), syntax)
    if syntax == JPEGBaseline8Bit:
        some.PhotometricInterpretation = "YBR_FULL_422"
    red, green, _ = load_image(save(some, tmp_path / "rgb.dcm")).getpixel((8, 8))
    assert red > 240 > 20 > green


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_orders_of_bytes(tmp_path: Path, syntax: str) -> None:
    some = study(RAMP, WindowCenter="0", WindowWidth="2048")
    wanted = greys(some, tmp_path)
    if syntax == ExplicitVRBigEndian:
        some.PixelData = RAMP.astype(">i2").tobytes()
    some.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "other.dcm"
    some.save_as(path, enforce_file_format=True)
    assert (np.asarray(load_image(path))[..., 0] == wanted).all()


def test_a_palette(tmp_path: Path) -> None:
    some = study(np.arange(4, dtype=np.uint8).reshape(2, 2))
    some.PhotometricInterpretation = "PALETTE COLOR"
    for name, values in (("Red", [0, 255, 0, 9]), ("Green", [0, 0, 255, 9]), ("Blue", [0] * 4)):
        setattr(some, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 8])
        some[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(some, f"{name}PaletteColorLookupTableData", bytes(values))
    image = load_image(save(some, tmp_path / "a.dcm"))
    assert [image.getpixel((x, y)) for y in (0, 1) for x in (0, 1)] == [
        (0, 0, 0),
        (255, 0, 0),
        (0, 255, 0),
        (9, 9, 0),
    ]


def test_studies_with_reports(tmp_path: Path) -> None:
    root = tmp_path / "pacs"
    for patient, place, name in (
        ("P1", "p1/s1", "a.dcm"),
        ("P1", "p1/s2", "b.DCM"),
        ("P2", "p2/s3/series", "c.dcm"),
        ("", "p3/s4", "d.dcm"),
        ("P4", "p4", "e.dcm"),
        ("P5", "p5", "f.dcm"),
    ):
        save(study(RAMP, PatientID=patient), root / place / name)
    dump(root / "p1/s1/a.txt", "FINDINGS:\n  lungs  clear\n")
    dump(root / "p1/s2/report.txt", "heart large")
    dump(root / "p2/s3.txt", "as MIMIC has it")
    dump(root / "p3/s4/report.txt", "no patient")
    dump(root / "p5/1.txt", "one")
    dump(root / "p5/2.txt", "two")
    dump(root / "README.txt", "read me")
    folder = read_pairs(root)
    assert folder.form == "DICOM studies"
    assert {pair.file_name: pair.captions for pair in folder.pairs} == {
        "p1/s1/a.dcm": ("FINDINGS: lungs clear",),
        "p1/s2/b.DCM": ("heart large",),
        "p2/s3/series/c.dcm": ("as MIMIC has it",),
        "p3/s4/d.dcm": ("no patient",),
    }
    a, b, c, d = folder.pairs
    assert a.group == b.group
    assert a.split == b.split
    assert len({a.group, c.group, d.group}) == 3
    assert not any("P1" in str(pair.group) or "4711" in repr(pair) for pair in folder.pairs)
    assert [skip.why for skip in folder.skipped] == [
        "no report",
        "2 reports in its folder, expected one",
    ]
    pixels, kept, skips = load_pixels(folder, folder.pairs, 16)
    assert (len(pixels), kept, skips) == (4, [0, 1, 2, 3], ())
    write_pairs(tmp_path / "home", folder.pairs, folder)
    assert "4711" not in (tmp_path / "home" / METADATA).read_text()
    assert str(a.group) not in (tmp_path / "home" / METADATA).read_text()
    copied = read_pairs(tmp_path / "home")
    assert [pair.split for pair in copied.pairs] == [pair.split for pair in folder.pairs]


@pytest.mark.parametrize("table", [True, False])
def test_reports_in_a_table_or_in_lines(tmp_path: Path, table: bool) -> None:
    for name, patient in (("a", "P1"), ("b", "P1"), ("c", "P2")):
        save(study(RAMP, PatientID=patient), tmp_path / f"{name}.dcm")
    if table:
        dump(tmp_path / "reports.csv", "path,report\na.dcm,x\nb.dcm,y\nc.dcm,z\n")
    else:
        lines = [json.dumps({"file_name": f"{name}.dcm", "text": "x"}) for name in "abc"]
        dump(tmp_path / "reports.jsonl", "\n".join(lines))
    a, b, c = read_pairs(tmp_path).pairs
    assert a.group == b.group != c.group
    assert measure_image(tmp_path / "a.dcm") == ("DICOM", 8, 8)


def undecodable(some: Dataset) -> Dataset:
    some = compressed(some, RLELossless)
    some.file_meta.TransferSyntaxUID = JPEGLSLossless
    return some


def lying_jpeg(some: Dataset) -> Dataset:
    """The header says 8 x 8, the JPEG inside 4,000 x 4,000."""
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG")
    some.PixelData = encapsulate([file.getvalue()])
    some["PixelData"].VR, some["PixelData"].is_undefined_length = "OB", True
    some.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return some


def segmented(some: Dataset) -> Dataset:
    some.PhotometricInterpretation = "PALETTE COLOR"
    some.SegmentedRedPaletteColorLookupTableData = b"\1\0" * 8
    return some


def without(keyword: str) -> Callable[[Dataset], Dataset]:
    def change(some: Dataset) -> Dataset:
        delattr(some, keyword)
        return some

    return change


def having(**tags: object) -> Callable[[Dataset], Dataset]:
    def change(some: Dataset) -> Dataset:
        for tag, value in tags.items():
            setattr(some, tag, value)
        return some

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (undecodable, "JPEG-LS Lossless.* cannot be decoded here"),
        (lying_jpeg, "the JPEG has"),
        (segmented, "segmented palette"),
        (without("PixelData"), "no pixels"),
        (without("Rows"), "expected 1 to 40,000,000 pixels"),
        (having(Rows=60_000, Columns=60_000), "expected 1 to 40,000,000 pixels.*60000 x 60000"),
        (having(Rows=5000, Columns=5000), "a.dcm: "),
        (having(NumberOfFrames=10**9), "a.dcm: "),
        (having(NumberOfFrames=-5), "a.dcm: "),
        (having(RescaleSlope="1e308", RescaleIntercept="1e308"), "no finite values"),
        (having(WindowCenter="0", WindowWidth="-1"), "Window Width must be"),
        (having(BitsAllocated=17), "a.dcm: "),
        (having(VOILUTSequence=[table_of([1], 0, 99)]), "1 values of 99 bits"),
    ],
)
def test_bad_dicom_costs_itself_alone(
    tmp_path: Path, change: Callable[[Dataset], Dataset], match: str
) -> None:
    save(study(RAMP), tmp_path / "b.dcm")
    try:
        save(change(study(RAMP)), tmp_path / "a.dcm")
    except Exception:  # what the library refuses to write
        some = change(study(RAMP))
        some.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    dump(tmp_path / "report.txt", "x")
    folder = read_pairs(tmp_path)
    _, kept, skips = load_pixels(folder, folder.pairs, 8)
    assert kept == [1]
    with pytest.raises(DataError, match=match) as caught:
        load_image(tmp_path / "a.dcm")
    assert caught.value.hint
    assert skips[0].why == caught.value.message


def test_a_dicom_compressed_as_a_whole_is_refused_unread(tmp_path: Path) -> None:
    some = study(np.zeros((4000, 4000), np.uint8))
    some.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(some, tmp_path / "a.dcm")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="without unpacking the whole file"):
        load_image(path)


def test_long_headers_and_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(study(RAMP, ImageComments="x" * 1000), tmp_path / "a.dcm")
    monkeypatch.setattr(dicom_header, "HEADER_BYTES", 600)
    with pytest.raises(DataError, match="a header that asks for 1,000 bytes"):
        load_image(path)
    monkeypatch.setattr(dicom_header, "HEADER_BYTES", 1200)
    with pytest.raises(DataError, match="a header of more than 1,200 bytes"):
        load_image(path)
    monkeypatch.undo()
    load_image(path)
    save(compressed(study(RAMP), RLELossless), path)
    load_image(path)
    monkeypatch.setattr(dicom_pixels, "RLE_BYTES", 60)
    with pytest.raises(DataError, match="expected at most 60 bytes of RLE"):
        load_image(path)
    monkeypatch.setattr(dicom_pixels, "FRAGMENTS", 1)
    with pytest.raises(DataError, match="expected at most 1 fragments"):
        load_image(path)


def test_values_of_many_bits(tmp_path: Path) -> None:
    """Shown without a table, and the same."""
    values = np.linspace(0, 1 << 30, 64).astype(np.uint32).reshape(8, 8)
    some = study(values, WindowCenter=str(1 << 29), WindowWidth=str(1 << 30))
    wanted = np.clip(values / (1 << 30), 0, 1) * 255
    assert np.abs(greys(some, tmp_path) - wanted).max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_any_dicom_is_decoded_or_refused(data: st.DataObject, packed: bool) -> None:
    some = study(RAMP, WindowCenter="0", WindowWidth="9", RescaleSlope="1", RescaleIntercept="0")
    file = io.BytesIO()
    (compressed(some, RLELossless) if packed else some).save_as(file, enforce_file_format=True)
    raw = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(132, len(raw) - 1))
        raw[place : place + 1] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.dcm"
        path.write_bytes(raw)
        try:
            assert load_image(path, 16).size == (16, 16)
        except DataError as error:
            assert error.hint
        dump(Path(name) / "a.txt", "x")
        assert len(read_pairs(Path(name)).pairs) == 1


# --- which form it is, and what holds for all


def test_metadata_goes_before_all_others(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    dump(tmp_path / "captions.json", coco("a.png"))
    dump(tmp_path / "a.csv", "path,text\na.png,table\n")
    assert read_pairs(tmp_path).form == "COCO captions"
    assert read_pairs(tmp_path / "a.csv").pairs[0].captions == ("table",)
    dump(tmp_path / METADATA, json.dumps({"file_name": "a.png", "text": "line"}))
    assert read_pairs(tmp_path).pairs[0].captions == ("line",)


SOURCES: dict[str, object] = {
    "captions.json": coco("a.png"),
    "dataset.json": karpathy("a.png"),
    "x.token": "a.png#0\tx\n",
    "t.csv": "path,text\na.png,x\n",
    "x.jsonl": '{"file_name": "a.png", "text": "x"}\n',
    METADATA: '{"file_name": "a.png", "text": "x"}\n',
}


@pytest.mark.parametrize("name", SOURCES)
def test_links_lead_out_in_no_form(tmp_path: Path, name: str) -> None:
    root = tmp_path / "private"
    picture(tmp_path / "outside/a.png")
    picture(root / "a.png")
    dump(root / name, SOURCES[name])
    assert [pair.file_name for pair in read_pairs(root).pairs] == ["a.png"]
    assert [pair.file_name for pair in read_pairs(root / name).pairs] == ["a.png"]
    (root / "a.png").unlink()
    (root / "images").symlink_to(tmp_path / "outside")
    refusal(root, "no usable pair")
    (root / "a.png").symlink_to(tmp_path / "outside/a.png")
    refusal(root, "leads out of the folder")
    (root / "a.png").unlink()
    picture(root / "a.png")
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    refusal(root, "leads out of the folder")


@pytest.mark.parametrize("name", [name for name in SOURCES if name != METADATA])
def test_one_entry_for_each_image(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    dump(tmp_path / name, SOURCES[name])
    again = tmp_path / f"z-{name}"
    dump(again, SOURCES[name])
    refusal(tmp_path, f"'a.png' was already described in {name}, (line|images)")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "images annotations caption sentences raw id image_id file_name filename".split()  # noqa: SIM905
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["c.json", "d.json", "x.token", "t.csv", "x.jsonl"]), JSON, st.binary())
def test_any_source_is_read_or_refused(name: str, value: object, tail: bytes) -> None:
    lead = {
        "c.json": b'{"x": ["images", "annotations", "caption"], "images": ',
        "d.json": b'{"x": ["images", "sentences", "raw"], "images": ',
        "x.token": b"a.png#0\tx\n",
        "t.csv": b"path,text,split\na.png,x,train\n",
        "x.jsonl": b'{"file_name": "a.png", "text": "x"}\n',
    }[name]
    body = json.dumps(value).encode() + b"}" if name.endswith("json") else tail
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        picture(root / "a.png")
        (root / name).write_bytes(lead + body)
        try:
            found = read_pairs(root)
        except DataError as error:
            assert error.hint
        else:
            assert [pair.file_name for pair in found.pairs] == ["a.png"]
