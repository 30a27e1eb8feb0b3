import re
from pathlib import Path

import numpy as np
import pytest

from client.institution.images import load_image
from client.institution.pairs import Pair, PairFolder, read_pairs
from protocol.errors import StorageError, UsageError
from simulations.captions import PLACES, WORDS
from simulations.scenes import BACKGROUNDS, COLOURS, SHAPES, write_scenes

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
COLOUR_OF = {word: colour for colour in COLOURS for word in WORDS[colour]}
BACKGROUND_OF = {word: name for name in BACKGROUNDS for word in WORDS[name]}
PHRASE = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:(?:{'|'.join(WORDS['small'] + WORDS['large'])}) )?"
    rf"({'|'.join(COLOUR_OF)}) (?:{'|'.join(word for shape in SHAPES for word in WORDS[shape])})"
    r"(?:e?s)?"
)
CELL_OF = {place: (y, x) for y, row in enumerate(PLACES) for x, place in enumerate(row)}
PLACED = re.compile(rf"{PHRASE.pattern} ({'|'.join(CELL_OF)})\b(?! row| column)")
RELATED = re.compile(
    rf"{PHRASE.pattern} (to the left of|to the right of|above|below) {PHRASE.pattern}$"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 400, 4, seed=3)
    return read_pairs(root)


def spots(folder: PairFolder, pair: Pair, word: str) -> np.ndarray:
    """The pixels [n, 2], as y and x, of the colour that ``word`` names."""
    pixels = np.asarray(load_image(folder.path(pair))).astype(int)
    return np.argwhere(np.linalg.norm(pixels - COLOURS[COLOUR_OF[word]], axis=2) < 34)


def blobs(spotted: np.ndarray) -> int:
    """How many connected patches of more than a few pixels."""
    left = {(int(y), int(x)) for y, x in spotted}
    found = 0
    while left:
        size, edge = 0, [left.pop()]
        while edge:
            y, x = edge.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found += size > 4
    return found


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def content(name: str, seed: int) -> dict[str, bytes]:
        write_scenes(tmp_path / name, 30, 3, seed)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    first = content("a", 1)
    assert len(first) == 31
    assert content("b", 1) == first
    other = content("c", 2)
    assert all(other[name] != first[name] for name in first)


def test_sites_and_splits_have_their_shares(folder: PairFolder, tmp_path: Path) -> None:
    assert len(folder.sites) == 4
    for site in folder.sites:
        mine = [pair for pair in folder.pairs if pair.site == site]
        counts = [sum(pair.split == split for pair in mine) for split in ("train", "val", "test")]
        assert counts == [75, 10, 15]
    done: list[int] = []
    write_scenes(tmp_path, 40, 18, 0, done.append)
    uneven = read_pairs(tmp_path)
    sizes = [sum(pair.site == site for pair in uneven.pairs) for site in uneven.sites]
    assert (len(sizes), sum(sizes), set(sizes)) == (18, 40, {2, 3})
    assert done == list(range(1, 41))


def test_captions_are_two_or_three_and_varied(folder: PairFolder) -> None:
    assert {len(pair.captions) for pair in folder.pairs} == {2, 3}
    captions = [caption for pair in folder.pairs for caption in pair.captions]
    assert len(set(captions)) > 0.9 * len(captions)
    assert all(caption == " ".join(caption.split()) for caption in captions)


def test_captions_are_true_of_the_pixels(folder: PairFolder) -> None:
    full = checked = 0
    for pair in folder.pairs:
        pixels = np.asarray(load_image(folder.path(pair))).astype(int)
        assert pixels.shape == (64, 64, 3)

        for caption in pair.captions:
            claimed: dict[str, int] = {}
            for number, word in PHRASE.findall(caption):
                colour = COLOUR_OF[word]
                claimed[colour] = claimed.get(colour, 0) + NUMBERS[number]
            exact = caption.endswith("background.")  # a full sentence leaves nothing out
            full += exact
            for colour, number in claimed.items():
                checked += 1
                found = blobs(spots(folder, pair, colour))
                assert found == number if exact else found >= number, (pair, colour, found)
            if exact:
                ground = re.search(rf"({'|'.join(BACKGROUND_OF)}) background", caption)
                assert ground
                seen = np.median(pixels.reshape(-1, 3), axis=0)
                wanted = BACKGROUNDS[BACKGROUND_OF[ground[1]]]
                assert np.abs(seen - wanted).max() <= 9, (pair, seen)
    assert full > 50
    assert checked > 500


def test_places_and_relations_are_true_of_the_pixels(folder: PairFolder) -> None:
    placed = related = 0
    for pair in folder.pairs:
        for caption in pair.captions:
            words = [word for _, word in PHRASE.findall(caption)]
            if len({COLOUR_OF[word] for word in words}) < len(words):
                continue  # two things of one colour: the pixels do not tell them apart
            if caption.endswith("background."):
                for _, word, place in PLACED.findall(caption):
                    middle = spots(folder, pair, word).mean(axis=0)
                    assert tuple(middle * 3 // 64) == CELL_OF[place], (pair, word)
                    placed += 1
            if found := RELATED.search(caption):
                first, second = (spots(folder, pair, found[index]) for index in (2, 5))
                if blobs(first) != NUMBERS[found[1]] or blobs(second) != NUMBERS[found[4]]:
                    continue  # something else has the colour too
                nearer, farther = (
                    (first, second) if found[3] in ("above", "to the left of") else (second, first)
                )
                axis = 0 if found[3] in ("above", "below") else 1
                assert nearer[:, axis].max() < farther[:, axis].min(), (pair, found[0])
                related += 1
    assert min(placed, related) > 30


def test_sites_differ_but_know_everything(tmp_path: Path) -> None:
    write_scenes(tmp_path, 900, 3, seed=0)
    folder = read_pairs(tmp_path)
    shares = []
    for site in folder.sites:
        said = " ".join(" ".join(p.captions) for p in folder.pairs if p.site == site)
        words = re.findall(rf"\b({'|'.join(COLOUR_OF)})\b", said)
        counts = np.array([sum(COLOUR_OF[word] == colour for word in words) for colour in COLOURS])
        assert counts.min() > 0
        shares.append(counts / counts.sum())
    apart = [np.abs(a - b).sum() / 2 for a in shares for b in shares if a is not b]
    assert min(apart) > 0.15


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    for count, sites in ((0, 1), (5, 0), (2, 3), (-1, -1)):
        with pytest.raises(UsageError, match=f"got {sites} sites, {count} scenes"):
            write_scenes(tmp_path, count, sites, 0)
    with pytest.raises(UsageError, match="seed of 0 or more"):
        write_scenes(tmp_path, 1, 1, -1)
    write_scenes(tmp_path / "once", 1, 1, 0)
    with pytest.raises(UsageError, match=r"already holds metadata.jsonl"):
        write_scenes(tmp_path / "once", 1, 1, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file cannot be written"):
        write_scenes(tmp_path / "file", 1, 1, 0)
