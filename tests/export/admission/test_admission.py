"""What is admitted, and with what certificate; what is refused, and that nothing of it outlives its child."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import bundle
from export.admission import AdmissionError, Limits, admit, child
from export.admission.__main__ import main
from export.admission.admit import manifest_of
from export.audit import audit


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def made(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None, **options: Any) -> Any:
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8, **options)


def judged(content: bytes) -> bundle.Manifest:
    """What the child would tell, without the seconds that a process takes to start."""
    told: dict[str, Any] = {}
    child.judge(content, lambda **line: told.update(line))
    return manifest_of(content, told, "")


def dense(scale: float = 2.0) -> Any:
    return made(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "first"), helper.make_node("Relu", ["h"], ["y"])],
        [value("x", ["n", 3])],
        [value("y", ["n", 3])],
        {"w": scale * np.eye(3, dtype=np.float32)},
        producer_name="somebody",
    )


def test_a_model_comes_with_the_certificate_and_the_layers_that_its_audit_proves() -> None:
    content = dense().SerializeToString()
    manifest = admit(content)
    proved = audit(content)
    assert manifest.lipschitz == proved.lipschitz["y"]
    assert manifest.lipschitz.bound is not None
    assert 2.0 <= manifest.lipschitz.bound < 2.0001
    assert [(layer.name, layer.constraint, layer.folded_sigma_upper) for layer in manifest.layers] == [
        ("first", "none", proved.layers[0].sigma_upper)
    ]
    assert manifest.signature == bundle.Signature(
        inputs=(bundle.Tensor(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(bundle.Tensor(name="y", datatype="FP32", shape=(-1, 3)),),
        rows_independent=True,
    )
    assert (manifest.origin, manifest.gradient_mode, manifest.tools["producer"]) == ("import", None, "somebody")
    assert manifest.model_digest == bundle.digest(content)


def test_a_model_without_a_bound_is_admitted_with_the_reason() -> None:
    model = made([helper.make_node("Mul", ["x", "x"], ["y"])], [value("x", ["n", 3])], [value("y", ["n", 3])])
    manifest = judged(model.SerializeToString())
    assert manifest.lipschitz.bound is None
    assert "Mul" in (manifest.lipschitz.reason or "")


def test_rows_whose_count_has_the_name_of_another_size_are_not_taken_for_independent() -> None:
    for other, independent in (("m", True), ("n", False)):
        model = made([helper.make_node("Relu", ["x"], ["y"])], [value("x", ["n", other])], [value("y", ["n", other])])
        assert judged(model.SerializeToString()).signature.rows_independent is independent


def test_several_inputs_and_outputs_no_batch_free_axes_and_strings_are_described_as_they_are() -> None:
    model = made(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Identity", ["text"], ["said"]),
            helper.make_node("Shape", ["a"], ["size"]),
            helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0),
        ],
        [value("a", [2, "t"]), value("b", [2, "t"]), value("text", [2], TensorProto.STRING)],
        [
            value("sum", [2, "t"]),
            value("said", [2], TensorProto.STRING),
            value("size", [2], TensorProto.INT64),
            value("total", []),
        ],
    )
    signature = judged(model.SerializeToString()).signature
    assert [(one.name, one.datatype, one.shape) for one in (*signature.inputs, *signature.outputs)] == [
        ("a", "FP32", (2, -1)), ("b", "FP32", (2, -1)), ("text", "BYTES", (2,)),
        ("sum", "FP32", (2, -1)), ("said", "BYTES", (2,)), ("size", "INT64", (2,)), ("total", "FP32", ()),
    ]  # fmt: skip
    assert not signature.rows_independent


def test_a_convolution_that_needs_room_is_tried_with_more_room() -> None:
    model = made(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [value("x", ["n", 1, "h", "w_"])],
        [value("y", ["n", 1, "a", "b"])],
        {"w": np.ones((1, 1, 5, 5), np.float32)},
    )
    assert judged(model.SerializeToString()).signature.inputs[0].shape == (-1, 1, -1, -1)


def branch(external: bool = False) -> Any:
    constant = numpy_helper.from_array(np.ones(3, np.float32), "c")
    if external:
        constant.ClearField("raw_data")
        constant.data_location = TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="secret.bin")
    arm = helper.make_graph([helper.make_node("Constant", [], ["r"], value=constant)], "arm", [], [value("r", [3])])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["q"])], "other", [], [value("q", [3])])
    return made(
        [helper.make_node("If", ["c"], ["y"], then_branch=arm, else_branch=other)],
        [value("c", [], TensorProto.BOOL), value("x", [3])],
        [value("y", [3])],
    )


def test_a_branch_is_admitted_and_nothing_in_it_escapes_the_check() -> None:
    assert judged(branch().SerializeToString()).lipschitz.bound is None
    with pytest.raises(AdmissionError, match="in another file"):
        judged(branch(external=True).SerializeToString())


def loop(op: str) -> Any:
    flag, count = value("going", [], TensorProto.BOOL), value("i", [], TensorProto.INT64)
    if op == "Loop":
        body = helper.make_graph([helper.make_node("Identity", ["going"], ["on"])], "b", [count, flag], [value("on", [], TensorProto.BOOL)])
        nodes = [helper.make_node("Loop", ["m", ""], [], body=body), helper.make_node("Identity", ["x"], ["y"])]
    else:
        body = helper.make_graph([helper.make_node("Identity", ["e"], ["f"])], "b", [value("e", [3])], [value("f", [3])])
        nodes = [helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)]
    return made(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])], {"m": np.array(2**62, np.int64)})


def in_a_function(node: Any) -> Any:
    model = made([helper.make_node("F", ["x"], ["y"], domain="own")], [value("x", ["n", 3])], [value("y", ["n", 3])])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    return model


def weighted(array: np.ndarray) -> Any:
    return made([helper.make_node("Mul", ["x", "w"], ["y"])], [value("x", ["n", 3])], [value("y", ["n", 3])], {"w": array})


def external(key: str = "location", where: str = "../secret") -> Any:
    model = weighted(np.ones(3, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key=key, value=where)
    return model


def huge() -> Any:
    return made(
        [helper.make_node("ConstantOfShape", ["s"], ["big"]), helper.make_node("ReduceSum", ["big"], ["t"], keepdims=0),
         helper.make_node("Add", ["x", "t"], ["y"])],
        [value("x", ["n", 3])],
        [value("y", ["n", 3])],
        {"s": np.array([2**17, 2**17], np.int64)},
    )  # fmt: skip


def short() -> Any:
    model = weighted(np.ones(3, np.float32))
    model.graph.initializer[0].dims[0] = 2**40
    return model


def row(op: str, output: Any = None, **options: Any) -> Any:
    return made([helper.make_node(op, ["x"], ["y"], **options)], [value("x", [3])], [output or value("y", [3])])


IDENTITY = [helper.make_node("Identity", ["x"], ["y"])]
HOSTILE: dict[str, tuple[Any, str]] = {
    "random bytes": (bytes(range(256)) * 4, "no ONNX model"),
    "pickle": (b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94", "no ONNX model"),
    "truncated": (dense().SerializeToString()[:-20], "no ONNX model"),
    "deep": (b"\x3a\x80\x01" * 5000, "no ONNX model"),
    "external data": (external(), "in another file"),
    "external data by another key": (external("offset", "-1"), "in another file"),
    "loop": (loop("Loop"), "might never end"),
    "scan": (loop("Scan"), "might never end"),
    "loop in a function": (in_a_function(loop("Loop").graph.node[0]), "might never end"),
    "unknown domain": (row("Relu", domain="evil"), "'evil'"),
    "reads a file": (row("EPContext", domain="com.microsoft"), "other files"),
    "unknown operator": (row("Nope"), "not valid ONNX"),
    "cycle": (made([helper.make_node("Relu", [a], [b]) for a, b in ("ab", "ba")], [value("x", [3])], [value("b", [3])]), "not valid ONNX"),
    "NaN": (weighted(np.array([1, np.nan, 1], np.float32)), "NaN"),
    "states more than it holds": (short(), "the size that it states"),
    "no shape": (made(IDENTITY, [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], [value("y", [3])]), "has no shape"),
    "sequence": (row("SequenceConstruct", helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)), "no tensor"),
    "complex numbers": (made(IDENTITY, [value("x", [3], TensorProto.COMPLEX64)], [value("y", [3], TensorProto.COMPLEX64)]), "complex64"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_what_may_not_be_served_is_refused_with_one_sentence(case: str) -> None:
    model, sentence = HOSTILE[case]
    content = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(AdmissionError, match=sentence) as caught:
        judged(content)
    assert "/" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_asks_for_more_memory_than_its_trial_has_is_refused() -> None:
    with pytest.raises(AdmissionError, match=r"cannot be run on zeros|did not end well|more than the"):
        admit(huge().SerializeToString(), Limits(memory=3 * 2**30))


def test_a_file_over_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(AdmissionError, match="more than the 100 bytes"):
        admit(b"\0" * 101, Limits(size=100))
    with pytest.raises(AdmissionError, match="empty"):
        admit(b"")


def children() -> set[str]:
    """Return the processes that this one has started, ended ones that nobody waited for included."""
    return {name for task in Path("/proc/self/task").iterdir() for name in (task / "children").read_text().split()}


def test_a_trial_that_takes_too_long_is_ended_and_leaves_no_process() -> None:
    started, before = time.monotonic(), children()
    with pytest.raises(AdmissionError, match=r"longer than 0\.1 seconds"):
        admit(dense().SerializeToString(), Limits(seconds=0.1))
    assert time.monotonic() - started < 30
    assert children() <= before


def test_the_command_writes_a_bundle_whose_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "out"
    onnx.save(dense(), source)
    assert main([str(source), "--out", str(out)]) == 0
    manifest, files = bundle.read(out)
    assert files[bundle.MODEL] == source.read_bytes()
    assert manifest.lipschitz.bound is not None


def test_the_command_says_in_one_line_what_it_does_not_admit_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"nothing")
    assert main([str(source), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "specnorm: m.onnx is not admitted: the file is no ONNX model\n"
    assert not (tmp_path / "out").exists()
