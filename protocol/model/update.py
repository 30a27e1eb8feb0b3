"""Weights as they travel: named float32 arrays in Flower's ArrayRecord, read with suspicion.

Both directions carry foreign bytes: an institution reads the coordinator's model, the
coordinator reads each institution's update. Flower checks neither the declared shape against the
payload nor the payload against the model, so this file does; nothing is ever unpickled.
"""

from collections.abc import Mapping
from io import BytesIO
from tokenize import TokenError
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy

from protocol.errors import MalformedMessage

Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
_HEADER_BYTES = 512


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
    if not size < len(array.data) <= size + _HEADER_BYTES:
        raise MalformedMessage(f"array {name}: expected {size} bytes, got {len(array.data)}")
    # Not np.load: it believes the header's shape and allocates for it before it reads on.
    stream = BytesIO(array.data)
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0")
        found = npy.read_array_header_1_0(stream, max_header_size=_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        # NumPy reads the header by Python's own parser, and mends it by its tokenizer.
        raise MalformedMessage(f"array {name}: not in NumPy's format: {error!s:.80}") from error
    if found != (shape, False, np.dtype("<f4")) or len(array.data) - stream.tell() != size:
        raise MalformedMessage(f"array {name}: its header says {found!r:.80}, expected {shape}")
    values = np.frombuffer(array.data, "<f4", offset=stream.tell()).reshape(shape).copy()
    if not np.isfinite(values).all():
        raise MalformedMessage(f"array {name}: holds values that are not finite")
    return values
