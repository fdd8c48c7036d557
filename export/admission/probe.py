"""The first load and the first runs of a model from elsewhere, by plain ONNX Runtime on one CPU thread."""

import re
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from export.bundle import Tensor

SIZES = (1, 2, 8, 32, 64, 224)
"""Sizes to try for the free dimensions but the first; convolutions and pooling want some room."""
TEXTS = ("0", "")
DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
NUMPY = {
    **{"BOOL": "?", "FP16": "f2", "BF16": "u2", "FP32": "f4", "FP64": "f8"},
    **{f"{sign}INT{8 * size}": f"{kind}{size}" for sign, kind in (("", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
}
MOST_MESSAGE = 300


class ProbeError(ValueError):
    """ONNX Runtime cannot load or run the model; the sentence has its own words, less what is of this machine."""


def probe(content: bytes) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Load the model and run it once; return its inputs and outputs, free sizes as -1.

    Raises:
        ProbeError: it does not load, takes or gives what is not served, or no run ends well.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        raise ProbeError(f"ONNX Runtime cannot load the model: {_said(error)}") from None
    inputs = tuple(_tensor("input", node) for node in session.get_inputs())
    outputs = tuple(_tensor("output", node) for node in session.get_outputs())
    if {"BF16", "BYTES"} <= {tensor.datatype for tensor in (*inputs, *outputs)}:
        raise ProbeError("a model of both strings and BF16 is not served: ONNX Runtime takes them in different ways")
    ranks = _ran(session, inputs, outputs)
    return inputs, tuple(_known(output, rank) for output, rank in zip(outputs, ranks, strict=True))


def rows_have_a_name_of_their_own(model: ModelProto) -> bool:
    """Return whether the size of the first axis is used for no other: a proof rests on sizes of one name being equal."""
    names = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in (*model.graph.input, *model.graph.output)]
    first = {name[0] for name in names if name and name[0]}
    return not first & {other for name in names for other in name[1:]}


def _tensor(role: str, node: Any) -> Tensor:
    kind = re.fullmatch(r"tensor\((\w+)\)", node.type)
    datatype = DATATYPES.get(kind[1]) if kind else None
    if datatype is None:
        raise ProbeError(f"the {role} {node.name!r} is {node.type}, which is not served")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape or ())
    return Tensor.model_validate({"name": node.name, "datatype": datatype, "shape": shape})


def _ran(session: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[int]:
    """Return the rank of every output of the first run that ends well."""
    last: Exception | None = None
    names = [output.name for output in outputs]
    bits = any(tensor.datatype == "BF16" for tensor in (*inputs, *outputs))
    for size in SIZES if any(-1 in tensor.shape[1:] for tensor in inputs) else SIZES[:1]:
        for text in TEXTS if any(tensor.datatype == "BYTES" for tensor in inputs) else TEXTS[:1]:
            try:
                feed = {tensor.name: _zeros(tensor, size, text) for tensor in inputs}
                if bits:
                    given = {tensor.name: _as_value(feed[tensor.name], tensor.datatype) for tensor in inputs}
                    return [len(value.shape()) for value in session.run_with_ort_values(names, given)]
                return [array.ndim for array in session.run(names, feed)]
            except Exception as error:
                last = error
    raise ProbeError(f"the model cannot be run on zeros: {_said(last)}")


def _zeros(tensor: Tensor, size: int, text: str) -> np.ndarray:
    shape = tuple((size if at else 1) if length == -1 else length for at, length in enumerate(tensor.shape))
    return np.full(shape, text, dtype=object) if tensor.datatype == "BYTES" else np.zeros(shape, NUMPY[tensor.datatype])


def _as_value(array: np.ndarray, datatype: str) -> Any:
    kind = TensorProto.BFLOAT16 if datatype == "BF16" else helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)


def _known(output: Tensor, rank: int) -> Tensor:
    """Return an output of which the graph tells no shape with the rank that the run gave it."""
    return output if len(output.shape) == rank else output.model_copy(update={"shape": (-1,) * rank})


def _said(error: Exception | None) -> str:
    """Return what ONNX Runtime says, without the paths of its sources."""
    text = re.sub(r"\S*[/\\]\S*", "…", str(error))
    return " ".join(text.split())[:MOST_MESSAGE]
