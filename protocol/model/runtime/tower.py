"""A tower that no longer learns, on the CPU, by ONNX Runtime.

Two habits make it fast beside eager PyTorch. Few rows go in at a time: activations stay in the
cache, where a large batch of pictures spends its time on memory. And each thread takes rows of
its own, instead of all of them sharing every layer: no layer waits for the slowest thread.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from protocol.errors import DataError, StorageError, UsageError
from protocol.files import check_file, write_atomically
from protocol.model.runtime.export import MODEL_BYTES, to_onnx
from protocol.model.runtime.int8 import quantise

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Precision = Literal["float32", "int8"]

_ROWS = "rows"
_MAX_ROWS = 1024
_IMAGES, _TEXTS = 4, 32
_HINT = "Delete it; it is made again from the release."
_DTYPES = {"float": np.float32, "uint8": np.uint8, "int64": np.int64}


class OnnxTower:
    """``tower(pixels)`` or ``tower(ids, mask)``; threads may call it at once.

    A row's vector does not depend on its neighbours: in float32 up to rounding, in int8 exactly.
    """

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        """Load ``model``, trusted bytes; ``threads`` of None are all that this process may use.

        Raises :class:`UsageError` for what this ONNX Runtime cannot run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._model = model
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            self._rows = int(self._session.get_modelmeta().custom_metadata_map[_ROWS])
            if not 1 <= self._rows <= _MAX_ROWS:
                raise ValueError(f"expected 1 to {_MAX_ROWS} rows, got {self._rows}")
        except Exception as error:  # ONNX Runtime has a class for each of its status codes
            raise UsageError(
                f"not a tower that this ONNX Runtime runs: {error!s:.200}",
                "Run this tower in PyTorch, or choose another encoder.",
            ) from error
        self._inputs = [(each.name, each.type, each.shape) for each in self._session.get_inputs()]
        self._threads = threads or len(os.sched_getaffinity(0))

    @classmethod
    def export(
        cls,
        module: nn.Module,
        example: tuple[torch.Tensor, ...],
        precision: Precision,
        threads: int | None = None,
        calibration: Sequence[Array | tuple[Array, ...]] | None = None,
    ) -> Self:
        """Make a tower of ``module``, which maps tensors like ``example`` to float32 [n, w].

        Inputs are pictures, float32 or uint8 [n, ...], or token ids and their mask, int64 [n, t].
        An example has two rows or more; its values do not matter. ``calibration`` is for int8 and
        convolutions: some batches of inputs that fix the ranges of activations. Without it int8
        is for matrix products and embeddings alone, as transformers want it.
        The module's mode is left as it was. Raises ValueError for another precision or example,
        :class:`UsageError` for a module that ONNX cannot hold.
        """
        if precision not in ("float32", "int8"):
            raise ValueError(f"expected the precision float32 or int8, got {precision!r:.40}")
        texts = [tensor.dtype for tensor in example] == [torch.int64, torch.int64]
        if not texts and len(example) != 1:
            raise ValueError(f"expected pictures, or ids and their mask, got {len(example)} inputs")
        model, rows = to_onnx(module, example), _TEXTS if texts else _IMAGES
        if precision == "int8":
            batches = [
                batch if isinstance(batch, tuple) else (batch,) for batch in calibration or ()
            ]
            model = quantise(model, batches)
            # A measured range is that of all rows that go in together.
            rows = rows if batches else 1
        model.metadata_props.add(key=_ROWS, value=str(rows))
        return cls(model.SerializeToString(deterministic=True), threads)

    @property
    def size_bytes(self) -> int:
        """The bytes of the file that ``save`` writes."""
        return len(self._model)

    def __call__(self, *arrays: Array) -> Floats:
        """Embed n rows as float32 [n, w]; columns of token ids that no mask keeps cost nothing.

        Raises ValueError for another number of arrays, shape or dtype.
        """
        self._check(arrays)
        count = len(arrays[0])
        if count == 0:
            return np.empty((0, *self._session.get_outputs()[0].shape[1:]), np.float32)
        parts = [
            tuple(array[start : start + self._rows] for array in arrays)
            for start in range(0, count, self._rows)
        ]
        if self._threads == 1 or len(parts) == 1:
            return np.concatenate([self._run(part) for part in parts])
        with ThreadPoolExecutor(min(self._threads, len(parts))) as pool:
            return np.concatenate(list(pool.map(self._run, parts)))

    def save(self, path: Path) -> str:
        """Write the tower in one step; return its SHA-256. Raises :class:`StorageError`."""
        write_atomically(path, self._model)
        return hashlib.sha256(self._model).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str, threads: int | None = None) -> Self:
        """Read what ``save`` wrote, and only that: its SHA-256 must be ``sha256``.

        Raises :class:`StorageError` for a file that is missing, too large or another one.
        """
        try:
            check_file(path, MODEL_BYTES, _HINT)
            with path.open("rb") as file:
                data = file.read(MODEL_BYTES + 1)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be read: {error.strerror or error}", _HINT
            ) from error
        except DataError as error:
            raise StorageError(error.message, error.hint) from error
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise StorageError(f"{path}: expected the SHA-256 {sha256}, got {found}", _HINT)
        try:
            return cls(data, threads)
        except UsageError as error:
            raise StorageError(f"{path}: {error.message}", _HINT) from error

    def _run(self, arrays: tuple[Array, ...]) -> Floats:
        if len(arrays) == 2:
            kept = np.flatnonzero(arrays[1].any(axis=0))
            width = int(kept[-1]) + 1 if len(kept) else 1
            arrays = tuple(array[:, :width] for array in arrays)
        feed = {
            name: np.ascontiguousarray(array)
            for (name, _, _), array in zip(self._inputs, arrays, strict=True)
        }
        vectors: Floats = self._session.run(None, feed)[0]
        return vectors

    def _check(self, arrays: tuple[Array, ...]) -> None:
        got = ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays)
        wrong = ValueError(f"expected {', '.join(self._expected())}, got {got or 'nothing'}")
        if len(arrays) != len(self._inputs) or len({array.shape for array in arrays}) != 1:
            raise wrong
        for array, (_, kind, shape) in zip(arrays, self._inputs, strict=True):
            sizes = zip(array.shape, shape, strict=False)
            if (
                array.dtype != _DTYPES[kind.removeprefix("tensor(").removesuffix(")")]
                or array.ndim != len(shape)
                or any(isinstance(size, int) and size != given for given, size in sizes)
            ):
                raise wrong

    def _expected(self) -> Iterator[str]:
        for _, kind, shape in self._inputs:
            name = _DTYPES[kind.removeprefix("tensor(").removesuffix(")")].__name__
            free = iter("nt")
            sides = [str(size) if isinstance(size, int) else next(free) for size in shape]
            yield f"{name} [{', '.join(sides)}]"
