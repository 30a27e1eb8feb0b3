"""Does joining pay? The federated model beside chance, each institution alone, and pooled data."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from client.institution.evaluation import chance, evaluate_vectors, relevance
from client.institution.training_set import TrainingSet, union
from protocol.errors import DataError
from protocol.model.towers import TwoTowers
from simulations.baselines import Baselines


def measure_models(
    federated: TwoTowers, baselines: Baselines | None, tests: Mapping[str, TrainingSet]
) -> dict[str, Any]:
    """Measure text-to-image retrieval over the union of all test images, in plain JSON values.

    Only a simulation can do this: it pools what no party may see together.
    Raises :class:`DataError` if there is no test image.
    """
    gallery = union([one for one in tests.values() if len(one)] or list(tests.values())[:1])
    if not len(gallery):
        raise DataError(
            "there is no test image to measure with",
            'Mark some lines of metadata.jsonl "split": "test", or leave "split" out.',
        )
    groups = gallery.captions.groups or None
    queries, relevant = relevance(gallery.captions.of_items, groups)

    def measure(model: TwoTowers) -> dict[str, Any]:
        found = evaluate_vectors(
            gallery.image_vectors(model), gallery.text_vectors(model, queries), relevant, groups
        )
        return asdict(found.text_to_image) | {
            "image_to_text": asdict(found.image_to_text),
            "intervals": asdict(found.intervals),
        }

    result: dict[str, Any] = {
        "gallery": len(gallery),
        "queries": len(queries),
        "federated": measure(federated),
        "central": None,
        "chance": asdict(chance(len(gallery), [len(images) for images in relevant])),
        "local": [],
    }
    if baselines is not None:
        result["central"] = measure(baselines.central)
        result["local"] = [
            {"name": name, **measure(model)} for name, model in baselines.alone.items()
        ]
    return result
