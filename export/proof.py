"""What is proved of a graph without its radius: bounds, norms, and how far the float32 numbers may be off. From the bytes alone."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from export.audit import Report, certified
from export.audit.chain import Certificate as Chain
from export.audit.rounding import Affine, Roundings
from export.audit.values import NoBoundError
from export.radius import Certificate, pairs_of


class Proved(NamedTuple):
    """What is proved of one output.

    Attributes:
        report: of the whole graph.
        output: its name.
        chain: the quadratic certificate, where one was found.
        error: how far its float32 numbers may be from the exact ones; None: nothing is proved.
        why: what stands in the way of a radius.
    """

    report: Report
    output: str
    chain: Chain | None
    error: Affine | None
    why: str | None

    def certificate(self) -> Certificate | None:
        """Return what a radius of this output may be computed from, where one can be."""
        bound = self.report.lipschitz[self.output].bound
        classes = next(tensor.shape for tensor in self.report.outputs if tensor.name == self.output)[1:]
        if bound is None or self.error is None or len(classes) != 1:
            return None
        pairs = pairs_of(bound, classes[0])
        return Certificate(pairs if self.chain is None else np.minimum(pairs, self.chain.pairs), self.error)


def proved(body: onnx.ModelProto, output: str, *, chain: bool = True) -> Proved:
    """Return what is proved of ``output``.

    Raises:
        AuditError: ``body`` is no whole ONNX model.
    """
    roundings = Roundings(_rounded_inputs(body))
    report, chains = certified(body, chain=chain, watch=roundings.follow)
    error, why = None, report.lipschitz[output].reason
    try:
        error = roundings.error(output)
    except NoBoundError as found:
        why = why or str(found)
    return Proved(report, output, chains.get(output), error, why)


def _rounded_inputs(body: onnx.ModelProto) -> list[str]:
    """Return the inputs, constants that whoever runs the graph may replace among them; none where anything but float32 may come in."""
    plain = all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in body.graph.input)
    known = all(entry.domain in {"", "ai.onnx"} for entry in body.opset_import) and not body.functions
    return [value.name for value in body.graph.input] if plain and known else []
