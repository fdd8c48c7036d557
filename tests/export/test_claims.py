"""What a bundle promises is proved again from its bytes: whoever changes anything and signs it anew is found out, by name."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import specnorm_core as sn
from export import bundle, radius
from export.admission import AdmissionError, admit
from export.bundle import InputDomain
from export.check import problem
from export.claims import VerificationError, check, radius_fault
from export.pipeline import export_bundle
from export.proof import proved
from specnorm_core.architecture import Architecture, Conv2d, Flatten, Linear, Relu, Sort
from specnorm_core.specs import LeakyRelu, Tanh

LABELS = ("a", "b", "c")
DENSE = (Linear(features=8), Sort(), Linear(features=6), Relu(), Linear(features=3))
IMAGES = (Conv2d(channels=2, norm="matricised"), Relu(), Flatten(), Linear(features=3))


def bundle_of(layers=DENSE, labels=LABELS, shape=(5,)):
    spec = Architecture(input_shape=shape, layers=layers, shift=0.5, scale=0.5)
    model = sn.build(spec, seed=0)
    sn.power_iteration(model, 100)
    return export_bundle(model, spec, labels=labels, domain=InputDomain(minimum=0, maximum=1))


@pytest.fixture(scope="module")
def true():
    return bundle_of()


def signed(manifest, files, **changed):
    """The bundle with other files, which the manifest names as if they had always been so."""
    files = files | changed
    return manifest.model_copy(update={"files": {name: bundle.digest(content) for name, content in files.items()}}), files


def regraphed(true, edit):
    model = onnx.load_from_string(true[1]["model.onnx"])
    edit(model)
    return signed(*true, **{"model.onnx": model.SerializeToString()})


def weight(model, name):
    return next(w for w in model.graph.initializer if w.name == name)


def put(model, name, change):
    old = numpy_helper.to_array(weight(model, name))
    weight(model, name).CopyFrom(numpy_helper.from_array(np.asarray(change(old.copy()), dtype=old.dtype), name))


def larger(c):
    c[c > 0] *= np.float32(1.0001)
    return c


def one_entry(c):
    c[0, 1] *= np.float32(1.0001)
    return c


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def scaled_logits(model):
    """The radius of logits that are a thousand times as large as those that are served."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "thousand"))
    place = [n.name for n in model.graph.node].index("logits") + 1
    model.graph.node.insert(place, helper.make_node("Mul", ["logits", "thousand"], ["others"], name="others"))
    for name in ("radius.along1", "radius.along2"):
        node(model, name).input[0] = "others"


def constant_radius(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(9), "nine"))
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("Add", ["radius.within", "nine"], [radius.RADIUS], name=radius.RADIUS))


def of_another_row(model):
    """The radius of the row before: right on one row, wrong in a batch."""
    model.graph.initializer.append(numpy_helper.from_array(np.int64([0]), "first"))
    place = [n.name for n in model.graph.node].index("radius.flat") + 1
    model.graph.node.insert(place, helper.make_node("ReduceMin", ["radius.flat", "first"], ["least"], name="least"))
    node(model, "radius.norm").input[0] = "least"


def replaced(model, name, op):
    node(model, name).op_type = op


def told(model, key, value):
    entry = next(e for e in model.metadata_props if e.key == key)
    entry.value = value if isinstance(value, str) else value(entry.value)


def overridable(model):
    """A constant that whoever sends a request may replace."""
    model.graph.input.append(helper.make_tensor_value_info("radius.c", onnx.TensorProto.FLOAT, [3, 3]))


def twice(model):
    """ONNX Runtime takes the last of two constants of one name, sparse ones included."""
    values = helper.make_tensor("4.weight", onnx.TensorProto.FLOAT, [1], [100.0])
    place = helper.make_tensor("4.weight_place", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, place, [3, 6]))


GRAPHS = {
    "c": (lambda m: put(m, "radius.c", larger), "constant 'radius.c' makes the radius larger"),
    "c of one pair": (lambda m: put(m, "radius.c", one_entry), "constant 'radius.c' makes the radius larger"),
    "c below zero": (lambda m: put(m, "radius.c", lambda c: -np.abs(c)), "constant 'radius.c' makes the radius larger"),
    "c on the diagonal": (lambda m: put(m, "radius.c", np.abs), "constant 'radius.c' makes the radius larger"),
    "c not finite": (lambda m: put(m, "radius.c", lambda c: np.full_like(c, np.nan)), "holds NaN"),
    "k1": (lambda m: put(m, "radius.k1", lambda k: k * 0.9999), "constant 'radius.k1' makes the radius larger"),
    "k0": (lambda m: put(m, "radius.k0", lambda k: k * 0.9999), "constant 'radius.k0' makes the radius larger"),
    "k0 infinite": (lambda m: put(m, "radius.k0", lambda k: -np.inf), "constant 'radius.k0' makes the radius larger"),
    "shrink": (lambda m: put(m, "radius.shrink", lambda k: 1), "constant 'radius.shrink' is"),
    "most": (lambda m: put(m, "radius.most", lambda k: 2 * k), "constant 'radius.most' is"),
    "zero": (lambda m: put(m, "radius.zero", lambda k: 0.1), "constant 'radius.zero' is"),
    "finite": (lambda m: put(m, "radius.finite", lambda k: np.inf), "constant 'radius.finite' is"),
    "logits times a thousand": (scaled_logits, "node 'radius.along2' is not the one that computes the radius of these logits"),
    "a number added": (constant_radius, "node 'certified_radius' is not the one"),
    "norm of another row": (of_another_row, "node 'radius.norm' is not the one"),
    "largest of all classes": (lambda m: replaced(m, "radius.least", "ReduceMax"), "node 'radius.least' is not the one"),
    "error added": (lambda m: replaced(m, "radius.left", "Add"), "node 'radius.left' is not the one"),
    "a node too many": (lambda m: m.graph.node.append(helper.make_node("Relu", ["logits"], ["idle"])), "nodes that the other outputs"),
    "a constant too many": (lambda m: m.graph.initializer.append(numpy_helper.from_array(np.float32(1), "idle")), "its constants are"),
    "a weight": (lambda m: put(m, "2.weight", lambda w: w * 1.01), "layer '2': the bytes have norm"),
    "a large bias": (lambda m: put(m, "2.bias", lambda b: b + 1e6), "constant 'radius.k0' makes the radius larger"),
    "a large shift": (lambda m: put(m, "shift", lambda b: 1e6), "constant 'radius.k0' makes the radius larger"),
    "a larger scale": (lambda m: put(m, "scale", lambda b: b * 1.01), "promises a Lipschitz bound of"),
    "a curve": (lambda m: replaced(m, "3", "Tanh"), "the bytes prove none: Tanh at '3': nothing is known of how accurately"),
    "a jump": (lambda m: replaced(m, "3", "Sign"), "the bytes prove None"),
    "bound in the file": (lambda m: told(m, "lipschitz_bound", "0.001"), "the graph itself promises a Lipschitz bound of 0.001"),
    "norm in the file": (lambda m: told(m, "lipschitz_norm", "linf"), "is not understood"),
    "method in the file": (lambda m: told(m, "lipschitz_method", "product"), "the graph itself says that its bound is proved by 'product'"),
    "sensitivity in the file": (lambda m: told(m, "sensitivity", "[0.001, 1, 1]"), "the graph itself promises sensitivities"),
    "nothing in the file": (lambda m: m.ClearField("metadata_props"), "the graph says nothing of lipschitz_bound"),
    "no proof in the file": (lambda m: told(m, "specnorm.certificate.logits", lambda v: v[:-8]), None),
    "a replaceable constant": (overridable, "manifest names the inputs|the bytes prove none"),
    "a replaceable weight": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("4.weight", onnx.TensorProto.FLOAT, [3, 6])),
        "the bytes prove none: .* does not depend on one float32 input alone",
    ),
    "a constant twice": (twice, "twice|not unique"),
    "rubbish": (lambda m: m.graph.node[0].ClearField("op_type"), "not valid ONNX"),
}  # fmt: skip


@pytest.mark.parametrize("edit", GRAPHS)
def test_a_graph_that_was_changed_and_signed_anew_is_refused_by_name(true, edit):
    change, words = GRAPHS[edit]
    tampered = regraphed(true, change)
    if words is None:
        check(*tampered)  # the proof is searched again
        return
    with pytest.raises(VerificationError, match=words):
        check(*tampered)


def claimed(manifest, **changes):
    return manifest.model_copy(update=changes)


def lipschitz(**changes):
    return lambda m: claimed(m, lipschitz=m.lipschitz.model_copy(update={k: v(m.lipschitz) for k, v in changes.items()}))


def signature(**changes):
    return lambda m: claimed(m, signature=m.signature.model_copy(update={k: v(m.signature) for k, v in changes.items()}))


def layer(number, **changes):
    def change(m):
        layers = list(m.layers)
        layers[number] = layers[number].model_copy(update={k: v(layers[number]) for k, v in changes.items()})
        return claimed(m, layers=tuple(layers))

    return change


def tensor(place, **changes):
    return lambda s: tuple(t.model_copy(update=changes) if i == place else t for i, t in enumerate(s.outputs))


MANIFESTS = {
    "bound": (lipschitz(bound=lambda one: one.bound * 0.9999), "the manifest promises a Lipschitz bound"),
    "method": (lipschitz(method=lambda one: "product"), "the manifest says that its bound is proved by 'product'"),
    "no method": (lipschitz(method=lambda one: "trust me"), "proved by 'trust me', which gives None"),
    "sensitivity": (lipschitz(sensitivity=lambda one: (*one.sensitivity[1:], 1e-3)), "the manifest promises sensitivities"),
    "sensitivities": (lipschitz(sensitivity=lambda one: (*one.sensitivity, 9.0)), "the manifest promises sensitivities"),
    "labels": (signature(labels=lambda one: ("a", "b")), "the manifest has 2 labels for rows of"),
    "input": (signature(inputs=lambda one: (one.inputs[0].model_copy(update={"shape": (-1, 4)}),)), "gives the input 'input' the shape"),
    "datatype": (signature(outputs=tensor(0, datatype="FP64")), "manifest names the outputs logits"),
    "name": (signature(outputs=tensor(0, name="radius")), "the manifest's first output is 'radius'"),
    "no output": (signature(outputs=lambda one: ()), "first output is None"),
    "radius kept quiet": (signature(outputs=lambda one: one.outputs[:1]), "do not both say that certified_radius"),
    "radius of two": (signature(outputs=tensor(1, shape=(-1, 2))), "do not both say that certified_radius"),
    "norm of a layer": (layer(0, folded_sigma_upper=lambda one: one.folded_sigma_upper * 0.999), "layer '0': the bytes have norm"),
    "target of a layer": (layer(0, target=lambda one: 0.5), "is above its target 0.5"),
    "kind of a layer": (layer(0, kind=lambda one: "conv2d"), "layer '0': the bytes have linear"),
    "shape of a layer": (layer(0, shape=lambda one: (8, 6)), "layer '0': the bytes have linear"),
    "normalisation": (
        lambda m: claimed(m, input=m.input.model_copy(update={"normalisation": "none"})),
        r"'none' of the normalisation, which is '\(x - 0\.5\) \* 0\.5, inside the graph'",
    ),
    "name of a layer": (layer(0, name=lambda one: "1"), "the manifest tells of the layers"),
    "a layer left out": (lambda m: claimed(m, layers=m.layers[1:]), "the manifest tells of the layers"),
    "another output": (lambda m: claimed(m, verification={"lipschitz_bound/other": 1.0}), "1.0 of 'other', the bytes prove None"),
}  # fmt: skip


@pytest.mark.parametrize("claim", MANIFESTS)
def test_a_manifest_that_promises_what_the_bytes_do_not_prove_is_refused_by_name(true, claim):
    change, words = MANIFESTS[claim]
    with pytest.raises(VerificationError, match=words):
        check(change(true[0]), true[1])


def test_any_few_bits_that_change_are_refused_in_a_sentence_or_leave_a_radius_that_is_still_proved(true):
    """Most that are let pass change a weight without any norm growing: another network, whose certificate is as true."""
    manifest, files = true
    content, rng, passed = files["model.onnx"], np.random.default_rng(0), 0
    for _ in range(40):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=2):
            changed[place] ^= 1 << rng.integers(8)
        try:
            check(*signed(manifest, files, **{"model.onnx": bytes(changed)}))
        except VerificationError:
            continue
        passed += 1
    assert 0 < passed < 20


def test_names_that_are_no_text_are_refused_in_a_sentence(true):
    manifest, files = true
    broken = signed(manifest, files, **{"model.onnx": files["model.onnx"].replace(b"Relu", b"Rel\xf5")})
    with pytest.raises(VerificationError, match=r"model\.onnx holds a name that is no text"):
        check(*broken)


def test_an_export_of_ours_has_its_checkpoint_and_a_bundle_without_one_was_not_folded(true):
    manifest, files = true
    alone = manifest.model_copy(update={"files": {"model.onnx": manifest.files["model.onnx"]}})
    with pytest.raises(VerificationError, match="names no checkpoint that it would be the fold of"):
        check(alone, files)
    foreign = alone.model_copy(update={"origin": "import"})
    with pytest.raises(VerificationError, match=r"layer '0': the bytes, which were not folded, have norm .*, not 0\.5"):
        check(layer(0, sigma_upper=lambda one: 0.5)(foreign), files)


def test_what_promises_less_than_the_bytes_prove_is_let_pass(true):
    manifest, files = regraphed(true, lambda m: (put(m, "radius.k1", lambda k: 2 * k), put(m, "radius.k0", lambda k: 2 * k)))
    check(lipschitz(bound=lambda one: one.bound * 2)(manifest), files)


@pytest.mark.parametrize(
    ("shift", "scale", "words"),
    [
        (0.5, 0.25, "(x - 0.5) * 0.25, inside the graph"), (0.0, 0.1, "x * 0.1, inside the graph"),
        (-3.0, 1.0, "(x - -3.0), inside the graph"), (0.0, 1.0, "none"),
    ],
)  # fmt: skip
def test_the_manifest_says_which_normalisation_the_constant_includes_by_the_numbers_of_the_graph(shift, scale, words):
    spec = Architecture(input_shape=(4,), layers=(Linear(features=2),), shift=shift, scale=scale)
    told = InputDomain(units="volts", normalisation="whatever the caller says")
    manifest, files = export_bundle(sn.build(spec, seed=0), spec, labels=("a", "b"), domain=told)
    assert manifest.input == InputDomain(units="volts", normalisation=words)
    assert manifest.lipschitz.bound == pytest.approx(scale, rel=1e-3)
    check(manifest, files)


def test_rows_and_pairs_are_promised_only_where_they_are_proved():
    manifest, files = bundle_of((Linear(features=1),), labels=())
    with pytest.raises(VerificationError, match="radius goes by pairs of classes"):
        check(lipschitz(pairs=lambda one: True)(manifest), files)

    def mixed(model):
        model.graph.initializer.append(numpy_helper.from_array(np.int64([0]), "batch"))
        model.graph.node.append(helper.make_node("ReduceMin", ["0", "batch"], ["other"], name="other"))
        model.graph.node.append(helper.make_node("Add", ["0", "other"], ["prediction"], name="sum"))
        model.graph.node.remove(node(model, "prediction"))

    with pytest.raises(VerificationError, match="rows are independent, which the bytes do not prove"):
        check(*regraphed((manifest.model_copy(update={"lipschitz": manifest.lipschitz.model_copy(update={"bound": None})}), files), mixed))


def test_what_is_said_of_a_model_from_elsewhere_is_proved_again_too():
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Greater", ["x", "twenty"], ["far"]),
        helper.make_node("Softplus", ["x"], ["soft"]),
        helper.make_node("Where", ["far", "x", "soft"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["z"]),
    ]
    outputs = [value(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "yz"]
    graph = helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, ["N", 3])], outputs,
                              [numpy_helper.from_array(np.float32(20), "twenty")])  # fmt: skip
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    manifest, files = admit(content), {"model.onnx": content}
    assert manifest.verification["lipschitz_bound/z"] == pytest.approx(2)
    check(manifest, files)
    with pytest.raises(VerificationError, match=r"calls its bound rigorous, which it is not: .*a step of"):
        check(lipschitz(rigorous=lambda one: True)(manifest), files)
    with pytest.raises(VerificationError, match=r"promises a Lipschitz bound of 1\.9 of 'z'"):
        check(claimed(manifest, verification={"lipschitz_bound/z": 1.9}), files)


def test_a_model_from_elsewhere_with_a_radius_of_its_own_making_is_not_admitted(true):
    model = onnx.load_from_string(true[1]["model.onnx"])
    assert radius_fault(model) is None
    put(model, "radius.k1", lambda k: k / 2)
    with pytest.raises(AdmissionError, match=r"certified_radius is not what the bytes prove: its constant 'radius\.k1'"):
        admit(model.SerializeToString())
    model.graph.output.pop(0)
    assert radius_fault(model) == "the graph gives a certified_radius of nothing"


def test_an_export_that_comes_back_as_a_bare_graph_is_admitted_with_its_radius(true):
    manifest = admit(true[1]["model.onnx"])
    assert [output.name for output in manifest.signature.outputs] == ["logits", "certified_radius"]
    check(manifest, {"model.onnx": true[1]["model.onnx"]})


def test_the_matricised_norm_of_a_kernel_is_measured_on_the_bytes_too():
    manifest, files = bundle_of(IMAGES, shape=(1, 4, 4))
    check(manifest, files)
    with pytest.raises(VerificationError, match="layer '0': the bytes have norm"):
        check(layer(0, folded_sigma_upper=lambda one: one.folded_sigma_upper * 0.999)(manifest), files)


def test_every_node_and_every_constant_of_the_radius_counts(true):
    body, part = radius.detached(onnx.load_from_string(true[1]["model.onnx"]))
    certificate = proved(body, "logits").certificate()
    assert list(radius.faults(body, part, certificate)) == []
    for place in range(len(part.nodes)):
        part.nodes[place].input.append("input")
        assert any(repr(part.nodes[place].name) in fault for fault in radius.faults(body, part, certificate)), part.nodes[place].name
        part.nodes[place].input.pop()
    for held in part.weights:
        old = held.SerializeToString()
        values = numpy_helper.to_array(held)
        found = []
        for factor in (0.999, 1.001):
            with np.errstate(over="ignore"):
                value = values + 1 if values.dtype.kind == "i" else (values * factor + (factor - 1) * 1e-3).astype(values.dtype)
            held.CopyFrom(numpy_helper.from_array(value, held.name))
            found.append(any(repr(held.name) in fault for fault in radius.faults(body, part, certificate)))
        assert any(found), held.name
        assert all(found) or held.name in radius.SAFE
        held.ParseFromString(old)


def test_the_constants_of_the_export_leave_another_machine_room_to_prove_them_again(true):
    """Its linear algebra may give every proved number some last bits larger."""
    body, part = radius.detached(onnx.load_from_string(true[1]["model.onnx"]))
    found = proved(body, "logits").certificate()
    larger = radius.Certificate(found.pairs * (1 + 2.0**-24), found.error.times(1 + 2.0**-24))
    assert list(radius.faults(body, part, larger)) == []
    much = radius.Certificate(found.pairs * (1 + 2.0**-18), found.error.times(1 + 2.0**-18))
    assert len(list(radius.faults(body, part, much))) == 3


def test_of_many_classes_the_one_constant_must_serve_every_pair():
    manifest, files = bundle_of((Linear(features=129),), labels=tuple(map(str, range(129))))
    check(manifest, files)
    with pytest.raises(VerificationError, match=r"'radius\.c' makes the radius larger"):
        check(*regraphed((manifest, files), lambda m: put(m, "radius.c", lambda c: c * 1.0001)))


def written(folder, manifest, files):
    bundle.write(folder, manifest, files)
    return problem(folder)


def test_the_graph_must_be_what_its_checkpoint_folds_to(true, tmp_path):
    manifest, files = true
    other = bundle_of(labels=("a", "b", "d"))
    assert written(tmp_path / "true", manifest, files) is None
    changed = {
        "its labels or its input": signed(manifest, files, **{"checkpoint.safetensors": other[1]["checkpoint.safetensors"]}),
        "another architecture": signed(manifest, files, **{"architecture.json": bundle_of((Linear(features=3),))[1]["architecture.json"]}),
        "the sigma_upper of its layer '0'": (layer(0, sigma_upper=lambda one: one.sigma_upper * 0.9)(manifest), files),
        "the sigma_estimate of its layer '2'": (layer(1, sigma_estimate=lambda one: one.sigma_estimate * 0.9)(manifest), files),
        "its layer '4' is": (layer(2, constraint=lambda one: "none")(manifest), files),
        "no checkpoint of specnorm": signed(manifest, files, **{"checkpoint.safetensors": b"junk"}),
    }
    for place, (words, bundled) in enumerate(changed.items()):
        assert words in (written(tmp_path / str(place), *bundled) or ""), words


def test_a_graph_of_other_weights_with_true_promises_is_no_export_of_its_checkpoint(true, tmp_path):
    """Everything is proved anew of the other weights, so only the fold of the checkpoint tells."""
    spec = Architecture(input_shape=(5,), layers=(Linear(features=3),), shift=0.5, scale=0.5)
    one, two = (sn.build(spec, seed=seed) for seed in (0, 1))
    options = {"labels": LABELS}
    manifest, files = export_bundle(one, spec, **options)
    other, others = export_bundle(two, spec, **options)
    same = {"sigma_upper", "operator_sigma_upper", "sigma_estimate", "stable_rank"}
    layers = tuple(
        a.model_copy(update={name: getattr(b, name) for name in same}) for a, b in zip(other.layers, manifest.layers, strict=True)
    )
    mixed = signed(other.model_copy(update={"layers": layers}), others, **{"checkpoint.safetensors": files["checkpoint.safetensors"]})
    check(*mixed)
    assert written(tmp_path / "mixed", *mixed) == "model.onnx is not what checkpoint.safetensors folds to: '0.weight' differs"


def test_a_graph_of_the_same_weights_and_other_nodes_is_no_export_of_its_checkpoint(tmp_path):
    manifest, files = bundle_of((Linear(features=4), Relu(), Linear(features=3)))
    other, others = bundle_of((Linear(features=4), LeakyRelu(slope=0.25), Linear(features=3)))
    own = {name: files[name] for name in ("checkpoint.safetensors", "architecture.json")}
    mixed = signed(other, others, **own)
    check(*mixed)
    assert manifest.layers == other.layers
    assert written(tmp_path / "mixed", *mixed) == "model.onnx is not the graph of checkpoint.safetensors: its nodes are others"


def test_a_regressor_s_file_must_say_what_it_promises():
    manifest, files = bundle_of((Linear(features=4), Sort(), Linear(features=2)), labels=())
    check(manifest, files)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(files["model.onnx"]).metadata_props}
    assert json.loads(metadata["lipschitz_bound"]) == manifest.lipschitz.bound
    assert len(json.loads(metadata["sensitivity"])) == 2
    with pytest.raises(VerificationError, match="the graph says nothing of"):
        check(*regraphed((manifest, files), lambda m: m.ClearField("metadata_props")))


def test_a_network_without_a_proved_error_has_no_radius_and_its_bundle_is_true():
    manifest, files = bundle_of((Linear(features=4), Tanh(), Linear(features=3)))
    assert [output.name for output in manifest.signature.outputs] == ["logits"]
    check(manifest, files)
