"""Weights as they travel: named float32 arrays in Flower's ArrayRecord, read with suspicion.

Both directions carry foreign bytes: an institution reads the coordinator's model, the
coordinator reads each institution's update. Flower checks neither the declared shape against the
payload nor the payload against the model, so this file does; nothing is ever unpickled.
"""

import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from protocol.errors import MalformedMessage

Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
_MODEL = "model"


def arrays_of(model: torch.nn.Module) -> Arrays:
    """A copy of everything that the model learns, by name.

    Frozen weights and the statistics of batches are no part of it: they never travel.
    """
    return {name: value.detach().cpu().numpy().copy() for name, value in _learned(model).items()}


def load_arrays(model: torch.nn.Module, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Puts ``arrays``, which have passed ``unpack``, into the model, in place.

    Raises ValueError unless they are exactly those that ``arrays_of`` gives.
    """
    learned = _learned(model)
    if set(arrays) != set(learned):
        wrong = sorted(set(arrays) ^ set(learned))
        raise ValueError(f"expected what the model learns; missing or unknown: {wrong[0]}")
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(torch.from_numpy(np.asarray(arrays[name])))


def pack(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """The arrays as a record, in the order given."""
    # Not np.ascontiguousarray: it gives an array without dimensions one.
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def unpack(
    record: ArrayRecord, like: Mapping[str, npt.NDArray[Any]], dtype: str = "float32"
) -> Arrays:
    """Reads a record that must hold exactly the names and shapes of ``like``, finite ``dtype``.

    Returns the arrays as float32 in the order of ``like``. Raises MalformedMessage, naming the
    array.
    """
    expect_names(record, like)
    return {
        name: read_array(name, record[name], dtype, values.shape).astype(np.float32, copy=False)
        for name, values in like.items()
    }


def pack_model(arrays: Mapping[str, npt.NDArray[np.float32]]) -> ArrayRecord:
    """All the arrays as one, which goes to every institution in every round.

    Flower sends each array by itself, and asks for it, signs and stores it: sixty requests of an
    institution for a small model, and one this way.
    """
    return pack({_MODEL: flatten(arrays)})


def unpack_model(record: ArrayRecord, like: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Undoes ``pack_model`` for arrays of the names and shapes of ``like``, which must be finite.

    Raises MalformedMessage.
    """
    size = sum(values.size for values in like.values())
    expect_names(record, [_MODEL])
    return unflatten(read_array(_MODEL, record[_MODEL], "float32", (size,)), like)


def flatten(arrays: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """All values in one float32 [n], in the order of the names, which both sides agree on."""
    parts = [arrays[name].ravel() for name in sorted(arrays)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def unflatten(values: npt.NDArray[np.float32], like: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Undoes ``flatten``: arrays with the names, shapes and order of ``like``."""
    found: Arrays = {}
    start = 0
    for name in sorted(like):
        end = start + like[name].size
        found[name] = values[start:end].reshape(like[name].shape)
        start = end
    return {name: found[name] for name in like}


def expect_names(record: ArrayRecord, names: Collection[str]) -> None:
    """Raises MalformedMessage unless ``record`` holds exactly the arrays of these ``names``."""
    if set(record) != set(names):
        wrong = sorted(set(record) ^ set(names))
        raise MalformedMessage(
            f"update: expected {len(names)} named arrays, got {len(record)}; "
            f"missing or unknown: {wrong[0]!r:.80}"
        )


def read_array(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Reads one array that must be of this NumPy ``dtype`` and ``shape``, and finite.

    Raises MalformedMessage before anything is allocated that was not expected.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if array.stype != "numpy.ndarray" or array.dtype != dtype or tuple(array.shape) != shape:
        raise MalformedMessage(
            f"array {name}: expected {dtype} {shape}, got {array.dtype!r:.20} "
            f"{tuple(array.shape)!r:.60} as {array.stype!r:.20}"
        )
    # Not parsed, here or by np.load: the header that belongs to this array is known, byte for byte.
    header = _header(dtype, shape)
    if not array.data.startswith(header) or len(array.data) != len(header) + size:
        raise MalformedMessage(f"array {name}: its header is not NumPy's for {dtype} {shape}")
    found = np.frombuffer(array.data, np.dtype(dtype).newbyteorder("<"), offset=len(header))
    values = found.reshape(shape).copy()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MalformedMessage(f"array {name}: holds values that are not finite")
    return values


def _learned(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What NumPy's format (version 1.0) puts before the values of such an array."""
    stream = BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    npy.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()
