from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.institution.pairs import Pair, PairFolder, read_pairs
from protocol.errors import DataError, UsageError
from simulations.partition import Scheme, parse_partition, partition, take

SUBJECTS = ("boat sea sail", "dog grass ball", "car road wheel", "bread oven flour")


def folder_of(count: int, sites: tuple[str | None, ...] = ("clinic", "bakery")) -> PairFolder:
    splits = ("train", "train", "train", "val", "test")
    pairs = (
        Pair(f"{i}.png", (SUBJECTS[i % 4],), splits[i % 5], sites[i % len(sites)])
        for i in range(count)
    )
    return PairFolder(Path("nowhere"), tuple(pairs))


def test_schemes_are_parsed() -> None:
    assert parse_partition("site") == Scheme("site")
    assert parse_partition("iid") == Scheme("iid")
    assert parse_partition("topics") == Scheme("topics")
    assert parse_partition("dirichlet:0.5") == Scheme("dirichlet", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "sites", "iid:3", "site:", "dirichlet", "dirichlet:", "dirichlet:x"),
        *("dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:inf", "dirichlet:1e9"),
    ],
)
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected site, iid, topics or dirichlet:ALPHA"
    ) as caught:
        parse_partition(text)
    assert repr(text) in caught.value.message


def test_site_gives_each_site_its_own() -> None:
    folder = folder_of(40)
    shares = partition(folder, Scheme("site"), None, 0)
    assert list(shares) == ["bakery", "clinic"]
    assert all({pair.site for pair in pairs} == {name} for name, pairs in shares.items())
    assert partition(folder, Scheme("site"), 2, 0) == shares
    with pytest.raises(UsageError, match="got 3, but nowhere has 2 sites"):
        partition(folder, Scheme("site"), 3, 0)
    with pytest.raises(DataError, match=r"1.png names no site") as caught:
        partition(folder_of(40, ("clinic", None)), Scheme("site"), None, 0)
    assert "iid or dirichlet" in caught.value.hint


def test_iid_deals_evenly() -> None:
    folder = folder_of(103)
    shares = partition(folder, Scheme("iid"), 4, 0)
    assert list(shares) == [f"institution-{number}" for number in (1, 2, 3, 4)]
    assert sorted(len(pairs) for pairs in shares.values()) == [25, 26, 26, 26]
    for split in ("train", "val", "test"):
        counts = [sum(pair.split == split for pair in pairs) for pairs in shares.values()]
        assert max(counts) - min(counts) <= 1


def test_a_smaller_alpha_parts_the_topics_more() -> None:
    folder = folder_of(2000)

    def concentration(alpha: float) -> float:
        """The mean over subjects of the largest share that one institution holds."""
        shares = partition(folder, Scheme("dirichlet", alpha), 4, seed=1)
        held = [Counter(pair.captions[0] for pair in pairs) for pairs in shares.values()]
        return float(np.mean([max(h[subject] for h in held) / 500 for subject in SUBJECTS]))

    assert concentration(0.3) > concentration(100.0) + 0.15
    assert concentration(100.0) < 0.4


def test_a_topic_has_the_same_portions_in_every_split() -> None:
    shares = partition(folder_of(2000), Scheme("dirichlet", 0.5), 3, seed=1)
    for pairs in shares.values():
        for subject in SUBJECTS:
            counts = Counter(pair.split for pair in pairs if pair.captions[0] == subject)
            assert abs(counts["train"] / 300 - counts["test"] / 100) < 0.03


def test_the_numbers_must_work() -> None:
    for count in (None, 0, -2):
        with pytest.raises(
            UsageError, match=f"expected a number of at least 1 for iid, got {count}"
        ):
            partition(folder_of(20), Scheme("iid"), count, 0)
    with pytest.raises(DataError, match=r"institution-\d+ gets no training pair") as caught:
        partition(folder_of(10), Scheme("iid"), 9, 0)
    assert "fewer institutions" in caught.value.hint
    unfit = (Pair("a.png", ("x",), "test", "clinic"), Pair("b.png", ("x",), "train", "bakery"))
    with pytest.raises(DataError, match="clinic gets no training pair"):
        partition(PairFolder(Path("nowhere"), unfit), Scheme("site"), None, 0)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(
        st.builds(
            Pair,
            st.uuids().map(lambda name: f"{name}.png"),
            st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=2).map(tuple),
            st.sampled_from(["train", "train", "val", "test", None]),
            st.sampled_from(["clinic", "bakery"]),
        ),
        min_size=1,
        max_size=30,
    ),
    scheme=st.sampled_from(["site", "iid", "dirichlet:0.001", "dirichlet:1", "dirichlet:1000"]),
    institutions=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_pair_is_placed_exactly_once(
    pairs: list[Pair], scheme: str, institutions: int, seed: int
) -> None:
    folder = PairFolder(Path("nowhere"), tuple(pairs))
    count = None if scheme == "site" else institutions
    try:
        shares = partition(folder, parse_partition(scheme), count, seed)
    except DataError as error:
        assert "no training pair" in error.message
        return
    placed = Counter(pair for mine in shares.values() for pair in mine)
    assert placed == Counter(pairs)
    assert partition(folder, parse_partition(scheme), count, seed) == shares


def test_take_keeps_the_proportions() -> None:
    folder = folder_of(500)
    few = take(folder, 53, seed=4)
    assert [len(few.split(split)) for split in ("train", "val", "test")] == [32, 11, 10]
    numbers = [int(pair.file_name.removesuffix(".png")) for pair in few.pairs]
    assert numbers == sorted(set(numbers))
    assert take(folder, 53, seed=4) == few
    assert take(folder, 53, seed=5) != few
    assert take(folder, None, 0) is take(folder, 500, 0) is folder
    assert len(take(folder, 1, 0).pairs) == 1
    with pytest.raises(UsageError, match="expected at least 1, got 0"):
        take(folder, 0, 0)


@pytest.mark.realdata
def test_real_sites(real_data: Path) -> None:
    emoji = read_pairs(real_data / "emoji")
    shares = partition(emoji, Scheme("site"), 3, 0)
    assert {name: len(pairs) for name, pairs in shares.items()} == {
        "noto": 1618,
        "openmoji": 2362,
        "twemoji": 1865,
    }
    by_topic = partition(emoji, Scheme("dirichlet", 0.1), 3, 0)
    assert sum(len(pairs) for pairs in by_topic.values()) == 5845
    assert by_topic == partition(emoji, Scheme("dirichlet", 0.1), 3, 0)
