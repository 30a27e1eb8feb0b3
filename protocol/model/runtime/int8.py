"""Eight-bit towers, by ONNX Runtime's own quantiser.

Weights become int8 with a scale for each output channel. Activations become uint8: with a range
that is measured while it runs (dynamic, for transformers, whose ranges vary with the text), or
with one that is fixed from examples (static, for convolutions). Dynamic quantisation leaves
convolutions alone: with it MobileNetV2 ran ten times slower than in float32, at a cosine of 0.4.
ONNX Runtime, "Quantize ONNX models"; Jacob et al., arXiv:1712.05877.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from protocol.errors import UsageError
from protocol.model.runtime.export import quiet

Arrays = tuple[npt.NDArray[Any], ...]

#: Matrix products with weights, and tables of embeddings.
_DYNAMIC = ["MatMul", "Gather"]
#: What convolutional networks are made of; ONNX Runtime's longer list breaks group normalisation.
_STATIC = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip"]
_STATIC += ["MaxPool", "AveragePool", "GlobalAveragePool"]


def quantise(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> onnx.ModelProto:
    """Return ``model`` in eight bits: static if there are batches to calibrate on, else dynamic.

    Static ranges are the least and greatest activations over all batches, so they say a little
    about the examples: a model that was calibrated on private data stays where that is.
    ``model`` is used up. Raises :class:`UsageError` for a model that cannot be quantised.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="blindsight-int8-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            _quantise(model, path, calibration)
            return onnx.load(path)
        except Exception as error:  # the quantiser raises whatever it meets
            raise UsageError(
                f"this tower cannot be quantised: {type(error).__name__}: {error!s:.200}",
                "Run this tower in float32.",
            ) from error


def _quantise(model: onnx.ModelProto, path: Path, calibration: Sequence[Arrays]) -> None:
    # Slow to import, and most processes never quantise.
    from onnxruntime import quantization

    if not calibration:
        quantization.quantize_dynamic(model, path, _DYNAMIC, per_channel=True)
        return
    quantization.quantize_static(
        model,
        path,
        _reader([given.name for given in model.graph.input], calibration),
        op_types_to_quantize=_STATIC,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _reader(names: Sequence[str], batches: Sequence[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    feeds: Iterator[Mapping[str, npt.NDArray[Any]]] = (
        dict(zip(names, map(np.ascontiguousarray, batch), strict=True)) for batch in batches
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
            return next(feeds, None)

    return Reader()
