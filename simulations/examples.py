"""Example searches for the report: real sentences, what they found, and where."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from client.institution.pairs import Pair
from client.searcher.searcher import Searcher

EXAMPLES = 8
PICTURES = 5


def choose_sentences(pairs: Mapping[str, Sequence[Pair]], count: int, seed: int) -> list[str]:
    """Choose ``count`` different captions of test images; fewer if there are not so many."""
    captions = sorted(
        {
            caption
            for held in pairs.values()
            for pair in held
            if pair.split == "test"
            for caption in pair.captions
        }
    )
    order = np.random.default_rng(seed).permutation(len(captions))
    return [captions[i] for i in order[:count]]


def find_examples(
    searcher: Searcher, sentences: Sequence[str], pairs: Mapping[str, Sequence[Pair]]
) -> list[dict[str, Any]]:
    """Search the first sentences and say, for each picture found, whether it was meant."""
    return [
        {
            "query": sentence,
            "results": [
                {
                    "institution": one.institution,
                    "score": one.score,
                    "thumbnail": one.thumbnail,
                    "caption": one.caption or None,
                    "relevant": sentence in pairs[one.institution][one.position].captions,
                }
                for one in searcher.search(sentence, PICTURES)
            ],
        }
        for sentence in sentences[:EXAMPLES]
    ]
