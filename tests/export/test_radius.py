"""The radius as the graph computes it in float32, against its definition in rationals."""

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import verify
from export.audit.rounding import Affine
from export.graph import Graph
from export.radius import MOST_PAIRS, SMALLEST, Certificate, coefficients, pairs_of, safe_k0, write
from export.to_onnx import OPSET

ROOT = Fraction(14142135623730951, 10**16)  # above sqrt(2) by less than 2^-53


def served(x, certificate):
    """Logits that are the input itself, and the radius that goes with them."""
    graph, k = Graph(), x.shape[1]
    graph.node("Identity", ["input"], "logits")
    write(graph, certificate, k, "input", "logits")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("input", ["N", k]), ("logits", ["N", k]), ("certified_radius", ["N"]))]  # fmt: skip
    made = helper.make_graph(graph.nodes, "g", values[:1], values[1:], graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return verify.run(model.SerializeToString(), x)["certified_radius"]


def exact(row, certificate):
    """The least distance at which another class may win, in rationals; the norm and both roots rounded towards a larger radius."""
    values = [Fraction(float(value)) for value in row]
    best = max(range(len(values)), key=lambda i: values[i])
    norm = Fraction(float(np.linalg.norm(row.astype(np.float64)))) * (1 - Fraction(1, 2**48))
    slope, offset = Fraction(certificate.error.slope), Fraction(certificate.error.offset)
    low = ROOT * (1 - Fraction(1, 2**50))
    error = 2 * low * (slope * norm + offset)
    return max(Fraction(0), min(
        (values[best] - values[j] - error) / (Fraction(float(certificate.pairs[best, j])) + low * slope)
        for j in range(len(values)) if j != best
    ))  # fmt: skip


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_radius_in_float32_is_below_the_exact_one_and_hardly(scale, classes):
    rng = np.random.default_rng(classes)
    pairs = rng.uniform(0.2, 2.0, (classes, classes))
    pairs = (pairs + pairs.T) / 2
    certificate = Certificate(pairs, Affine(1e-6, scale * 3e-5))
    x = (rng.standard_normal((200, classes)) * scale).astype(np.float32)
    x[:20] = x[:20, :1] + rng.standard_normal((20, classes)).astype(np.float32) * np.float32(scale * 1e-4)  # close races
    radius = served(x, certificate)
    assert (radius[20:] > 0).mean() > 0.9
    for row, given in zip(x, radius, strict=True):
        true = exact(row, certificate)
        assert Fraction(float(given)) <= true
        assert float(given) >= float(true) * (1 - 1e-4) - scale * 1e-5


def test_every_class_is_held_against_every_other_by_the_constant_of_that_pair():
    pairs = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    certificate = Certificate(pairs, Affine(0.0, 0.0))
    x = np.float32([[3, 1, 0], [0, 3, 2], [1, 0, 5], [2, 2, 0]])
    np.testing.assert_allclose(served(x, certificate), [0.75, 0.5, 1.0, 0.0], rtol=1e-5)


def test_beyond_some_classes_the_largest_constant_serves_for_all():
    classes = MOST_PAIRS + 1
    pairs = np.full((classes, classes), 0.5)
    pairs[3, 4] = pairs[4, 3] = 2.0
    x = np.zeros((1, classes), dtype=np.float32)
    x[0, 0] = 4.0
    np.testing.assert_allclose(served(x, Certificate(pairs, Affine(0.0, 0.0))), [2.0], rtol=1e-5)


@pytest.mark.parametrize("lipschitz", [1e-3, 1.0, 37.5])
def test_the_coefficients_err_towards_a_smaller_radius(lipschitz):
    certificate = Certificate(pairs_of(lipschitz, 3), Affine(1e-5, 3e-4))
    c, k1, k0 = coefficients(certificate, 64)
    lip, slope, offset = Fraction(lipschitz), Fraction(1e-5), Fraction(3e-4)
    assert 2 * (Fraction(float(c[0, 1])) * (lip + slope)) ** 2 <= 1
    assert Fraction(float(k1)) ** 2 >= 8 * slope**2
    assert Fraction(float(k0)) ** 2 >= 8 * offset**2
    assert (np.diagonal(c) < 0).all()


def test_two_logits_that_always_move_together_never_change_places():
    x = np.float32([[1, 0]])
    assert served(x, Certificate(np.zeros((2, 2)), Affine(0.0, 0.0)))[0] > 1e15


@pytest.mark.parametrize("extreme", [3e38, 1e20, np.inf, np.nan])
@pytest.mark.parametrize("classes", [2, MOST_PAIRS + 1])
def test_what_is_not_finite_and_numbers_whose_norm_overflows_have_no_radius(extreme, classes):
    certificate = Certificate(pairs_of(1.0, classes), Affine(1e-6, 1e-6))
    x = np.zeros((3, classes), dtype=np.float32)
    x[0, :2], x[1, 0], x[2] = (extreme, -extreme), extreme, extreme
    assert (served(x, certificate) == 0).all()


def test_the_graph_holds_no_weights_but_the_constants_of_the_pairs():
    graph = Graph()
    write(graph, Certificate(pairs_of(1.0, 3), Affine(0.0, 0.0)), 5, "input", "logits")
    floats = {w.name: numpy_helper.to_array(w) for w in graph.weights if w.data_type == TensorProto.FLOAT}
    assert set(floats) == {"radius.c", "radius.k0", "radius.k1", "radius.shrink", "radius.zero", "radius.finite", "radius.most"}
    assert floats["radius.shrink"] < 1


def test_what_the_norm_of_tiny_numbers_loses_below_the_normal_range_is_added():
    """A million numbers of 2^-64 have the norm 2^-54, and squares that float32 flushes to 0."""
    certificate = Certificate(pairs_of(1.0, 2), Affine(2.0, 0.0))
    entries, lost = 2**20, 2.0**-54
    k0 = coefficients(certificate, entries)[2]
    assert k0 >= 2 * 2**0.5 * 2.0 * lost
    assert safe_k0(k0, certificate, entries)
    assert not safe_k0(np.float32(SMALLEST * 2), certificate, entries)
    assert not safe_k0(np.float32(SMALLEST / 2), Certificate(pairs_of(1.0, 2), Affine(0.0, 0.0)), 1)
