"""Files that ONNX Runtime reads in another way than the audit did: each attack here once got a bound for numbers that were not served."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.audit import AuditError, audit

ONE = np.eye(2, dtype=np.float32)


def model(node, constants=(), *, sparse=(), functions=(), opsets=(("", 18),)):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    made = helper.make_graph([node], "g", [x], [y], list(constants), sparse_initializer=list(sparse))
    return helper.make_model(made, opset_imports=[helper.make_opsetid(*o) for o in opsets], functions=list(functions), ir_version=10)


def served(found):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 2), np.float32)})[0]


def sparse_five():
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 5.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("places", TensorProto.INT64, [2], [0, 3]), [2, 2])


def test_a_dense_constant_with_a_sparse_one_of_its_name_has_no_bound():
    found = model(helper.make_node("MatMul", ["x", "w"], ["y"]), [numpy_helper.from_array(ONE, "w")], sparse=[sparse_five()])
    assert (served(found) == 5).all(), "it is the sparse one that is served"
    with pytest.raises(AuditError, match="the constant 'w' is there twice"):
        audit(found)


def test_two_constants_of_one_name_have_no_bound():
    pair = [numpy_helper.from_array(ONE, "w"), numpy_helper.from_array(5 * ONE, "w")]
    with pytest.raises(AuditError, match="the constant 'w' is there twice"):
        audit(model(helper.make_node("MatMul", ["x", "w"], ["y"]), pair))


@pytest.mark.parametrize("domain", ["", "com.microsoft", "ai.onnx.ml"])
def test_a_function_in_the_place_of_a_built_in_operator_has_no_bound(domain):
    tenth = helper.make_node("Constant", [], ["tenth"], value=helper.make_tensor("t", TensorProto.FLOAT, [], [0.1]))
    body = [tenth, helper.make_node("Mul", ["X", "tenth"], ["Y"])]
    function = helper.make_function(domain, "Relu", ["X"], ["Y"], body, [helper.make_opsetid("", 18)])
    found = model(
        helper.make_node("Relu", ["x"], ["y"], domain=domain), functions=[function], opsets=[*{("", 18), (domain, 18 if not domain else 1)}]
    )
    if not domain:
        assert (served(found) == 1).all(), "it is the operator that is run, not the function"
    with pytest.raises(AuditError, match="the function 'Relu' has the name of a built-in operator"):
        audit(found)


def test_operators_of_two_versions_have_no_bound():
    with pytest.raises(AuditError, match=r"2 versions of ONNX's operators: \[18, 11\]"):
        audit(model(helper.make_node("Relu", ["x"], ["y"]), opsets=[("", 18), ("ai.onnx", 11)]))


def test_a_branch_with_sparse_constants_is_not_followed():
    """Inside it, its own sparse ``w`` hides the dense one outside."""
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inside = [helper.make_node("MatMul", ["x", "w"], ["z"], name="inner")]
    branch = helper.make_graph(inside, "b", [], [result], sparse_initializer=[sparse_five()])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    found = audit(model(node, [numpy_helper.from_array(ONE, "w"), numpy_helper.from_array(np.array(True), "yes")]))
    assert found.lipschitz["y"].bound is None
    assert found.layers == (), "nothing is said of a weight that is not used there"
