"""Does joining pay? The federated model beside chance, each institution alone, and pooled data."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.institution.evaluation import chance, measure, relevance
from protocol.errors import DataError
from protocol.model.embedder import Embedder
from simulations.baselines import Baselines, read_union


def measure_models(
    embedder: Embedder, baselines: Baselines | None, homes: Mapping[str, Path]
) -> dict[str, Any]:
    """Measure text-to-image retrieval over the union of all test images, in plain JSON values.

    Only a simulation can do this: it pools what no party may see together.
    Raises :class:`DataError` if there is no test image.
    """
    gallery = read_union(homes, "test", embedder.image_size)
    if not len(gallery):
        raise DataError(
            "there is no test image to measure with",
            'Mark some lines of metadata.jsonl "split": "test", or leave "split" out.',
        )

    def recall(model: Embedder) -> dict[str, Any]:
        return asdict(measure(model, gallery.pixels, gallery.captions))

    queries, relevant = relevance(gallery.captions)
    found = {
        "gallery": len(gallery),
        "queries": len(queries),
        "federated": recall(embedder),
        "central": None,
        "chance": asdict(chance(len(gallery), [len(images) for images in relevant])),
        "local": [],
    }
    if baselines is not None:
        found["central"] = recall(Embedder(baselines.central))
        found["local"] = [
            {"name": name, **recall(Embedder(model))} for name, model in baselines.alone.items()
        ]
    return found
