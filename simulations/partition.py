"""Splits one folder of pairs among institutions, to play a federation on one machine.

Four ways. ``site``: as in life, each named site is an institution. ``iid``: shuffled and dealt
like cards. ``topics``: each institution has one topic of its own, as unlike as can be.
``dirichlet:ALPHA``: by topic, so that institutions differ; the pairs fall into topics by their
words, and each topic is shared out in uneven portions, the more uneven the smaller ALPHA (0.1 is
extreme, 100 nearly even). Every pair goes to exactly one institution and keeps its split. The same
seed gives the same partition.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt

from client.institution.pairs import SPLITS, Pair, PairFolder
from protocol.errors import DataError, UsageError

TOPICS = 20
DIMENSIONS = 512
ALPHAS = (0.001, 1000.0)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How to split: ``alpha`` belongs to ``dirichlet`` alone."""

    kind: Literal["site", "iid", "dirichlet", "topics"]
    alpha: float | None = None


def parse_partition(text: str) -> Scheme:
    """``site``, ``iid``, ``topics`` or ``dirichlet:ALPHA``; UsageError for anything else."""
    if text in ("site", "iid", "topics"):
        return Scheme(text)  # type: ignore[arg-type]
    kind, _, number = text.partition(":")
    try:
        alpha = float(number)
    except ValueError:
        alpha = 0.0
    low, high = ALPHAS
    if kind != "dirichlet" or not low <= alpha <= high:
        raise UsageError(
            f"partition: expected site, iid, topics or dirichlet:ALPHA, with ALPHA from {low:g} to "
            f"{high:g}, got {text!r}",
            "for institutions that differ, try dirichlet:0.5",
        )
    return Scheme("dirichlet", alpha)


def partition(
    folder: PairFolder, scheme: Scheme, institutions: int | None, seed: int
) -> dict[str, list[Pair]]:
    """The pairs of each institution, institutions in the order of their names (or numbers).

    ``institutions`` may be None for ``site`` only. Raises UsageError when the number cannot
    work, DataError when a pair has no site or an institution would get no training pair.
    """
    if scheme.kind == "site":
        shares = _by_site(folder, institutions)
    else:
        if institutions is None or institutions < 1:
            raise UsageError(
                f"institutions: expected a number of at least 1 for {scheme.kind}, "
                f"got {institutions}",
                "say how many institutions share the data",
            )
        rng = np.random.default_rng(seed)
        if scheme.kind == "topics":
            owners = _topics(folder.pairs, institutions, int(rng.integers(1 << 31)))
        elif scheme.alpha is None:
            owners = _deal(folder.pairs, institutions, rng)
        else:
            owners = _portion(folder.pairs, institutions, scheme.alpha, rng)
        shares = {f"institution-{index + 1}": [] for index in range(institutions)}
        for pair, owner in zip(folder.pairs, owners, strict=True):
            shares[f"institution-{owner + 1}"].append(pair)
    for name, pairs in shares.items():
        if not any(pair.split == "train" for pair in pairs):
            raise DataError(
                f"{name} gets no training pair ({len(pairs)} pairs in all)",
                "add training pairs to this site, or partition by iid"
                if scheme.kind == "site"
                else "ask for fewer institutions, a larger ALPHA or another seed",
            )
    return shares


def take(folder: PairFolder, limit: int | None, seed: int) -> PairFolder:
    """At most ``limit`` pairs, chosen by ``seed``, in proportion over the splits.

    The order stays. None keeps all. Raises UsageError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit: expected at least 1, got {limit}", "leave it out to keep all")
    if limit is None or limit >= len(folder.pairs):
        return folder
    rng = np.random.default_rng(seed)
    members = _by_split(folder.pairs)
    exact = np.array([len(indices) for indices in members]) * limit / len(folder.pairs)
    quota = exact.astype(np.int64)
    rest = np.argsort(quota - exact, kind="stable")  # the largest remainder first
    quota[rest[: limit - quota.sum()]] += 1
    kept = np.concatenate(
        [rng.permutation(indices)[:n] for indices, n in zip(members, quota, strict=True)]
    )
    return replace(folder, pairs=tuple(folder.pairs[index] for index in np.sort(kept)))


def _by_site(folder: PairFolder, institutions: int | None) -> dict[str, list[Pair]]:
    shares: dict[str, list[Pair]] = {site: [] for site in folder.sites}
    for pair in folder.pairs:
        if pair.site is None:
            raise DataError(
                f"{folder.root}: {pair.file_name} names no site, so it belongs to no institution",
                "partition by iid or dirichlet:ALPHA, or give every line a site",
            )
        shares[pair.site].append(pair)
    if institutions is not None and institutions != len(shares):
        raise UsageError(
            f"institutions: got {institutions}, but {folder.root} has {len(shares)} sites",
            "leave the number out, or partition by iid or dirichlet:ALPHA",
        )
    return shares


def _by_split(pairs: Sequence[Pair]) -> list[Ints]:
    """The indices of the pairs of each split."""
    splits = np.array([pair.split for pair in pairs], dtype=object)
    return [np.flatnonzero(splits == split) for split in SPLITS]


def _deal(pairs: Sequence[Pair], institutions: int, rng: np.random.Generator) -> Ints:
    """The owner of each pair; the shares of each split differ by one at most."""
    order = np.concatenate([rng.permutation(indices) for indices in _by_split(pairs)])
    owners = np.empty(len(pairs), np.int64)
    owners[order] = np.arange(len(pairs)) % institutions
    return owners


def _portion(
    pairs: Sequence[Pair], institutions: int, alpha: float, rng: np.random.Generator
) -> Ints:
    """The owner of each pair; an institution has the same portion of a topic in every split."""
    topics = _topics(pairs, TOPICS, int(rng.integers(1 << 31)))
    owners = np.empty(len(pairs), np.int64)
    for topic in range(TOPICS):
        ends = np.cumsum(rng.dirichlet(np.full(institutions, alpha)))
        for indices in _by_split(pairs):
            mine = rng.permutation(indices[topics[indices] == topic])
            middles = (np.arange(len(mine)) + 0.5) / max(1, len(mine))
            owners[mine] = np.minimum(np.searchsorted(ends, middles), institutions - 1)
    return owners


def _topics(pairs: Sequence[Pair], count: int, seed: int) -> Ints:
    """The topic of each pair: k-means of its words, TF-IDF weighted, hashed to DIMENSIONS."""
    slots: dict[str, int] = {}
    counts = np.zeros((len(pairs), DIMENSIONS), np.float32)
    for row, pair in enumerate(pairs):
        for word in re.findall(r"\w+", " ".join(pair.captions).lower()):
            if word not in slots:
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                slots[word] = int.from_bytes(digest, "little") % DIMENSIONS
            counts[row, slots[word]] += 1
    seen = np.count_nonzero(counts, axis=0)
    vectors = np.log1p(counts) * np.log((1 + len(pairs)) / (1 + seen)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in one order, so the same topics each time
    try:
        kmeans = faiss.Kmeans(
            DIMENSIONS,
            min(count, len(pairs)),
            niter=15,
            seed=seed,
            spherical=True,
            min_points_per_centroid=1,
        )
        kmeans.train(vectors)
        _, nearest = kmeans.index.search(vectors, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(nearest[:, 0], np.int64)
