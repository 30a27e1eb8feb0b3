"""Pretrained weights from safetensors files, fitted to the backbones that they belong to."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from protocol.errors import DataError
from protocol.files import check_file
from protocol.model.encoders.torchvision_models import build, last_linear
from protocol.model.tower_settings import TowerSettings

Weights: TypeAlias = Mapping[str, torch.Tensor]
WEIGHTS_BYTES = 16 << 30
_PIECE = 1 << 20


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], str]:
    """Reads a safetensors file: float32 tensors by name, its metadata, and its SHA-256.

    Raises DataError for a file that is missing, too large or of another format.
    """
    try:
        check_file(path, WEIGHTS_BYTES, "give a file of weights in safetensors format")
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            weights = {name: _float(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        return weights, metadata, hash_file(path)
    except SafetensorError as error:
        raise DataError(
            f"{path}: not in safetensors format: {error}",
            "convert it: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", "give a file that can be read"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; raises DataError as ``read_weights`` does."""
    try:
        check_file(path, WEIGHTS_BYTES, "give a file of weights in safetensors format")
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: no weights in safetensors format: {error}", "give such a file"
        ) from error


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def fit(settings: TowerSettings, weights: Weights, path: Path) -> dict[str, torch.Tensor]:
    """The weights of a whole torchvision model as those of ``TwoTowers.image``.

    Raises DataError that names the tensors which are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        whole = build(settings.image_encoder.removeprefix("torchvision:"), settings.image_size)
    check_fit(whole.state_dict(), weights, str(path))
    classifier, _ = last_linear(whole)
    return {
        f"image.net.{name}": value
        for name, value in weights.items()
        if name.rpartition(".")[0] != classifier
    }


def check_fit(expected: Weights, found: Weights, where: str) -> None:
    """Raises DataError unless names and shapes are the same; counters of batches do not count."""
    wanted = {name for name in expected if not name.endswith("num_batches_tracked")}
    missing, unknown = sorted(wanted - set(found)), sorted(set(found) - set(expected))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(wanted & set(found))
        if found[name].shape != expected[name].shape
    ]
    if missing or unknown or shapes:
        raise DataError(
            f"{where}: these weights do not fit: {_some('missing', missing)}"
            f"{_some('unknown', unknown)}{_some('of another shape', shapes)}".rstrip("; "),
            "Give weights of this architecture, or name the architecture that they are of.",
        )


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{rest}); "


def _float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
