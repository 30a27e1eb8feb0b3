"""Named arrays in a file of safetensors, which holds numbers alone and runs nothing."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from protocol.errors import StorageError
from protocol.files import write_atomically

#: The header spends less than this on an array, whatever its name here.
_HEADER_BYTES = 2048


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Writes the file in one step and returns its SHA-256. Raises StorageError."""
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(
    path: Path, like: Mapping[str, npt.NDArray[Any]], hint: str, sha256: str | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Reads a file that must hold the names, types and shapes of ``like``, finite values.

    With ``sha256`` its bytes must be those. Raises StorageError with ``hint``.
    """
    limit = sum(values.nbytes + _HEADER_BYTES for values in like.values()) + _HEADER_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}", hint) from error
    if len(data) > limit:
        raise StorageError(f"{path}: expected at most {limit:,} bytes", hint)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise StorageError(f"{path}: its SHA-256 is not the one expected, {sha256}", hint)
    try:
        found = load(data)
    # A type that NumPy has no name for is a KeyError there.
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(f"{path}: not in safetensors format: {error}", hint) from error
    if set(found) != set(like):
        wrong = sorted(set(found) ^ set(like))[0]
        raise StorageError(f"{path}: missing or unknown array {wrong!r:.80}", hint)
    for name, expected in like.items():
        values = found[name]
        if values.shape != expected.shape or values.dtype != expected.dtype:
            raise StorageError(
                f"{path}: array {name}: expected {expected.dtype} {expected.shape}, "
                f"got {values.dtype} {values.shape}",
                hint,
            )
        if not np.isfinite(values).all():
            raise StorageError(f"{path}: array {name} holds values that are not finite", hint)
    return {name: found[name] for name in like}
