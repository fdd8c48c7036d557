"""One operator of a graph as the rules see it: constants unpacked, axes made positive, and what it computes run on arrays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from export.audit.report import AuditedLayer
from export.audit.values import Array, NoBoundError, Value

STANDARD, LEARNING = ("", "ai.onnx"), "ai.onnx.ml"
IMPLEMENTED = {"DequantizeLinear": 19, "QuantizeLinear": 19}
"""The first version that the reference implementation of ONNX computes, of operators whose earlier ones are the same on fewer types."""


@dataclass(frozen=True)
class Node:
    """An operator, the values that it takes (None: left out) and the opset that defines it; rules add to ``layers`` what they measure.

    ``seconds`` is how long the proof of a layer's norm may take, before a looser one has to do. ``boxed``: the bounds are about a box of
    inputs alone.
    """

    proto: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    opset: int
    layers: list[AuditedLayer] = field(default_factory=list)
    seconds: float = math.inf
    boxed: bool = False

    @property
    def op(self) -> str:
        """The operator's name, that of another domain with the domain before it."""
        return str(self.proto.op_type) if self.proto.domain in STANDARD else f"{self.proto.domain}.{self.proto.op_type}"

    @property
    def known_domain(self) -> bool:
        """Whether the operator is ONNX's own, or one of its classical machine learning."""
        return self.proto.domain in STANDARD or self.proto.domain == LEARNING

    @property
    def place(self) -> str:
        """Operator and place, as a reader of the graph would look for it."""
        return f"{self.op} at {self.proto.name or next(iter(self.proto.output), '')!r}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes by name."""
        return {a.name: helper.get_attribute_value(a) for a in self.proto.attribute}

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute, ``default`` where the node leaves it out."""
        return self.attributes.get(name, default)

    def present(self, place: int) -> bool:
        """Say whether the node has an input at ``place``."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def input(self, place: int = 0) -> Value:
        """Return an input.

        Raises:
            NoBoundError: the node has none there.
        """
        found = self.inputs[place] if place < len(self.inputs) else None
        if found is None:
            raise NoBoundError(f"input {place} is missing")
        return found

    def constant(self, place: int) -> Array:
        """Return the value of a constant input.

        Raises:
            NoBoundError: it depends on the inputs of the graph.
        """
        value = self.input(place)
        if value.constant is None:
            raise NoBoundError(f"its input {value.name!r} is not a constant")
        return value.constant

    def option(self, name: str, place: int, default: Any) -> Any:
        """Return what older opsets give as an attribute and newer ones as a constant input, as a list."""
        if name in self.attributes:
            return self.attributes[name]
        return self.constant(place).ravel().tolist() if self.present(place) else default

    def rank(self, place: int = 0) -> int:
        """Return the number of axes of an input.

        Raises:
            NoBoundError: it is not known.
        """
        shape = self.input(place).shape
        if shape is None:
            raise NoBoundError(f"the number of axes of {self.input(place).name!r} is not known")
        return len(shape)

    def axes(self, given: Sequence[int], rank: int) -> tuple[int, ...]:
        """Return axes counted from the front.

        Raises:
            NoBoundError: one is out of range.
        """
        found = tuple(axis + rank if axis < 0 else axis for axis in given)
        if any(not 0 <= axis < rank for axis in found):
            raise NoBoundError(f"axes {list(given)} do not fit {rank} axes")
        return found

    def run(self, replaced: Mapping[int, Array]) -> list[Array]:
        """Compute the node by the reference implementation of ONNX, its other inputs constant.

        Raises:
            NoBoundError: an input is not constant, or the reference cannot compute it.
        """
        arrays = {}
        for place, name in enumerate(self.proto.input):
            if name and name not in arrays:
                arrays[name] = replaced[place] if place in replaced else self.constant(place)
        inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.proto.output if name]
        model = helper.make_model(
            helper.make_graph([self.proto], "one", inputs, outputs),
            opset_imports=[helper.make_opsetid("", max(self.opset, IMPLEMENTED.get(self.op, 0)))],
        )
        try:
            with np.errstate(all="ignore"):
                results = iter(ReferenceEvaluator(model).run(None, arrays))
        except Exception as error:  # the reference raises whatever numpy does
            raise NoBoundError(f"the reference implementation cannot compute it ({error})") from None
        return [np.asarray(next(results)) if name else np.zeros(0) for name in self.proto.output]
