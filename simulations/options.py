"""What a user may say of encoders and training, in one place for every command that trains.

Names are those of ``EncoderChoice`` and ``TrainingSettings``; None leaves the default. Defaults
follow from the encoders: pretrained ones are frozen and only their projections learn, which
wants larger batches and dropout of features; small ones from scratch learn whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from protocol.errors import MalformedMessage, UsageError

F = TypeVar("F", bound=Callable[..., Any])

#: Name, type and help of each flag.
TRAINING_FLAGS: dict[str, tuple[Any, str]] = {
    "image_encoder": (str, "scratch, torchvision:NAME or transformers:FOLDER_OR_NAME."),
    "image_weights": (Path, "Weights of the image encoder, a .safetensors file."),
    "text_encoder": (str, "scratch, or transformers:FOLDER_OR_NAME."),
    "joint_encoder": (str, "Both at once: transformers:FOLDER_OR_NAME of CLIP, SigLIP or ALIGN."),
    "dim": (int, "Width of an embedding. (default: 128)"),
    "download": (bool, "Allow fetching a model from its hub."),
    "train": (str, "What learns: full, heads, lora or ffa-lora."),
    "lora_rank": (int, "Rank of low-rank changes. (default: 8)"),
    "lora_modules": (str, "Layers that they change, by name. (default: all-linear)"),
    "loss": (str, "info-nce, sigmoid, max-margin or triplet."),
    "margin": (float, "Margin of the last two. (default: 0.2)"),
    "temperature": (float, "Temperature at the start. (default: 0.07)"),
    "rounds": (int, "Rounds of federated training."),
    "local_epochs": (int, "Passes of an institution over its own data a round."),
    "batch_size": (int, "Items that meet in one loss."),
    "chunk_size": (int, "Items of a batch in memory at once. (default: all)"),
    "learning_rate": (float, "Its peak."),
    "weight_decay": (float, "Weight decay of matrices."),
    "schedule": (str, "cosine, linear or constant, over all rounds."),
    "image_augmentation": (str, "Some of shift, crop, flip, colour, erase, rand; or none."),
    "text_augmentation": (str, "Some of synonym, delete, swap, by commas; or none."),
    "synonyms": (Path, "Thesaurus in Solr's format, or a WordNet folder."),
    "views": (int, "Views of a picture whose frozen features are kept."),
    "image_dropout": (float, "Share of image features that a batch does not see."),
    "text_dropout": (float, "Share of text features that a batch does not see."),
    "public_captions": (Path, "Public texts, one a line, as extra negatives."),
    "public_negatives": (int, "How many of them join a batch."),
    "group_key": (str, "Key of the metadata that names patient or product. (default: group)"),
    "standardise": (bool, "Standardise image features over all institutions."),
    "proximal": (float, "FedProx's mu."),
    "optimiser": (str, "The coordinator's: fedavg, fedavgm, fedadam or fedyogi."),
    "server_learning_rate": (float, "Its learning rate."),
    "server_momentum": (float, "Its momentum."),
    "client_fraction": (float, "Share of institutions drawn each round."),
    "patience": (int, "Rounds without a better recall before the run ends. (default: never)"),
    "compression": (str, "Of updates: none, float16, int8 or top-k:SHARE."),
    "secure_aggregation": (bool, "The coordinator sees sums of updates alone."),
    "clipping_range": (float, "Largest change of a value in a masked update. (default: 2)"),
    "max_weight": (int, "Most examples that an institution weighs. (default: 10000)"),
    "reconstruction_threshold": (float, "Share that has to agree to unmask. (default: 2/3)"),
    "privacy_noise": (float, "Noise of private training, in units of a unit's reach. (default: 0)"),
    "privacy_clip": (float, "Norm of a microbatch's gradient. (default: 1)"),
    "privacy_microbatch": (int, "Units that meet in one private loss. (default: 8)"),
    "central_noise": (float, "Noise of the coordinator, in units of central-clip. (default: 0)"),
    "central_clip": (float, "Norm of an institution's whole change. (default: 1)"),
    "features": (Path, "Folder for features of frozen encoders."),
}
"""All of them may also stand in ``blindsight.toml`` and in the environment."""

_PRETRAINED: dict[str, Any] = {
    "train": "heads",
    "rounds": 15,
    "local_epochs": 4,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "image_augmentation": "none",
    "image_dropout": 0.5,
    "text_dropout": 0.2,
}
_NAMED = re.compile(r"torchvision ([a-z0-9_]+)")


def with_flags(flags: Mapping[str, tuple[Any, str]]) -> Callable[[F], F]:
    """Gives a command, whose last parameter is ``**flags``, an option for each of ``flags``."""
    return with_options(
        {
            name: Annotated[kind | None, typer.Option(help=text)]
            for name, (kind, text) in flags.items()
        }
    )


def with_options(options: Mapping[str, Any]) -> Callable[[F], F]:
    """As ``with_flags``, for options as typer takes them, by name; all are None unless given."""

    def decorate(function: F) -> F:
        mine = signature(function)
        own = [one for one in mine.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in options.items()
        ]
        keywords = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in own]
        function.__signature__ = mine.replace(parameters=[*keywords, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def encoders_of(options: Mapping[str, Any]) -> Any:
    """The ``EncoderChoice`` that options name; weights may name their own encoder."""
    from protocol.model.pretrained import EncoderChoice

    names = {field.name for field in fields(EncoderChoice)}
    given = {name: options[name] for name in names if options.get(name) is not None}
    if "image_weights" in given:
        path = Path(given["image_weights"])
        given["image_weights"] = str(path.resolve())
        if "image_encoder" not in given:
            given["image_encoder"] = _named_by(path)
    return EncoderChoice(**given)


def training_of(options: Mapping[str, Any], towers: Any, **others: Any) -> Any:
    """The ``TrainingSettings`` that options ask for; ``others`` are the command's own.

    Raises UsageError for a value out of range.
    """
    from protocol.model.settings import TrainingSettings
    from protocol.model.tower_settings import TowerSettings

    names = {field.name for field in fields(TrainingSettings)} - {"towers"}
    given = {name: options[name] for name in names if options.get(name) is not None}
    plain: TowerSettings = towers
    defaults = _PRETRAINED if plain.image_weights or plain.text_weights else {}
    if given.get("public_negatives") is None and options.get("public_captions") is not None:
        given["public_negatives"] = 512
    try:
        return replace(TrainingSettings(towers=plain), **{**defaults, **others, **given})
    except MalformedMessage as error:
        raise UsageError(error.message, error.hint) from error


def own_of(options: Mapping[str, Any]) -> dict[str, bool | float | int | str]:
    """What each institution settles for itself, by the names of ``client.institution.app``."""
    names = {
        "group_key": "group-key",
        "public_captions": "public-captions",
        "synonyms": "synonyms",
        "features": "cache",
    }
    return {
        key: str(Path(options[name]).resolve()) if name != "group_key" else options[name]
        for name, key in names.items()
        if options.get(name) is not None
    }


def _named_by(path: Path) -> str:
    """The encoder that a file of weights says it is of."""
    from protocol.model.encoders.weights import read_metadata

    match = _NAMED.search(read_metadata(path).get("arch", ""))
    if match is None:
        raise UsageError(
            f"{path} does not say which encoder its weights are of",
            "Name it: --image-encoder torchvision:NAME.",
        )
    return f"torchvision:{match[1]}"
