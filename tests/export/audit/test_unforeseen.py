"""What no rule foresaw costs the bound of one node, and what is no model ends in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.audit import AuditError, audit, followed, rules
from export.audit.__main__ import main
from export.audit.rounding import ROUNDED, Roundings
from export.audit.values import Value
from export.audit.walk import certified

FIXTURE = Path(__file__).parent / "fixtures" / "legacy_cnn.onnx"


def two_outputs():
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,4] y, float[N,4] z) { h = Tanh(x)  y = Relu(h)  z = Neg(x) }'
    )
    return parser.parse_model(text)


def broken(error):
    def rule(node, *more):
        raise error

    return rule


ERRORS = [
    ValueError("no\n such  axis"), IndexError("too far"), ZeroDivisionError("by 0"), OverflowError("too large"), KeyError("k"),
    np.linalg.LinAlgError("singular"), TypeError("no number"), RuntimeError("what"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_that_no_rule_foresees_costs_the_bound_of_its_node_alone_and_is_told(error, monkeypatch):
    monkeypatch.setitem(rules.RULES, "Tanh", broken(error))
    report = audit(two_outputs(), chain=True)
    text = " ".join(str(error).split())
    assert report.lipschitz["y"].bound is None
    assert report.lipschitz["y"].reason == f"Tanh at 'h': the rule could not follow it ({type(error).__name__}: {text})"
    assert report.lipschitz["z"].bound == 1.0


@pytest.mark.parametrize("error", [MemoryError("full"), KeyboardInterrupt(), AuditError("stop")], ids=lambda error: type(error).__name__)
def test_what_is_no_matter_of_a_rule_goes_through(error, monkeypatch):
    monkeypatch.setitem(rules.RULES, "Tanh", broken(error))
    with pytest.raises(type(error)):
        audit(two_outputs())


def test_a_rule_that_fails_after_an_operator_without_a_bound_leaves_the_blame_there(monkeypatch):
    monkeypatch.setitem(rules.RULES, "Relu", broken(ValueError("late")))
    model = two_outputs()
    model.graph.node[0].op_type = "Exp"
    assert audit(model).lipschitz["y"].reason == "Exp at 'h': its slope is not bounded"


def test_an_error_in_the_chain_or_in_the_rounding_leaves_the_bound_of_the_walk(monkeypatch):
    monkeypatch.setitem(followed.FOLLOWED, "Relu", broken(IndexError("chain")))
    monkeypatch.setitem(ROUNDED, "Neg", broken(IndexError("rounding")))
    roundings = Roundings(["x"])
    report, chains = certified(two_outputs(), watch=roundings.follow)
    assert report.lipschitz["y"].bound == 1.0
    assert "y" not in chains
    assert roundings.causes["z"] == "Neg at 'z': the rule could not follow it (IndexError: rounding)"


def test_a_node_without_outputs_an_attribute_beyond_reason_and_a_sum_of_nothing_end_without_a_traceback():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, 8, 8]) for name in "xy")
    kernel = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "k")
    for attributes in ({"pads": [2**40] * 4}, {"strides": [0, 0]}, {"dilations": [2**40] * 2}, {"group": 0}):
        nodes = [helper.make_node("Relu", ["x"], []), helper.make_node("Conv", ["x", "k"], ["y"], **attributes)]
        found = audit(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [kernel]))).lipschitz["y"]
        assert found.bound is None
        assert found.reason.startswith("Conv at 'y'")


def test_a_constant_whose_bytes_do_not_fit_is_told_in_a_sentence():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    weight.dims.append(3)
    model = helper.make_model(helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight]))
    with pytest.raises(AuditError, match="the constant 'w' cannot be read: cannot reshape"):
        audit(model)


def content(kind):
    whole = FIXTURE.read_bytes()
    return {"empty": b"", "text": b"no model, only words\n", "half": whole[: len(whole) // 2], "claim": b"\x3a\xff\xff\xff\xff\x0f"}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "half", "claim", "folder", "missing", "huge"])
def test_the_command_says_in_one_sentence_what_is_no_model(kind, tmp_path, capsys):
    path = tmp_path / "it.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(3 * 2**30)
    elif kind != "missing":
        path.write_bytes(content(kind))
    assert main([str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert ("2 GiB" in told.err) == (kind == "huge")


def test_no_value_of_a_failing_node_looks_like_a_constant(monkeypatch):
    monkeypatch.setitem(rules.RULES, "Tanh", broken(ValueError("no")))
    seen: list[Value] = []
    certified(two_outputs(), watch=lambda node, values: seen.extend(values))
    assert [(value.constant, value.rows, value.fixed) for value in seen if value.name == "h"] == [(None, False, False)]
