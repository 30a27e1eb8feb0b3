"""Augmentation: it changes what it says, by as much as it says, and repeats to the bit."""

import colorsys
import tomllib
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from client.institution.augmentation.image import ERASE_COLOUR, OPERATIONS, ImageAugmentation
from client.institution.augmentation.rand import rand
from client.institution.augmentation.synonyms import Synonyms, plural
from client.institution.augmentation.text import ALPHA, TextAugmentation
from client.institution.augmentation.wordnet import PARTS
from protocol.errors import DataError, UsageError

GROUPS = [(("dog", "hound"), ("dog", "hound")), (("run",), ("jog", "move fast"))]
SYNONYMS = Synonyms(GROUPS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 12, side: int = 32, low: int = 0, high: int = 256) -> torch.Tensor:
    shape = (count, 3, side, side)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator(99))


@pytest.mark.parametrize("name", OPERATIONS)
def test_pictures_change_by_the_generator_alone(name: str) -> None:
    augment, pixels = ImageAugmentation(name), noise()
    before, original = torch.random.get_rng_state(), pixels.clone()
    changed = augment(pixels, generator(1))
    assert changed.shape == pixels.shape and changed.dtype == torch.uint8
    assert torch.equal(changed, augment(pixels, generator(1)))
    assert not torch.equal(changed, augment(pixels, generator(2)))
    assert not torch.equal(changed, pixels) and torch.equal(pixels, original)
    assert torch.equal(before, torch.random.get_rng_state())


def test_operations_come_in_the_order_given() -> None:
    pixels, shared = noise(), generator(3)
    flipped = ImageAugmentation("flip")(pixels, shared)
    expected = ImageAugmentation("shift")(flipped, shared)
    assert torch.equal(ImageAugmentation("flip,shift")(pixels, generator(3)), expected)
    assert not torch.equal(ImageAugmentation("shift,flip")(pixels, generator(3)), expected)
    assert torch.equal(ImageAugmentation("none")(pixels, generator()), pixels)


@pytest.mark.parametrize("names", ["", "flop", "flip,", "none,flip", "flip, shift", "x" * 10_000])
def test_unknown_names_are_refused(names: str) -> None:
    with pytest.raises(UsageError, match="expected none, or some of shift, crop"):
        ImageAugmentation(names)
    with pytest.raises(UsageError, match="expected none, or some of synonym, delete, swap"):
        TextAugmentation(names, SYNONYMS)


def test_the_nearest_name_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        ImageAugmentation("shift,color")
    assert caught.value.hint == "did you mean colour?"


def test_flip_mirrors_every_second_picture() -> None:
    pixels = noise(400, 8)
    flipped = ImageAugmentation("flip")(pixels, generator())
    mirrored = (flipped == pixels.flip(3)).flatten(1).all(1)
    assert ((flipped == pixels).flatten(1).all(1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_crop_keeps_a_box_of_the_stated_size() -> None:
    side, step = 60, 4
    ramp = (step * torch.arange(side)).to(torch.uint8)
    pixels = torch.zeros(300, 3, side, side, dtype=torch.uint8)
    pixels[:, 0], pixels[:, 1] = ramp[None, :], ramp[:, None]
    cropped = ImageAugmentation("crop")(pixels, generator()).float() / step
    width = cropped[:, 0, 0].amax(1) - cropped[:, 0, 0].amin(1) + 1
    height = cropped[:, 1, :, 0].amax(1) - cropped[:, 1, :, 0].amin(1) + 1
    area, ratio = width * height / side**2, width / height
    assert 0.45 < area.min() < 0.55 and 0.9 < area.max() < 1.01
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4
    assert len(cropped[:, 0, 0, 0].unique()) > 5 and len(cropped[:, 1, 0, 0].unique()) > 5


def test_erase_paints_boxes_of_the_stated_size() -> None:
    side = 64
    pixels = torch.zeros(400, 3, side, side, dtype=torch.uint8)
    erased = ImageAugmentation("erase")(pixels, generator())
    painted = (erased == torch.tensor(ERASE_COLOUR)[:, None, None]).all(1)
    assert torch.equal(painted, (erased != pixels).any(1))
    chosen = painted.flatten(1).any(1)
    assert 150 < chosen.sum() < 250
    rows, columns = painted[chosen].any(2).sum(1), painted[chosen].any(1).sum(1)
    areas, ratios = painted[chosen].sum((1, 2)), columns / rows
    assert torch.equal(areas, rows * columns), "not a box"
    assert 0.015 < areas.min() / side**2 < 0.05 and 0.28 < areas.max() / side**2 < 0.35
    assert 0.25 < ratios.min() < 0.5 and 2 < ratios.max() < 3.8


def test_colour_changes_brightness_and_contrast_as_torchvision_does() -> None:
    grey = noise(200, 16, 90, 150)[:, :1].expand(-1, 3, -1, -1).contiguous()
    changed = ImageAugmentation("colour")(grey, generator())
    assert (changed.int() - changed[:, :1].int()).abs().max() <= 1, "no longer grey"
    values, was = changed.float().flatten(1), grey.float().flatten(1)
    brightness = values.mean(1) / was.mean(1)
    contrast = values.std(1) / was.std(1) / brightness
    for factor in (brightness, contrast):
        assert 0.59 < factor.min() < 0.65 and 1.35 < factor.max() < 1.41
    for index in range(200):
        expected = v2.functional.adjust_brightness(grey[index], float(brightness[index]))
        expected = v2.functional.adjust_contrast(expected, float(contrast[index]))
        assert (changed[index].int() - expected.int()).abs().max() <= 2


def test_colour_turns_hue_and_saturation_within_bounds() -> None:
    one = torch.tensor([150, 90, 70], dtype=torch.uint8)
    pixels = one[:, None, None].expand(300, 3, 4, 4).contiguous()
    changed = ImageAugmentation("colour")(pixels, generator())[:, :, 0, 0] / 255
    hue, chroma = colorsys.rgb_to_hsv(*(one / 255).tolist())[0], []
    turns = []
    for red, green, blue in changed.tolist():
        turns.append((colorsys.rgb_to_hsv(red, green, blue)[0] - hue + 0.5) % 1 - 0.5)
        mean = (red + green + blue) / 3
        chroma.append((max(red, green, blue) - min(red, green, blue)) / mean)
    assert -0.12 < min(turns) < -0.08 and 0.08 < max(turns) < 0.12
    was = 80 / (310 / 3)
    # Contrast draws a colour to the mean grey as well: 0.6 squared to 1.4 squared.
    assert 0.34 < min(chroma) / was < 0.5 and 1.5 < max(chroma) / was < 2.0


def test_rand_has_the_operations_of_torchvision() -> None:
    picture = noise(1, 24, 20, 220)
    oracle = v2.RandAugment(num_ops=1, magnitude=9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.stack([oracle(picture[0]) for _ in range(600)]).unique(dim=0)
    found = rand(picture.repeat(600, 1, 1, 1), generator(), layers=1).unique(dim=0)
    assert len(found) == len(expected) == 23  # nine with either sign, five without
    far = (found[:, None].int() - expected.int()).abs().flatten(2).amax(2)
    near = far <= 1  # 0.27 in single precision is not quite 0.27
    assert near.any(0).all() and near.any(1).all()


def test_rand_applies_two_operations() -> None:
    pixels, shared = noise(), generator(5)
    once = rand(pixels, shared, layers=1)
    assert torch.equal(rand(pixels, generator(5)), rand(once, shared, layers=1))


WORDS = st.lists(st.sampled_from(["a", "Dog", "dog,", "run", "HOUND!", "tree", "été", "¡!"]))
NAMES = st.lists(st.sampled_from(["synonym", "delete", "swap"]), min_size=1).map(",".join)


@given(st.one_of(WORDS.map(" ".join), st.text()), NAMES, st.integers(0, 2**32))
def test_words_come_from_the_caption_or_the_synonyms(text: str, names: str, seed: int) -> None:
    augment = TextAugmentation(names, SYNONYMS)
    changed = augment(text, generator(seed))
    assert changed == augment(text, generator(seed))
    assert bool(changed.split()) == bool(text.split())
    allowed = {word.casefold() for word in text.split()}
    for word, others in (("dog", "hound"), ("hound", "dog"), ("run", "jog move fast")):
        allowed |= {
            one.replace(word, other)
            for one in allowed.copy()
            for other in others.split() + [f"{other}!" for other in others.split()]
        }
    said = {word.strip(",!").casefold() for word in changed.split()}
    assert said <= {word.strip(",!") for word in allowed}


@given(WORDS.filter(bool), st.integers(0, 2**32))
def test_each_operation_changes_no_more_than_it_says(words: list[str], seed: int) -> None:
    text, most = " ".join(words), max(1, int(ALPHA * len(words)))
    swapped = TextAugmentation("swap", SYNONYMS)(text, generator(seed)).split()
    assert Counter(swapped) == Counter(words)
    assert sum(a != b for a, b in zip(words, swapped, strict=True)) <= 2 * most
    kept = iter(words)
    left = TextAugmentation("delete", SYNONYMS)(text, generator(seed)).split()
    assert all(word in kept for word in left), "not in the caption's order"
    one = Synonyms([(("dog", "hound", "run"), ("x",))])
    replaced = TextAugmentation("synonym", one)(text, generator(seed)).split()
    differing = sum(a != b for a, b in zip(words, replaced, strict=True))
    assert differing == min(most, sum(word not in ("a", "tree", "été", "¡!") for word in words))


def test_delete_loses_a_tenth_of_the_words() -> None:
    left = TextAugmentation("delete", SYNONYMS)("word " * 10_000, generator()).split()
    assert 8_800 < len(left) < 9_200


def test_text_comes_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    augment = TextAugmentation("synonym,delete,swap", Synonyms.shipped())
    said = "A young woman sits on a sofa beside a big dog and a small cat in the garden"
    assert len({augment(said, generator(seed)) for seed in range(20)}) > 10
    assert torch.equal(before, torch.random.get_rng_state())
    assert TextAugmentation("none", SYNONYMS)(" as  it was ", generator()) == " as  it was "


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("«Dog»!", "«Hound»!"),
        ("it's on (dogs).", "it's on (hounds)."),
        ("हिन्दी।", "Hindi।"),
        ("the red tree", None),
    ],
)
def test_synonyms_keep_case_and_punctuation(text: str, changed: str | None) -> None:
    synonyms = Synonyms([*GROUPS, (("हिन्दी",), ("Hindi",))])
    assert TextAugmentation("synonym", synonyms)(text, generator()) == (changed or text)


def test_stop_words_have_no_synonyms() -> None:
    synonyms = Synonyms([(("left", "on", "is"), ("x",))])
    assert TextAugmentation("synonym", synonyms)("it is on the left", generator()) == (
        "it is on the left"
    )


def test_the_shipped_list_is_read() -> None:
    assert (resources.files("client.institution.augmentation") / "synonyms.md").is_file()
    shipped = Synonyms.shipped()
    assert shipped.of("Sofa") == ("couch",) and shipped.of("sofas") == ("couches",)
    assert shipped.of("babies") == ("infants",) and shipped.of("waiter") == ("server",)
    assert shipped.of("building") == shipped.of("glass") == shipped.of("has") == ()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_the_shipped_list_reaches_a_flower_bundle() -> None:
    """A bundle takes a few kinds of files only, whatever fab-include says."""
    from flwr.cli.build import get_filtered_fab_paths

    root = Path(__file__).parents[2]
    files = [file for room in ("server", "client", "protocol") for file in (root / room).rglob("*")]
    paths: dict[str, bytes | Path] = {file.relative_to(root).as_posix(): file for file in files}
    config = tomllib.loads((root / "pyproject.toml").read_text())
    chosen = get_filtered_fab_paths(paths, config)
    assert "client/institution/augmentation/synonyms.md" in chosen
    assert "client/institution/augmentation/synonyms.py" in chosen


REGULAR = {"dog": "dogs", "city": "cities", "boy": "boys", "bus": "buses", "torch": "torches"}
REGULAR |= {"box": "boxes", "beach": "beaches", "dish": "dishes", "glass": "glasses"}
OTHERS = ["woman", "people", "knife", "hero", "scissors", "stomach", "quiz", "sea-bird", "x"]


@pytest.mark.parametrize(
    ("noun", "plurals"), [*REGULAR.items(), *((noun, None) for noun in OTHERS)]
)
def test_plurals_are_right_or_none(noun: str, plurals: str | None) -> None:
    assert plural(noun) == plurals


def test_a_list_of_the_user_is_in_solrs_format(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text(
        "\ufeff# a comment\r\n\nGP, general practitioner,medic\nmedic , doc\n"
        "heart attack, cardiac infarction => MI, infarct\nfoo\\, bar, C#\n",
        encoding="utf-8",
    )
    read = Synonyms.read(path)
    assert read.of("gp") == ("general practitioner", "medic")
    assert read.of("MEDIC") == ("GP", "general practitioner", "doc")
    assert read.of("heart attack") == ("MI", "infarct") and read.of("infarct") == ()
    assert read.of("c#") == ("foo, bar",) and read.of("comment") == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a, b\na,,b", "line 2: expected words of 1 to 100 letters, got 'a,,b'"),
        (b"a => b => c", "line 1: expected words"),
        (b"a =>", "line 1: expected words"),
        (b"a, " + b"b" * 101, "line 1: expected words"),
        (b"a, b\x1b[2J", "line 1: expected words"),
        (b"a\n\nb, \xff", "line 3: expected UTF-8, got 0xff"),
        (b"a," * 40_000, "line 1: expected a line of at most 65,536 bytes"),
    ],
)
def test_broken_lists_are_refused_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Synonyms.read(path)
    assert str(path) in caught.value.message and said in caught.value.message
    assert caught.value.hint


def test_missing_or_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: cannot be read: No such file"):
        Synonyms.read(tmp_path / "missing")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="expected at most 67,108,864 bytes"):
        Synonyms.read(tmp_path / "huge")
    with pytest.raises(DataError, match=r"cntlist\.rev: cannot be read"):
        Synonyms.read(tmp_path)


LICENCE = "  1 This software and database is being provided to you, the LICENSEE  \n"
DATABASE = {
    "data.noun": LICENCE
    + "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a pet  \n"
    "10114209 18 n 03 dog 1 frump 0 0cad 0 000 | a dull girl  \n"
    "00189565 04 n 02 run 0 tally 3 000 | a score  \n",
    "index.noun": LICENCE
    + "dog n 2 2 @ ~ 2 1 02084071 10114209  \ndomestic_dog n 1 0 1 0 02084071  \n"
    "frump n 1 0 1 0 10114209  \nrun n 1 0 1 1 00189565  \ntally n 1 0 1 0 00189565  \n",
    "data.verb": "01926311 38 v 02 run 0 sprint 0 000 01 + 02 00 | move fast  \n",
    "index.verb": "run v 1 0 1 1 01926311  \nsprint v 1 0 1 0 01926311  \n",
    "data.adj": "00014490 00 s 02 galore(ip) 0 abounding(a) 0 000 | in great numbers  \n"
    "00014858 00 a 01 lonely 0 000 | alone  \n",
    "index.adj": "galore a 1 0 1 0 00014490  \nlonely a 1 0 1 0 00014858  \n",
    "data.adv": "",
    "index.adv": "",
    "cntlist.rev": "dog%1:05:00:: 1 42\ndog%1:18:01:: 2 1\nrun%1:04:00:: 1 29\n"
    "run%1:04:01:: 2 999\nrun%2:38:00:: 1 106\ngalore%5:00:00:abundant:00 1 1\n",
}


def wordnet(folder: Path, **changes: str) -> Path:
    for name, content in (DATABASE | changes).items():
        (folder / name).write_text(content)
    return folder


def test_wordnet_gives_the_most_frequent_sense(tmp_path: Path) -> None:
    read = Synonyms.read(wordnet(tmp_path))
    assert read.of("dog") == ("domestic dog",), "names, and words with digits, are left out"
    assert read.of("run") == ("sprint",), "the verb was met more often than the noun"
    assert read.of("frump") == ("dog",) and read.of("galore") == ("abounding",)
    assert read.of("lonely") == read.of("domestic dog") == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.noun", LICENCE + "02084071 05 n 04 dog 0 hound 0 000", "line 2: expected a synset"),
        ("data.noun", LICENCE + "\n", "line 2: expected a synset"),
        ("data.verb", "01926311 38 v zz run 0", "line 1: expected a synset"),
        ("index.noun", "dog n 2 2 @ ~ 2 1 99999999", "line 1: expected a word with offsets"),
        ("index.noun", "dog n 2 999 @ ~ 2 1 02084071", "line 1: expected a word with offsets"),
        ("index.adj", "galore", "line 1: expected a word with offsets"),
        ("cntlist.rev", "dog%9:05:00:: 1 42", "line 1: expected sense key, number and count"),
        ("cntlist.rev", "dog%1:05:00:: 1 " + "9" * 5000, "line 1: expected sense key"),
    ],
)
def test_broken_databases_are_refused_by_line(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        Synonyms.read(wordnet(tmp_path, **{name: content}))
    assert str(tmp_path / name) in caught.value.message and said in caught.value.message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(DATABASE)), st.data())
def test_foreign_bytes_are_read_or_refused(
    tmp_path: Path, content: bytes, name: str, data: st.DataObject
) -> None:
    assert {one.partition(".")[2] for one in DATABASE} >= set(PARTS.values())
    wordnet(tmp_path)
    whole = (tmp_path / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    (tmp_path / name).write_bytes(whole[:at] + content + whole[at + len(content) :])
    (tmp_path / "list").write_bytes(content)
    for path in (tmp_path, tmp_path / "list"):
        try:
            read = Synonyms.read(path)
        except DataError as error:
            assert str(tmp_path) in error.message
        else:
            assert all(one.isprintable() for word in ("dog", "run") for one in read.of(word))
