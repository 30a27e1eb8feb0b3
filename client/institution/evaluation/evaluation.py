"""Both directions of retrieval over one gallery, with intervals."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from client.institution.evaluation.intervals import Doubles, Intervals, bootstrap, tally
from client.institution.evaluation.ranking import Floats, rank
from client.institution.evaluation.relevance import Ints, Judgements, relevance, units
from client.institution.evaluation.retrieval import Retrieval, retrieve


class Embeds(Protocol):
    """What is asked of a model: ``protocol.model.embedder.Embedder`` is one."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """Embeds n texts as float32 [n, d]."""
        ...

    def pixels(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Embeds pictures, uint8 [n, 3, s, s], as float32 [n, d]."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Captions that search images, images that search captions; 95 % intervals of recall.

    ``dataclasses.asdict`` of it is plain JSON.
    """

    text_to_image: Retrieval
    image_to_text: Retrieval
    intervals: Intervals


def measure(
    embedder: Embeds, pixels: npt.NDArray[np.uint8], captions: Sequence[Sequence[str]]
) -> Retrieval:
    """Searches a gallery of pictures, uint8 [n, 3, s, s], with every one of its own captions."""
    queries, relevant = relevance(captions)
    return retrieve(embedder.texts(queries), embedder.pixels(pixels), relevant)


def evaluate(
    embedder: Embeds,
    pixels: npt.NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluates a model on pictures, uint8 [n, 3, s, s], and the captions of each.

    ``groups`` may name the group of each image (a patient, a product): all images of a group are
    relevant to its captions, and are resampled as one. ``seed`` is of the intervals' draws.
    """
    queries, relevant = relevance(captions, groups)
    images, texts = embedder.pixels(pixels), embedder.texts(queries)
    return evaluate_vectors(images, texts, relevant, groups, seed)


def evaluate_vectors(
    images: Floats,
    texts: Floats,
    relevant: Sequence[Collection[int]],
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluates embeddings, float32 [n, d] and [q, d]; ``relevant[i]`` are the images of text i.

    An image may have several texts and a text several images. An image without a text stays in
    the gallery, but asks nothing. ``groups`` and ``seed`` are those of ``evaluate``; ``relevant``
    has to know the groups already.
    Raises ValueError for shapes that do not fit, a text without an image, or values that are not
    finite.
    """
    return _evaluate(images, texts, relevant, groups, seed, len(images))


def by_folds(
    images: Floats,
    texts: Floats,
    relevant: Sequence[Collection[int]],
    fold: int = 1000,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluates galleries of ``fold`` images in turn; the figures are means over them.

    The field's protocol for COCO, "1K": five folds of the 5,000 images of Karpathy's test split,
    in their order (Faghri et al., VSE++, arXiv:1707.05612, §4). A text is asked in every fold
    that holds an image of it. What does not fill a last fold is left out. Arguments and errors
    are those of ``evaluate_vectors``, and ValueError for less than one fold.
    """
    return _evaluate(images, texts, relevant, groups, seed, fold)


def _evaluate(
    images: Floats,
    texts: Floats,
    relevant: Sequence[Collection[int]],
    groups: Sequence[str | None] | None,
    seed: int,
    fold: int,
) -> Evaluation:
    judgements, unit = Judgements.of(relevant, len(images)), units(groups, len(images))
    if len(texts) != judgements.queries or not 1 <= fold <= len(images):
        raise ValueError(
            f"expected {judgements.queries} texts and {fold} images or more, "
            f"got {len(texts)} and {len(images)}"
        )
    folds = []
    for start in range(0, len(images) - fold + 1, fold):
        chosen = np.arange(start, start + fold)
        asking, part = judgements.among(chosen)
        if not len(asking):
            raise ValueError(f"no text for any of the images {start} to {start + fold - 1}")
        folds.append(_both(images[chosen], texts[asking], part, unit[chosen], len(images)))
    to_images, to_texts, texts_tally, images_tally = zip(*folds, strict=True)
    intervals = bootstrap(sum(texts_tally), sum(images_tally), seed)
    return Evaluation(Retrieval.mean(to_images), Retrieval.mean(to_texts), intervals)


def _both(
    images: Floats, texts: Floats, judgements: Judgements, unit: Ints, units: int
) -> tuple[Retrieval, Retrieval, Doubles, Doubles]:
    """Text-to-image and image-to-text in one gallery, and the tally of each by unit."""
    to_images = rank(texts, images, judgements)
    asking, back = judgements.transposed()
    to_texts = rank(images[asking], texts, back)
    return (
        Retrieval.of(to_images, len(images)),
        Retrieval.of(to_texts, len(texts)),
        tally(to_images.best, judgements.query, unit[judgements.item], units),
        tally(to_texts.best, np.arange(len(asking)), unit[asking], units),
    )
