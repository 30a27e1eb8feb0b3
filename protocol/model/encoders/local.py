"""Folders of ``transformers``: configuration, weights, tokenizer, how to pool, how to prepare.

A hub's name stands for the folder in the local cache; it is fetched only if that was asked for.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from protocol.errors import DataError, UsageError
from protocol.files import check_file
from protocol.model.encoders.transformers_models import class_of, config_of, spell_config
from protocol.model.encoders.weights import Weights, check_fit, read_weights

_JSON_BYTES = 64 << 20
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
#: What an encoder of this type is known to be read by; other types by the mean of their states.
_IMAGE_POOLING = {"vit": "cls", "dinov2": "cls", "deit": "cls", "beit": "mean"}
_LONGEST = 128


def load_image(source: str, download: bool) -> tuple[dict[str, Any], Weights]:
    """A vision model: fields of TowerSettings, and its weights by the names of TwoTowers."""
    folder = find(source, download)
    config = read_config(folder)
    weights, sha256 = load_weights(folder, config)
    fields = {
        "image_encoder": f"transformers:{config.model_type}",
        "image_config": json.dumps(spell_config(config)),
        "image_weights": sha256,
        "image_pooling": _IMAGE_POOLING.get(config.model_type, "pooled"),
        **preparation(folder, config),
    }
    return fields, {f"image.net.{name}": value for name, value in weights.items()}


def load_text(source: str, download: bool) -> tuple[dict[str, Any], Weights, str]:
    """A text model: fields of TowerSettings, its weights, and the text of its tokenizer."""
    folder = find(source, download)
    config = read_config(folder)
    weights, sha256 = load_weights(folder, config)
    tokenizer = read_tokenizer(folder)
    fields = {
        "text_encoder": f"transformers:{config.model_type}",
        "text_config": json.dumps(spell_config(config)),
        "text_weights": sha256,
        "text_pooling": _text_pooling(folder),
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "max_tokens": min(_LONGEST, positions(config)),
    }
    return fields, {f"text.net.{name}": value for name, value in weights.items()}, tokenizer


def find(source: str, download: bool) -> Path:
    """The folder of a model. Raises DataError, with what to do, where there is none."""
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")):
        raise DataError(f"no such folder: {source}", "Give the folder that holds config.json.")
    try:
        return Path(
            snapshot_download(source, local_files_only=not download, allow_patterns=_WANTED)
        )
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        tried = "could not be fetched" if download else "is not in the local cache"
        raise DataError(
            f"the model {source} {tried} ({type(error).__name__})",
            "Give a local folder, as in transformers:/models/bert"
            + (
                ", or check the connection."
                if download
                else ", or allow fetching it with --download."
            ),
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a folder, in the form that every party can rebuild it from."""
    values = _read_json(folder / "config.json")
    if "auto_map" in values:
        raise UsageError(
            f"{folder}: this model brings code of its own, which is never run",
            "Choose a model that transformers itself knows.",
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except Exception as error:  # each family checks in its own way
        raise DataError(
            f"{folder}/config.json is not understood: {error!s:.200}", "Choose another model."
        ) from error
    return config_of(f"transformers:{config.model_type}", json.dumps(spell_config(config)))


def load_weights(folder: Path, config: PretrainedConfig) -> tuple[Weights, str]:
    """The weights of a plain model of this configuration, and their SHA-256; random if none lie
    there (then the SHA-256 is empty).
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        if any(folder.glob("*.bin")):
            raise DataError(
                f"{folder}: its weights are pickled, which is never read",
                "Convert them: AutoModel.from_pretrained(folder).save_pretrained(folder).",
            )
        return {}, ""
    read = [read_weights(file) for file in files]
    weights = {name: value for part, _, _ in read for name, value in part.items()}
    hashes = [sha256 for _, _, sha256 in read]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return convert(weights, config, str(folder)), sha256


def convert(weights: Weights, config: PretrainedConfig, where: str) -> dict[str, torch.Tensor]:
    """Weights of a plain model, from a file that may name them as an older transformers did, or
    hold a head besides. Only the library knows all those names.

    Raises DataError unless every tensor that is read of the model is there in its shape.
    """
    # The library reads no file here: names and numbers are given, and nothing else is looked for.
    try:
        with torch.random.fork_rng(devices=[]), _silent():
            model, said = class_of(config).from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a strange configuration makes the library raise
        raise DataError(
            f"{where}: no {config.model_type} model can be built: {error!s:.200}",
            "Choose another model.",
        ) from error
    expected = model.state_dict()
    found = {name: value for name, value in expected.items() if name not in said["missing_keys"]}
    misfits = {
        name: torch.empty(shape, device="meta") for name, shape, _ in said["mismatched_keys"]
    }
    # A pooling layer that was never trained is often left out of a file, and not read here.
    wanted = {
        name: value
        for name, value in expected.items()
        if name in found or not name.startswith("pooler.")
    }
    check_fit(wanted, found | misfits, where)
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """What is missing is said by an error here, and not by the library on the terminal."""
    logger = logging.getLogger("transformers")
    level, bar = logger.level, is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if bar:
            enable_progress_bar()  # type: ignore[no-untyped-call]
        logger.setLevel(level)


def rename(weights: Weights, expected: Weights, where: str) -> Weights:
    """Weights of a part of a model, under the names that it has by itself.

    Raises DataError unless every tensor that is expected is there in its shape.
    """
    prefixes = {""} | {name.partition(".")[0] + "." for name in weights}
    prefix = max(prefixes, key=lambda one: sum(one + name in weights for name in expected))
    found = {name: weights[prefix + name] for name in expected if prefix + name in weights}
    # A pooling layer that was never trained is often left out of a file, and not read here.
    idle = {name for name in expected if name.startswith("pooler.") and name not in found}
    check_fit({name: expected[name] for name in expected if name not in idle}, found, where)
    return found


def read_tokenizer(folder: Path) -> str:
    """The tokenizer of a folder as the text of a tokenizer.json that knows its padding."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        fast = tokenizer.backend_tokenizer
        fast.no_truncation()
        fast.enable_padding(
            pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]"
        )
        text: str = fast.to_str()
    except Exception as error:  # whatever a strange folder makes the library raise
        raise DataError(
            f"{folder}: no tokenizer can be read from it ({type(error).__name__})",
            "Put tokenizer.json beside config.json.",
        ) from error
    return text


def preparation(folder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """How pictures are prepared: from preprocessor_config.json, else the family's usual way."""
    path = folder / "preprocessor_config.json"
    said = _read_json(path) if path.is_file() else {}
    size = getattr(config, "image_size", 224)
    side = size if isinstance(size, int) else size[0]
    crop, resize = _side(said.get("crop_size"), side), _side(said.get("size"), side)
    return {
        "image_size": crop if said.get("do_center_crop") else side,
        "image_crop": min(1.0, crop / resize) if said.get("do_center_crop") else 0.0,
        "image_mean": tuple(said.get("image_mean", (0.5, 0.5, 0.5))),
        "image_std": tuple(said.get("image_std", (0.5, 0.5, 0.5))),
        "image_resample": "bilinear" if said.get("resample") == 2 else "bicubic",
    }


def positions(config: PretrainedConfig) -> int:
    """How many tokens an encoder takes."""
    most = getattr(config, "max_position_embeddings", _LONGEST)
    # RoBERTa and its kin count positions from behind the padding's number.
    return int(most) - (2 if config.model_type in ("roberta", "xlm-roberta", "mpnet") else 0)


def _side(size: object, default: int) -> int:
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else default


def _text_pooling(folder: Path) -> str:
    """What a sentence encoder says in 1_Pooling/config.json; else the mean."""
    path = folder / "1_Pooling" / "config.json"
    said = _read_json(path) if path.is_file() else {}
    return "cls" if said.get("pooling_mode_cls_token") is True else "mean"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        check_file(path, _JSON_BYTES, "give the folder of a model")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}", "Give the folder of a model."
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object", "Give the folder of a model.")
    return found
