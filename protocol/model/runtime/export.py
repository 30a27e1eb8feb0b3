"""From a PyTorch module to one ONNX model: bytes that name no path and hold no code of ours."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn
from torch.onnx import OnnxExporterError

from protocol.errors import UsageError

#: protobuf's own limit for one message, less some room for the graph.
MODEL_BYTES = (1 << 31) - (1 << 24)
# torch.export traces with the state of the whole process.
_exporting = threading.Lock()


def to_onnx(module: nn.Module, example: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """Trace ``module``, as it is when evaluated, by PyTorch's dynamo exporter.

    The first axis of every input is free, and the second too of int64 token ids and masks [n, t];
    ``example`` must have two or more along each, for PyTorch takes a one to be fixed. The same
    module gives the same bytes. Raises ValueError for another example, :class:`UsageError` for
    a module that cannot be traced, or weights that do not fit into one ONNX model.
    """
    for tensor in example:
        if any(tensor.shape[axis] < 2 for axis in _free(tensor)):
            raise ValueError(f"expected an example of two rows or more, got {list(tensor.shape)}")
    weights = [*module.parameters(), *module.buffers()]
    if (size := sum(tensor.nbytes for tensor in weights)) > MODEL_BYTES:
        raise UsageError(
            f"the tower's weights take {size:,} bytes; ONNX holds at most {MODEL_BYTES:,}",
            "Run this tower in PyTorch, or choose a smaller one.",
        )
    shapes = tuple(dict.fromkeys(_free(tensor), torch.export.Dim.DYNAMIC) for tensor in example)
    try:
        with _exporting, quiet(), _evaluated(module):
            program = torch.onnx.export(
                _Positional(module),
                example,
                dynamo=True,
                verbose=False,
                external_data=False,
                dynamic_shapes=(shapes,),
            )
    except OnnxExporterError as error:
        raise UsageError(
            f"this tower cannot be exported to ONNX: {error.__cause__ or error!s:.300}",
            "Run this tower in PyTorch, or choose another encoder.",
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


class _Positional(nn.Module):
    """Any module under one signature: the names of its arguments differ, and do not matter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.module(*inputs)
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of exporters and quantisers from the user.

    They log through the root logger, and the first line there would install a handler for good.
    """
    silent, level = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.removeHandler(silent)


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _free(tensor: torch.Tensor) -> tuple[int, ...]:
    return (0, 1) if tensor.dtype == torch.int64 and tensor.ndim == 2 else (0,)


def _strip(model: onnx.ModelProto) -> None:
    """Drop the stack traces that the exporter notes: they name this machine's paths."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
