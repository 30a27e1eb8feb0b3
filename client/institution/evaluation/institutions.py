"""What each institution's sentences find: at home, and among everybody's images."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from client.institution.evaluation.ranking import Floats, rank
from client.institution.evaluation.relevance import Judgements
from client.institution.evaluation.retrieval import Retrieval


@dataclass(frozen=True, slots=True)
class ByInstitution:
    """Text-to-image retrieval with each institution's own texts, by its name, sorted.

    ``own`` is over that institution's images alone, ``union`` over all images: a larger gallery,
    where the images of others may be relevant too.
    """

    own: dict[str, Retrieval]
    union: dict[str, Retrieval]


def by_institution(
    images: Floats, texts: Floats, relevant: Sequence[Collection[int]], owner: Sequence[str]
) -> ByInstitution:
    """Evaluates embeddings, float32 [n, d] and [q, d], apart for each name in ``owner`` [n].

    ``relevant[i]`` are the images of text i. A text is an institution's own when one of these is;
    it may be several institutions'. One whose images no text wants is left out.
    Raises ValueError for shapes that do not fit, a text without an image, or values that are not
    finite. Only a simulation can do this: it pools what no party may see together.
    """
    judgements = Judgements.of(relevant, len(images))
    if len(owner) != len(images):
        raise ValueError(f"expected an owner for each of {len(images)} images, got {len(owner)}")
    everywhere = rank(texts, images, judgements)
    own: dict[str, Retrieval] = {}
    union: dict[str, Retrieval] = {}
    for name in sorted(set(owner)):
        chosen = np.flatnonzero([one == name for one in owner])
        asking, part = judgements.among(chosen)
        if len(asking):
            at_home = rank(texts[asking], images[chosen], part)
            own[name] = Retrieval.of(at_home, len(chosen))
            union[name] = Retrieval.of(everywhere.of(asking), len(images))
    return ByInstitution(own, union)
