import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.institution import pairs as module
from client.institution.formats import source
from client.institution.images import iterate_pixels, load_image, load_pixels
from client.institution.pairs import (
    METADATA,
    Pair,
    PairFolder,
    default_split,
    read_pairs,
    stamp,
    write_pairs,
)
from protocol.errors import DataError, StorageError, UsageError
from protocol.files import writing
from protocol.model import pictures


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def describe(root: Path, *lines: object) -> None:
    """Metadata lines: strings as they are, everything else as JSON."""
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / METADATA).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")


def line(name: str = "images/a.png", **fields: object) -> dict[str, object]:
    return {"file_name": name, "captions": ["a cat"], **fields}


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, with next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder ``private`` with one image; what lies beside it must stay out of reach."""
    picture(tmp_path / "private" / "images" / "a.png")
    picture(tmp_path / "outside.png")
    return tmp_path / "private"


# --- reading


def test_reads_what_the_convention_allows(root: Path) -> None:
    for name in "bcd":
        picture(root / "images" / f"{name}.png")
    describe(
        root,
        line(captions=[" a cat ", "", "pet"], split="val", site="clinic", licence="CC BY"),
        "",
        {"file_name": "images/b.png", "caption": "a dog", "site": "bakery"},
        {"file_name": "images/c.png", "text": "a bird", "split": None, "site": None},
        {"file_name": "./images//d.png", "captions": ["ein Fuchs \N{FOX FACE}"]},
    )
    folder = read_pairs(root)
    assert folder.pairs[0] == Pair("images/a.png", ("a cat", "pet"), "val", "clinic")
    assert [pair.captions for pair in folder.pairs[1:3]] == [("a dog",), ("a bird",)]
    assert folder.pairs[3].file_name == "images/d.png"
    assert folder.skipped == ()
    assert folder.sites == ("bakery", "clinic")
    assert folder.split("val")[0] is folder.pairs[0]
    assert folder.path(folder.pairs[0]).is_file()


def test_a_missing_split_follows_from_the_name() -> None:
    names = [f"images/{number}.png" for number in range(2000)]
    splits = [Pair(name, ("x",)).split for name in names]
    assert splits == [default_split(name) for name in names]
    assert [round(splits.count(split) / 2000, 1) for split in ("train", "val", "test")] == [
        0.8,
        0.1,
        0.1,
    ]


def test_a_group_lies_in_one_split(root: Path) -> None:
    for number in range(60):
        picture(root / "images" / f"{number}.png")
    lines = [line(f"images/{n}.png", patient=n // 3, group="x") for n in range(57)]
    lines += [line("images/57.png", patient="declared", split="test")]
    lines += [line(f"images/{n}.png", patient="declared") for n in (58, 59)]
    describe(root, *lines)
    folder = read_pairs(root, "patient")
    patients = {pair.group: set() for pair in folder.pairs}
    for pair in folder.pairs:
        patients[pair.group].add(pair.split)
    assert len(patients) == 20
    assert all(len(splits) == 1 for splits in patients.values())
    assert set.union(*patients.values()) == {"train", "test"}
    assert patients["declared"] == {"test"}
    assert folder.pairs[0].split == default_split("0")
    assert folder.notices == ()
    assert {pair.split for pair in read_pairs(root, "no such key").pairs[:57]} != {"test"}


def test_a_group_too_large_for_a_patient_is_noticed(root: Path) -> None:
    for number in range(60):
        picture(root / "images" / f"{number}.png")
    describe(root, *(line(f"images/{n}.png", group=7) for n in range(60)))
    folder = read_pairs(root)
    assert len({pair.split for pair in folder.pairs}) == 1
    assert "60 of 60 items" in folder.notices[0]


def test_a_topic_is_no_group(root: Path) -> None:
    for name in "bcd":
        picture(root / "images" / f"{name}.png")
    describe(
        root,
        line("images/a.png", group="animals", split="train"),
        line("images/b.png", group="animals", split="test"),
        line("images/c.png", group="food", split="train"),
        line("images/d.png", group="food"),
    )
    folder = read_pairs(root)
    assert [pair.group for pair in folder.pairs] == [None] * 4
    assert [pair.split for pair in folder.pairs[:3]] == ["train", "test", "train"]
    assert folder.pairs[3].split == default_split("images/d.png")
    assert len(folder.notices) == 1
    assert "'group'" in folder.notices[0]
    assert "topic" in folder.notices[0]


@pytest.mark.parametrize("bad", [["x"], 1.5, True, "x" * 201, {"a": 1}, 1 << 64])
def test_a_group_is_a_plain_value(root: Path, bad: object) -> None:
    describe(root, line(patient=bad))
    with pytest.raises(DataError, match="line 1: patient: expected a text"):
        read_pairs(root, "patient")


def test_a_group_is_not_shown_and_not_written(root: Path, tmp_path: Path) -> None:
    picture(root / "images" / "b.png", "blue")
    describe(root, line(group="Jane Doe"), line("images/b.png", group="John Roe"))
    folder = read_pairs(root)
    assert folder.pairs[0].group == "Jane Doe"
    assert "Jane" not in repr(folder)
    write_pairs(tmp_path / "copy", folder.pairs, folder)
    assert "Jane" not in (tmp_path / "copy" / METADATA).read_text()
    copied = read_pairs(tmp_path / "copy")
    assert [pair.group for pair in copied.pairs] == ["1", "2"]
    assert [pair.split for pair in copied.pairs] == [pair.split for pair in folder.pairs]


def test_a_stamp_tells_of_a_change(root: Path) -> None:
    describe(root, line())
    before = stamp(root)
    assert stamp(root) == before == stamp(root / METADATA)
    describe(root, line(), line("images/b.png"))
    assert stamp(root) != before
    with pytest.raises(DataError, match="no such folder"):
        stamp(root / "nowhere")


def test_unusable_pairs_are_skipped_and_reported(root: Path) -> None:
    (root / "images" / "folder.png").mkdir()
    (root / "images" / "loop.png").symlink_to("loop.png")
    describe(
        root,
        line(),
        line("images/missing.png"),
        line("images/empty.png", captions=["", " \t"]),
        line("images/folder.png"),
        line("images/loop.png"),
        line("images/" + "n" * 300),
    )
    folder = read_pairs(root)
    assert [pair.file_name for pair in folder.pairs] == ["images/a.png"]
    assert len(folder.skipped) == 5
    assert folder.skipped[0].where.endswith("line 2")
    assert folder.skipped[0].why == "images/missing.png: no such image file"
    assert "no caption" in folder.skipped[1].why


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "expected a JSON object, got"),
        ('{"a":' * 5000, "not a JSON object"),
        ('{"file_name": ' + "9" * 5000 + "}", "not a JSON object"),
        ({"captions": ["x"]}, "file_name: expected a string, got nothing"),
        (line(7), "file_name: expected a string, got 7"),
        (line("\ud800.png"), "file_name: expected a string"),
        ({"file_name": "b.png"}, "captions: expected a list of strings, got nothing"),
        (line("b.png", captions="x"), "captions: expected a list of strings, got 'x'"),
        (line("b.png", captions=["x", 1]), "captions: expected a list of strings"),
        ({"file_name": "b.png", "text": ["x"]}, "text: expected a string"),
        (line("b.png", split="training"), "split: expected one of"),
        (line("b.png", split=["train"]), "split: expected one of"),
        (line("b.png", site=3), "site: expected a plain name"),
        (line("b.png", site=" "), "site: expected a plain name"),
        (line("b.png", site="../clinic"), "site: expected a plain name"),
        (line("b.png", site="c" * 101), "site: expected a plain name"),
        (line("/etc/passwd"), "expected a relative path"),
        (line("../outside.png"), "expected a relative path"),
        (line("images/../images/a.png"), "expected a relative path"),
        (line("images\\a.png"), "expected a relative path"),
        (line(""), "expected a relative path"),
        (line("a\0.png"), "expected a relative path"),
        (line(), "'images/a.png' was already described in line 1"),
        (line("./images/a.png"), "'images/a.png' was already described in line 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_line_ends_the_read(root: Path, bad: object, reason: str) -> None:
    describe(root, line(), bad)
    with pytest.raises(DataError) as caught:
        read_pairs(root)
    assert f"{METADATA}, line 2: " in caught.value.message
    assert reason in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.hint


def test_links_must_not_lead_out(root: Path) -> None:
    (root / "images" / "in.png").symlink_to("a.png")
    describe(root, line("images/in.png"))
    assert len(read_pairs(root).pairs) == 1
    (root / "images" / "out.png").symlink_to(root.parent / "outside.png")
    describe(root, line("images/out.png"))
    with pytest.raises(DataError, match=r"line 1: 'images/out.png' is a link that leads out"):
        read_pairs(root)
    (root / "up").symlink_to(root.parent)
    describe(root, line("up/outside.png"))
    with pytest.raises(DataError, match="leads out of the folder"):
        read_pairs(root)


def test_the_folder_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    describe(root, line())
    (tmp_path / "link").symlink_to(root)
    assert len(read_pairs(tmp_path / "link").pairs) == 1


def test_nothing_to_read(root: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_pairs(root / "nowhere")
    with pytest.raises(
        DataError, match=r"nothing here describes images: .*metadata.jsonl"
    ) as caught:
        read_pairs(root)
    assert "file_name" in caught.value.hint
    describe(root)
    with pytest.raises(DataError, match="no usable pair, 0 skipped"):
        read_pairs(root)
    describe(root, line("images/missing.png"), line(captions=[]))
    with pytest.raises(DataError, match=r"no usable pair, 2 skipped; the first: .*line 1: images"):
        read_pairs(root)
    (root / METADATA).unlink()
    os.mkfifo(root / METADATA)
    with pytest.raises(DataError, match="expected a file, got a folder or a device"):
        read_pairs(root)


def test_bounds_come_before_reading(root: Path) -> None:
    describe(root, line(), line("b.png", captions=["x" * source.LINE_BYTES]))
    with pytest.raises(DataError, match="line 2: longer than 1,048,576 bytes"):
        read_pairs(root)
    with (root / METADATA).open("ab") as file:
        file.truncate(source.SOURCE_BYTES + 1)  # a hole: takes no room on the disk
    with pytest.raises(DataError, match="expected at most 536,870,912 bytes, got 536,870,913"):
        read_pairs(root)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["images/a.png", ".", "..", "/", "images", "\0", "a" * 5000]) | JSON
LINES = st.fixed_dictionaries(
    {}, optional={"file_name": NAMES, "captions": JSON, "text": JSON, "split": JSON, "site": JSON}
).map(lambda found: json.dumps(found).encode())
LISTED = st.lists(LINES | JSON.map(lambda value: json.dumps(value).encode()), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | LISTED.map(b"\n".join))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images").mkdir()
        (Path(name) / "images" / "a.png").touch()
        (Path(name) / METADATA).write_bytes(content)
        try:
            folder = read_pairs(Path(name))
        except DataError as error:
            assert error.hint
        else:
            assert [pair.file_name for pair in folder.pairs] == ["images/a.png"]


@pytest.mark.realdata
def test_real_folders(real_data: Path) -> None:
    emoji = read_pairs(real_data / "emoji")
    assert emoji.sites == ("noto", "openmoji", "twemoji")
    assert (len(emoji.pairs), emoji.skipped) == (5845, ())
    pixels, kept, skips = load_pixels(emoji, emoji.split("test")[:50], 64)
    assert pixels.shape == (50, 3, 64, 64)
    assert (kept, skips) == (list(range(50)), ())


# --- images


def test_an_image_becomes_upright_rgb_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    for name in ("a.png", "a.webp"):
        clear.save(tmp_path / name, lossless=True)
        image = load_image(tmp_path / name)
        assert image.mode == "RGB"
        assert [image.getpixel((0, 0)), image.getpixel((3, 3))] == [(255, 0, 0), (255, 255, 255)]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "a.gif", transparency=1)
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 255, 255)
    wide = Image.new("RGB", (40, 20), "blue")
    wide.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned to the right
    wide.save(tmp_path / "a.jpg", exif=exif)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (20, 40)
    red, _, blue = image.getpixel((10, 5))
    assert red > 200 > blue


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "scan.png")
    assert load_image(tmp_path / "scan.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"])
def test_size_squeezes(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (900, 300), "green").save(tmp_path / name)
    assert load_image(tmp_path / name, 32).size == (32, 32)
    assert load_image(tmp_path / name).size == (900, 300)


def striped(path: Path, size: tuple[int, int]) -> Image.Image:
    """Noise, smooth enough that two good ways of scaling agree."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    image.save(path)
    return image


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (256, 256)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_crop_is_what_pretrained_weights_expect(
    tmp_path: Path, size: tuple[int, int], resample: str
) -> None:
    """As torchvision: Resize of the shorter side with antialias, then CenterCrop."""
    image = striped(tmp_path / "a.png", size)
    shorter, wanted = 128, 112
    scaled = tuple(int(shorter * length / min(size)) for length in size)
    whole = image.resize(scaled, pictures.RESAMPLES[resample])
    left, top = (round((length - wanted) / 2) for length in scaled)
    expected = np.asarray(whole.crop((left, top, left + wanted, top + wanted)), float)
    found = np.asarray(load_image(tmp_path / "a.png", wanted, wanted / shorter, resample), float)
    assert found.shape == (wanted, wanted, 3)
    assert np.abs(found - expected).mean() < 2.5
    squeezed = np.asarray(load_image(tmp_path / "a.png", wanted, None, resample), float)
    assert np.abs(squeezed - expected).mean() > 10


def test_crop_of_a_strip_takes_no_memory(tmp_path: Path) -> None:
    Image.new("L", (60_000, 1), "white").save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 32, 0.5).size == (32, 32)


@pytest.mark.parametrize("bad", [{"crop": 0.0}, {"crop": 1.1}, {"resample": "nearest"}])
def test_a_wrong_fit_is_refused(root: Path, bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        load_image(root / "images" / "a.png", 32, **bad)
    with pytest.raises(UsageError, match="expected"):
        list(iterate_pixels(PairFolder(root, ()), (), 0))
    with pytest.raises(UsageError, match="expected"):
        list(iterate_pixels(PairFolder(root, ()), (), 8, batch=0))


@given(st.integers(0, 12), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_batches_are_the_whole(count: int, batch: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for i in range(count):
            picture(root / f"{i}.png", f"rgb({20 * i}, 0, 0)")
        if count > 2:
            (root / "1.png").write_bytes(b"damaged")
        pairs = tuple(Pair(f"{i}.png", ("x",)) for i in range(count))
        folder = PairFolder(root, pairs)
        pixels, kept, skips = load_pixels(folder, pairs, 4)
        parts = list(iterate_pixels(folder, pairs, 4, batch=batch))
    assert len(parts) == -(-count // batch)
    assert np.array_equal(np.concatenate([np.empty((0, 3, 4, 4)), *(p[0] for p in parts)]), pixels)
    assert [index for part in parts for index in part[1]] == kept
    assert tuple(skip for part in parts for skip in part[2]) == skips
    assert [pixels[place, 0, 0, 0] for place in range(len(kept))] == [20 * i for i in kept]


@pytest.mark.parametrize("side", [7000, 12_000, 60_000])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(DataError, match="expected at most 40,000,000 pixels"):
        load_image(tmp_path / "bomb.png")


def test_a_bitmap_of_two_rows_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    """Found by fuzzing: a run-length delta of 255 rows of 16,777,216 zeros, in 60 bytes."""
    head = struct.pack("<IiiHHIIiiII", 40, 1 << 24, 2, 1, 8, 1, 4, 0, 0, 1, 1)
    data = head + bytes(4) + bytes([0, 2, 255, 255])
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, 58) + data)
    with pytest.raises(DataError, match="65,535 a side"):
        load_image(tmp_path / "a.bmp")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        whole = (tmp_path / name).read_bytes()
        for cut in (0, 10, len(whole) // 2):
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(DataError, match="cannot be read as an image"):
                load_image(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        load_image(tmp_path / "a.tiff")
    assert "PNG, JPEG, WEBP, GIF, BMP" in caught.value.hint
    with pytest.raises(DataError, match="no such image"):
        load_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="expected a file, got a folder"):
        load_image(tmp_path)
    with (tmp_path / "a.png").open("ab") as file:
        file.truncate(pictures.IMAGE_BYTES + 1)
    with pytest.raises(DataError, match="expected at most 67,108,864 bytes"):
        load_image(tmp_path / "a.png")


def test_corrupt_images_are_skipped_and_reported(root: Path) -> None:
    (root / "images" / "b.png").write_bytes(b"not an image")
    (root / "images" / "c.png").write_bytes(png(60_000, 60_000))
    picture(root / "images" / "d.png", "blue")
    describe(root, *(line(f"images/{name}.png") for name in "abcd"))
    folder = read_pairs(root)
    pixels, kept, skips = load_pixels(folder, folder.pairs, 4)
    assert (pixels.dtype, pixels.shape, kept) == (np.uint8, (2, 3, 4, 4), [0, 3])
    assert [pixels[:, channel].mean() for channel in range(3)] == [127.5, 0, 127.5]
    assert [skip.where for skip in skips] == ["images/b.png", "images/c.png"]
    assert "pixels" in skips[1].why
    assert load_pixels(folder, (), 4)[0].shape == (0, 3, 4, 4)


# --- writing


def test_what_is_written_reads_the_same(root: Path, tmp_path: Path) -> None:
    picture(root / "images" / "deep" / "b.png", "blue")
    wanted = (
        Pair("images/a.png", ("a cat", "eine Kätzin"), "test", "clinic"),
        Pair("images/deep/b.png", ("a dog",), "train", None),
    )
    for _ in range(2):  # a second time changes nothing
        write_pairs(tmp_path / "copy", wanted, copy_from=root)
        copied = read_pairs(tmp_path / "copy")
        assert copied == PairFolder(tmp_path / "copy", wanted)
    assert (tmp_path / "copy/images/a.png").samefile(root / "images/a.png")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["images", METADATA]
    write_pairs(root, wanted, copy_from=None)
    assert read_pairs(root).pairs == wanted


def test_a_link_is_copied_as_what_it_shows(root: Path, tmp_path: Path) -> None:
    (root / "images" / "in.png").symlink_to("a.png")
    write_pairs(tmp_path / "copy", [Pair("images/in.png", ("x",))], copy_from=root)
    assert not (tmp_path / "copy/images/in.png").is_symlink()
    assert load_image(tmp_path / "copy/images/in.png").size == (8, 8)


def test_links_that_do_not_reach_become_copies(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        if Path(name).stat().st_dev == root.stat().st_dev:
            pytest.skip("no second file system here")
        for _ in range(2):
            write_pairs(Path(name), [Pair("images/a.png", ("x",))], copy_from=root)
        assert [path.name for path in (Path(name) / "images").iterdir()] == ["a.png"]
        assert (Path(name) / "images/a.png").stat().st_nlink == 1
        assert len(read_pairs(Path(name)).pairs) == 1


def test_writing_destroys_nothing(root: Path, tmp_path: Path) -> None:
    picture(tmp_path / "copy/images/a.png", "blue")
    before = (tmp_path / "copy/images/a.png").read_bytes()
    with pytest.raises(DataError, match="is another image"):
        write_pairs(tmp_path / "copy", [Pair("images/a.png", ("x",))], copy_from=root)
    assert (tmp_path / "copy/images/a.png").read_bytes() == before
    assert not (tmp_path / "copy" / METADATA).exists()
    with pytest.raises(DataError, match="no such image"):
        write_pairs(tmp_path / "new", [Pair("images/none.png", ("x",))], copy_from=root)
    with pytest.raises(DataError, match="expected a relative path"):
        write_pairs(tmp_path / "new", [Pair("../outside.png", ("x",))], copy_from=root)


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left") as caught, writing(tmp_path):
        Path("/dev/full").write_text("x")
    assert "Free some space" in caught.value.hint
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file cannot be written"):
        write_pairs(tmp_path / "file", [], None)


def test_a_write_that_fails_leaves_the_old_metadata(root: Path) -> None:
    describe(root, line())
    before = (root / METADATA).read_bytes()
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from client.institution.pairs import Pair, write_pairs\n"
        "from protocol.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_pairs(Path(sys.argv[1]), [Pair('a.png', ('x' * 5000,))], None)\n"
        "except StorageError as error: print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(module.__file__).parents[2],
    )
    assert "Free some space" in done.stdout
    assert (root / METADATA).read_bytes() == before
    assert sorted(path.name for path in root.iterdir()) == ["images", METADATA]
