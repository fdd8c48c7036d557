"""How long a proof may take: a looser bound in time, and said to be one, in every form of the report."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.audit import __main__ as command
from export.audit import audit
from export.audit.html import page

RNG = np.random.default_rng(0)
WEIGHTS = {"k": RNG.standard_normal((3, 2, 3, 3)).astype(np.float32), "w": RNG.standard_normal((3 * 900, 5)).astype(np.float32)}
NODES = [
    helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
    helper.make_node("Flatten", ["c"], ["f"]),
    helper.make_node("MatMul", ["f", "w"], ["y"]),
]
ENDS = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["batch", 2, 30, 30]), ("y", ["batch", 5]))]
GRAPH = helper.make_graph(NODES, "g", ENDS[:1], ENDS[1:], [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()])
MODEL = helper.make_model(GRAPH, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(MODEL)
    return tmp_path / "model.onnx"


def test_without_a_limit_no_norm_is_looser_than_it_might_be():
    assert [layer.looser for layer in audit(MODEL).layers] == [None, None]


def test_where_there_is_no_time_the_bounds_are_looser_still_hold_and_say_so():
    close, hasty = audit(MODEL), audit(MODEL, layer_seconds=0.0)
    for a, b in zip(close.layers, hasty.layers, strict=True):
        assert b.looser == "norms of rows and columns"
        assert b.sigma_estimate <= a.sigma_upper < b.sigma_upper
    assert close.lipschitz["y"].bound < hasty.lipschitz["y"].bound


def test_the_table_the_json_and_the_page_mark_a_looser_bound(file, tmp_path, capsys):
    assert command.main([str(file), "--layer-seconds", "0", "--no-search", "--html", str(tmp_path / "page.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("  looser: norms of rows and columns") for line in lines[1:3]] == [True, True]
    assert (tmp_path / "page.html").read_text().count("<td>norms of rows and columns</td>") == 2
    assert command.main([str(file), "--layer-seconds", "0", "--no-search", "--json"]) == 0
    assert [layer["looser"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["norms of rows and columns"] * 2


def test_nothing_is_marked_where_nothing_is_looser(file, capsys):
    assert command.main([str(file), "--no-search"]) == 0
    assert "looser" not in capsys.readouterr().out
    assert "looser" not in page(audit(MODEL), "model")


@pytest.mark.parametrize("text", ["-1", "soon", "nan"])
def test_a_limit_that_is_no_time_is_refused(file, text, capsys):
    with pytest.raises(SystemExit):
        command.main([str(file), "--layer-seconds", text])
    assert "expected a number of seconds" in capsys.readouterr().err


def test_an_audit_by_path_is_that_of_the_content(file):
    assert audit(file) == audit(MODEL)
