"""What a graph does to its input before anything else, in words: the bound and the radius include it, and nothing outside the graph."""

import numpy as np
import onnx
from onnx import numpy_helper

NONE = "none"


def normalisation(model: onnx.ModelProto) -> str:
    """Return ``(x - shift) * scale, inside the graph`` with the numbers that the graph holds, or `NONE`."""
    constants = {weight.name: weight for weight in model.graph.initializer}
    at, words = model.graph.input[0].name, "x"
    for op, form in (("Sub", "({} - {})"), ("Mul", "{} * {}")):
        node = next((node for node in model.graph.node if node.op_type == op and list(node.input[:1]) == [at]), None)
        number = None if node is None or node.input[1] not in constants else numpy_helper.to_array(constants[node.input[1]])
        if node is not None and number is not None and number.size == 1:
            at, words = node.output[0], form.format(words, str(np.float32(number.ravel()[0])))
    return NONE if words == "x" else f"{words}, inside the graph"
