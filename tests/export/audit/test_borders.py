import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.audit import audit

KERNEL = np.random.default_rng(0).normal(size=(3, 2, 3, 2)).astype(np.float32)
MODES = ("wrap", "reflect", "edge")


def model(widths, *, mode, between=(), size=(4, 5), **attributes):
    """x, padded, then a convolution; ``between`` are operators that act on each entry."""
    nodes = [helper.make_node("Pad", ["x", "pads"], ["p"], mode=mode)]
    at = "p"
    for index, op in enumerate(between):
        nodes.append(helper.make_node(op, [at], [f"b{index}"]))
        at = f"b{index}"
    nodes.append(helper.make_node("Conv", [at, "K"], ["y"], **attributes))
    weights = [numpy_helper.from_array(KERNEL, "K"), numpy_helper.from_array(np.array(widths, dtype=np.int64), "pads")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, *size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 19)])


def bound(*arguments, **options):
    return audit(model(*arguments, **options)).lipschitz["y"].bound


def norm(*arguments, size=(4, 5), **options):
    """The norm of the map itself, from what it makes of each unit image."""
    entries = 2 * size[0] * size[1]
    eye = np.eye(entries, dtype=np.float32).reshape(entries, 2, *size)
    columns = ReferenceEvaluator(model(*arguments, size=size, **options)).run(None, {"x": eye})[0]
    return float(np.linalg.norm(columns.reshape(entries, -1).astype(np.float64), 2))


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 1]}, {"dilations": [1, 2]}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_border_and_its_convolution_are_bounded_as_one_map(mode, attributes):
    pads = [0, 0, 1, 1, 0, 0, 1, 2]
    true, found = norm(pads, mode=mode, **attributes), bound(pads, mode=mode, **attributes)
    assert true * (1 - 1e-6) <= found <= 3.5 * true


def test_a_circular_convolution_has_exactly_its_norm():
    pads = [0, 0, 1, 0, 0, 0, 1, 1]
    assert bound(pads, mode="wrap") == pytest.approx(norm(pads, mode="wrap"), rel=1e-6)
    report = audit(model(pads, mode="wrap"))
    assert report.layers[0].sigma_upper == report.lipschitz["y"].bound
    assert report.rows_independent


def test_what_is_no_border_of_this_convolution_counts_by_itself():
    pads = [0, 0, 1, 0, 0, 0, 1, 1]
    whole = bound(pads, mode="wrap")
    alone = bound([0] * 8, mode="constant", size=(6, 6))
    apart = bound(pads, mode="wrap", between=("Relu",))
    assert apart == pytest.approx(2 * alone, rel=1e-3)  # two axes, each with a pixel twice
    assert apart > 1.5 * whole
    own = bound(pads, mode="wrap", pads=[1, 0, 1, 0])
    assert own > 1.5 * whole
    assert bound(pads, mode="constant") < whole * 1.2


@pytest.mark.parametrize("mode", MODES)
def test_a_border_over_channels_is_none_of_the_image(mode):
    kernel_takes_four = [0, 1, 0, 0, 0, 1, 0, 0] if mode != "wrap" else [0, 2, 0, 0, 0, 0, 0, 0]
    graph = model(kernel_takes_four, mode=mode)
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.tile(KERNEL, (1, 2, 1, 1)), "K"))
    entries = 40
    columns = ReferenceEvaluator(graph).run(None, {"x": np.eye(entries, dtype=np.float32).reshape(entries, 2, 4, 5)})[0]
    true = float(np.linalg.norm(columns.reshape(entries, -1).astype(np.float64), 2))
    assert audit(graph).lipschitz["y"].bound >= true * (1 - 1e-6)


def test_a_border_of_an_image_of_unknown_size_has_no_bound():
    report = audit(model([0, 0, 1, 0, 0, 0, 1, 1], mode="wrap"), {"x": [-1, 2, -1, 5]})
    assert report.lipschitz["y"].bound is None
    assert "copies an unknown number of entries" in report.lipschitz["y"].reason
