"""Weights as they travel: named float32 arrays in Flower's ArrayRecord, read with suspicion.

Both directions carry foreign bytes: an institution reads the coordinator's model, the
coordinator reads each institution's update. Flower checks neither the declared shape against the
payload nor the payload against the model, so this file does; nothing is ever unpickled.
"""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from protocol.errors import MalformedMessage

Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]


def arrays_of(model: torch.nn.Module) -> Arrays:
    """A copy of everything that the model has learned, by name."""
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def load_arrays(model: torch.nn.Module, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Puts ``arrays``, which have passed ``unpack``, into the model."""
    model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})


def pack(arrays: Mapping[str, npt.NDArray[np.float32]]) -> ArrayRecord:
    """The arrays as a record, in the order given."""
    return ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})


def unpack(record: ArrayRecord, like: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """Reads a record that must hold exactly the names and shapes of ``like``, finite float32.

    Returns the arrays in the order of ``like``. Raises MalformedMessage, naming the array.
    """
    if set(record) != set(like):
        wrong = sorted(set(record) ^ set(like))
        raise MalformedMessage(
            f"update: expected {len(like)} named arrays, got {len(record)}; "
            f"missing or unknown: {wrong[0]!r:.80}"
        )
    return {name: _read(name, record[name], like[name].shape) for name in like}


def _read(name: str, array: Array, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if array.stype != "numpy.ndarray" or array.dtype != "float32" or tuple(array.shape) != shape:
        raise MalformedMessage(
            f"array {name}: expected float32 {shape}, got {array.dtype!r:.20} "
            f"{tuple(array.shape)!r:.60} as {array.stype!r:.20}"
        )
    # Not parsed, here or by np.load: the header that belongs to this array is known, byte for byte.
    header = _header(shape)
    if not array.data.startswith(header) or len(array.data) != len(header) + size:
        raise MalformedMessage(f"array {name}: its header is not NumPy's for float32 {shape}")
    values = np.frombuffer(array.data, "<f4", offset=len(header)).reshape(shape).copy()
    if not np.isfinite(values).all():
        raise MalformedMessage(f"array {name}: holds values that are not finite")
    return values


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...]) -> bytes:
    """What NumPy's format (version 1.0) puts before the values of such an array."""
    stream = BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()
