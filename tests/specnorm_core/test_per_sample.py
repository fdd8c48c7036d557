"""Per-sample gradients, norms and sums of every rule against two definitions: micro-batches of one, and ``vmap(grad)``; in float64."""

import math
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

import specnorm_core as sn
from specnorm_core import gradients as samplers
from specnorm_core import per_sample

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**31)
options = st.fixed_dictionaries({
    "gradient_mode": st.sampled_from(["full", "simplified"]),
    "constraint": st.sampled_from(["unit", "cap"]),
    "target": st.sampled_from([0.3, 1.0, 50.0]),  # a cap of 50 leaves the weight alone, one of 0.3 binds
})  # fmt: skip


def micro_batches(layer, x, g):
    """The gradient of a batch of one, once for each sample."""
    found = {}
    for b in range(len(x)):
        layer.zero_grad()
        layer(x[b : b + 1]).backward(g[b : b + 1])
        for name, parameter in layer.named_parameters():
            found.setdefault(name, []).append(parameter.grad.clone())
    return {name: torch.stack(each) for name, each in found.items()}


def vectorised(layer, x, g):
    """The gradient of one sample, under ``vmap``."""

    def loss(parameters, x, g):
        return (functional_call(layer, parameters, (x[None],)) * g[None]).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))({name: p.detach() for name, p in layer.named_parameters()}, x, g)


def mismatches(layer, x, g=None):
    """What the fast results of ``layer`` have against the definitions: one line for every one that is off."""
    torch.manual_seed(1)
    g = torch.randn_like(layer(x)) if g is None else g
    weights = torch.rand(len(x), dtype=torch.float64)
    names = {parameter: name for name, parameter in layer.named_parameters()}
    fast = {names[p]: each for p, each in per_sample.gradients(layer, x, g).items()}
    sums = {names[p]: each for p, each in per_sample.weighted_sum(layer, x, g, weights).items()}
    definitions = {"micro-batches": micro_batches(layer, x, g), "vmap": vectorised(layer, x, g)}
    wrong = []
    for title, slow in definitions.items():
        scale = max(float(each.abs().max()) for each in [*slow.values(), g * x.double().norm()])
        if set(fast) != set(slow) or set(sums) != set(slow):
            wrong.append(f"{title}: parameters {sorted(fast)}, {sorted(sums)}, not {sorted(slow)}")
            continue
        for name, each in slow.items():
            if fast[name].shape != each.shape or float((fast[name] - each).abs().max()) > 1e-9 * scale:
                wrong.append(f"{title}: gradients of {name}")
            if float((sums[name] - torch.tensordot(weights, each, dims=1)).abs().max()) > 1e-9 * scale * len(x):
                wrong.append(f"{title}: sum of {name}")
        true = sum(each.flatten(1).square().sum(dim=1) for each in slow.values()).sqrt()
        for what, value in (("norms", per_sample.norms(layer, x, g)), ("squared", per_sample.squared_norms(layer, x, g).sqrt())):
            high = (true.square() * (1 + 2e-9) + 1e-11 * scale**2).sqrt()  # what cancels in a square is known to 1e-11 of its terms
            if not bool(((value >= true * (1 - 1e-14)) & (value <= high)).all()):
                wrong.append(f"{title}: {what}, {value.tolist()} for {true.tolist()}")
    return wrong


@few
@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.sampled_from([(), (1,), (3,), (2, 2), (9,)]), st.booleans(), options, seeds)
def test_linear_layers_on_rows_and_sequences(shape, positions, bias, options, seed):
    torch.manual_seed(seed)
    m, n = shape
    x = torch.randn(3, *positions, n, dtype=torch.float64)
    assert not mismatches(sn.SpectralLinear(n, m, bias, **options).double(), x)
    assert not mismatches(nn.Linear(n, m, bias).double(), x)


geometries = st.fixed_dictionaries({
    "kernel_size": st.integers(1, 3),
    "stride": st.integers(1, 2),
    "padding": st.integers(0, 2),
    "dilation": st.integers(1, 2),
    "groups": st.sampled_from([1, 2]),
    "bias": st.booleans(),
    "padding_mode": st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
})  # fmt: skip


@few
@given(st.sampled_from([1, 1, 2, 2, 3]), geometries, options, st.sampled_from(["operator", "matricised"]), seeds)
def test_convolutions_over_one_to_three_axes(axes, geometry, options, norm, seed):
    torch.manual_seed(seed)
    size = (7, 6, 5)[:axes]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    spectral, plain = getattr(sn, f"SpectralConv{axes}d"), getattr(nn, f"Conv{axes}d")
    assert not mismatches(spectral(4, 2, input_size=size, norm=norm, **geometry, **options).double(), x)
    assert not mismatches(plain(4, 2, **geometry).double(), x)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_plain_convolution_s_padding_may_be_a_word(padding):
    torch.manual_seed(0)
    for mode in ("zeros", "circular"):
        layer = nn.Conv2d(2, 3, (2, 3), dilation=(1, 2), padding=padding, padding_mode=mode).double()
        assert not mismatches(layer, torch.randn(2, 2, 7, 7, dtype=torch.float64))


@few
@given(geometries, st.integers(0, 1), options, st.sampled_from(["operator", "matricised"]), seeds)
def test_transposed_convolutions(geometry, output_padding, options, norm, seed):
    torch.manual_seed(seed)
    geometry = {**geometry, "padding_mode": "zeros", "padding": min(geometry["padding"], 1)}
    geometry["output_padding"] = min(output_padding, max(geometry["stride"], geometry["dilation"]) - 1)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    assert not mismatches(sn.SpectralConvTranspose2d(4, 2, input_size=(5, 4), norm=norm, **geometry, **options).double(), x)
    assert not mismatches(nn.ConvTranspose2d(4, 2, **geometry).double(), x)


@few
@given(
    st.tuples(st.integers(2, 6), st.integers(1, 4)), st.sampled_from([(), (1,), (5,), (2, 3)]), st.sampled_from([None, 0]), options, seeds
)
def test_embeddings_that_look_an_entry_up_once_or_often(shape, positions, padding_idx, options, seed):
    torch.manual_seed(seed)
    x = torch.randint(shape[0], (3, *positions))
    layer = sn.SpectralEmbedding(*shape, padding_idx=padding_idx, **options).double()
    with torch.no_grad():
        layer.weight[0] += 1  # what the untrained entry holds reaches sigma, and the gradient through it
    assert not mismatches(layer.rederive(), x)
    assert not mismatches(nn.Embedding(*shape, padding_idx=padding_idx).double(), x)


@pytest.mark.parametrize("target", [0.3, 50.0])
def test_a_cap_bends_the_gradient_where_it_binds_and_nowhere_else(target):
    torch.manual_seed(0)
    options = {"constraint": "cap", "target": target}
    rows, words = torch.randn(3, 5, dtype=torch.float64), torch.randint(6, (3, 2))
    images = torch.randn(3, 2, 4, dtype=torch.float64)
    assert not mismatches(sn.SpectralLinear(5, 4, **options).double(), rows)
    assert not mismatches(sn.SpectralLinear(5, 4, **options).double(), rows[:, None])
    assert not mismatches(sn.SpectralEmbedding(6, 3, **options).double(), words)
    assert not mismatches(sn.SpectralConv1d(2, 3, 2, input_size=4, **options).double(), images)


@few
@given(st.sampled_from([(), (1,), (3,), (2, 2)]), st.booleans(), seeds)
def test_normalisations(positions, bias, seed):
    torch.manual_seed(seed)
    x = torch.randn(3, *positions, 2, 4, dtype=torch.float64) + 10
    for shape in ((4,), (2, 4)):
        layer = nn.LayerNorm(shape, bias=bias).double()
        nn.init.normal_(layer.weight)
        assert not mismatches(layer, x)
    layer = nn.GroupNorm(2, 4).double()
    nn.init.normal_(layer.weight)
    assert not mismatches(layer, x.movedim(-1, 1).contiguous())
    assert not mismatches(layer, x[..., 0, :].movedim(-1, 1).contiguous())


def test_an_embedding_that_ties_samples_together_is_refused():
    for option in ({"scale_grad_by_freq": True}, {"max_norm": 1.0}):
        with pytest.raises(ValueError, match="ties the samples"):
            per_sample.norms(nn.Embedding(4, 2, **option), torch.zeros(3, dtype=torch.int64), torch.randn(3, 2))


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("positions", [(), (4,)])
def test_gradients_are_those_of_the_seed_s_sampler(mode, positions):
    torch.manual_seed(0)
    layer = sn.SpectralLinear(5, 4, gradient_mode=mode, target=0.7).double()
    x, g = torch.randn(3, *positions, 5, dtype=torch.float64), torch.randn(3, *positions, 4, dtype=torch.float64)
    expected = getattr(samplers, f"{mode}_sampler")(layer, x, g)
    found = per_sample.gradients(layer, x, g)
    assert set(found) == set(expected)
    assert all(torch.allclose(found[p], expected[p], rtol=1e-12, atol=1e-14) for p in expected)


def exactly(layer, x, g):
    """The norms of a dense layer's per-sample gradients, of the very numbers stored, in 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        exact = lambda tensor: mpmath.matrix(tensor.double().tolist())  # noqa: E731  # one line says it
        W, (u, v) = exact(layer.weight.detach()), map(exact, layer.pair)
        sigma = (u.T * W * v)[0]
        capped = layer.constraint == "cap" and sigma <= layer.target
        scale = mpmath.mpf(1) if capped else layer.target / sigma
        found = []
        for row, out in zip(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1]), strict=True):
            G = sum((exact(b) * exact(a).T for a, b in zip(row, out, strict=True)), mpmath.zeros(W.rows, W.cols))
            bias = sum((exact(b) for b in out), mpmath.zeros(W.rows, 1))
            if layer.gradient_mode == "full" and not capped:
                lam = sum(G[i, j] * W[i, j] for i in range(W.rows) for j in range(W.cols)) / sigma
                G -= lam * u * v.T
            square = scale**2 * sum(entry**2 for entry in G)
            found.append(mpmath.sqrt(square + (sum(entry**2 for entry in bias) if layer.bias is not None else 0)))
        return found


def understated(found, true):
    return [f"{float(a)} < {float(b)}" for a, b in zip(found.tolist(), true, strict=True) if a < b]


ADVERSARIAL = {
    "random": lambda u, v, noise: (noise(v), noise(u)),
    "parallel to u and v": lambda u, v, noise: (3 * v, 2 * u),
    "nearly parallel": lambda u, v, noise: (v + 1e-4 * noise(v), u + 1e-4 * noise(u)),
    "parallel to v alone": lambda u, v, noise: (v, noise(u)),
    "parallel to u alone": lambda u, v, noise: (noise(v), u),
    "apart in one digit": lambda u, v, noise: (v + 1e-7 * noise(v), u),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scales", [(1, 1, 1), (1e-25, 1, 1), (1e25, 1, 1), (1, 1e-30, 1e-30), (1, 1e30, 1e30), (1e-12, 1e-30, 1e20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_never_below_the_true_ones(dtype, scales, bias):
    """Of a dense layer, in the type of the weight, on inputs where its terms cancel, at the edges of the type's range."""
    torch.manual_seed(0)
    layer = sn.SpectralLinear(9, 6, bias).to(dtype)
    with torch.no_grad():
        layer.weight *= scales[0]
    layer.rederive(3)  # not converged: W v is not sigma u
    u, v = layer.pair
    for positions in ((), (2,)):
        x, g = [], []
        for case in ADVERSARIAL.values():
            pairs = [case(u, v, torch.randn_like) for _ in range(positions[0] if positions else 1)]
            x.append(torch.stack([pair[0] for pair in pairs]).reshape(*positions, -1))
            g.append(torch.stack([pair[1] for pair in pairs]).reshape(*positions, -1))
        x, g = torch.stack(x) * scales[1], torch.stack(g) * scales[2]
        true = exactly(layer, x, g)
        found = per_sample.norms(layer, x, g)
        assert not understated(found, true)
        size = x.flatten(1).double().norm(dim=1) * g.flatten(1).double().norm(dim=1) * float(layer.target / layer.sigma().double())
        excess = torch.tensor([float(a - b) for a, b in zip(found.tolist(), true, strict=True)], dtype=torch.float64)
        assert float((excess / (size + torch.tensor([float(b) for b in true], dtype=torch.float64))).max()) < (
            1e-5 if dtype == torch.float32 else 1e-11 if not positions else 1e-6
        )


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: sn.SpectralConv2d(3, 4, 3, padding=1, input_size=5, bias=False),
        lambda: sn.SpectralConv2d(3, 4, 3, padding=1, input_size=2, bias=False),  # few positions: the Gram form
        lambda: sn.SpectralConv1d(4, 4, 3, groups=2, input_size=9, bias=False),
        lambda: sn.SpectralConvTranspose2d(3, 4, 3, stride=2, input_size=4, bias=False),
    ],
    ids=["many positions", "few positions", "groups", "transposed"],
)
def test_norms_of_float32_convolutions_are_never_below_those_of_the_same_numbers_in_float64(make, parallel, scale):
    """The worst input is the pair itself: the gradient is along d sigma / dW, and cancels."""
    torch.manual_seed(0)
    layer = make()
    u, v = layer.pair
    x, g = (v, u) if parallel else (torch.randn_like(v.repeat(4, *[1] * (v.dim() - 1))), torch.randn(4, *u.shape[1:]))
    x, g = x * scale, g * scale
    wide = make().double()
    with torch.no_grad():
        wide.weight.copy_(layer.weight)
    wide.set_pair(u, v)
    true = micro_batches(wide, x.double(), g.double())["weight"].flatten(1).norm(dim=1)
    found = per_sample.norms(layer, x, g)
    size = x.double().norm() * g.double().norm()
    assert bool((found >= true).all())
    assert bool((found <= true * (1 + 1e-6) + 1e-5 * size).all())
    if not parallel:
        assert bool((found <= true * (1 + 1e-6)).all())


def test_the_norm_of_a_layer_norm_holds_where_the_mean_is_a_million_times_the_spread():
    mpmath = pytest.importorskip("mpmath")
    torch.manual_seed(0)
    layer = nn.LayerNorm(5, eps=1e-12, bias=False)
    x, g = 3e6 + torch.randn(6, 5), torch.randn(6, 5)
    with mpmath.workdps(50):
        for row, out, found in zip(x.tolist(), g.tolist(), per_sample.norms(layer, x, g).tolist(), strict=True):
            values = [mpmath.mpf(each) for each in row]
            mean = sum(values) / 5
            spread = mpmath.sqrt(sum((each - mean) ** 2 for each in values) / 5 + mpmath.mpf(1e-12))
            true = mpmath.sqrt(sum((mpmath.mpf(b) * (a - mean) / spread) ** 2 for a, b in zip(values, out, strict=True)))
            assert true <= found <= true * (1 + 1e-10)


def test_the_exact_norm_of_a_wide_float32_layer_is_hit_closely_from_above():
    torch.manual_seed(0)
    layer = sn.SpectralLinear(512, 256)
    x, g = torch.randn(64, 512), torch.randn(64, 256)
    wide = sn.SpectralLinear(512, 256).double()
    with torch.no_grad():
        wide.weight.copy_(layer.weight)
    wide.set_pair(*layer.pair)
    true = per_sample.norms(wide, x.double(), g.double())
    excess = per_sample.norms(layer, x, g) / true - 1
    assert float(excess.min()) > -1e-12
    assert float(excess.max()) < 1e-4


def test_a_norm_of_the_mode_in_use():
    """Full's norm differs from simplified's, and can be the larger one."""
    torch.manual_seed(0)
    full, simplified = (sn.SpectralLinear(4, 4, gradient_mode=mode).double() for mode in ("full", "simplified"))
    simplified.load_state_dict(full.state_dict())
    simplified.set_pair(*full.pair)
    x, g = torch.randn(64, 4, dtype=torch.float64), torch.randn(64, 4, dtype=torch.float64)
    ratio = per_sample.norms(full, x, g) / per_sample.norms(simplified, x, g)
    assert float(ratio.min()) < 0.99
    assert float(ratio.max()) > 1.0001


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), lambda: sn.SpectralLinear(3, 2)], ids=["plain", "spectral"])
def test_a_frozen_parameter_counts_for_nothing(make):
    layer = make()
    x, g = torch.randn(4, 3), torch.randn(4, 2)
    both = per_sample.squared_norms(layer, x, g)
    layer.bias.requires_grad_(False)
    without = per_sample.squared_norms(layer, x, g)
    assert torch.allclose(both - without, g.double().square().sum(dim=1), rtol=1e-6)
    assert set(per_sample.gradients(layer, x, g)) == set(per_sample.weighted_sum(layer, x, g, torch.ones(4))) == {layer.weight}
    layer.weight.requires_grad_(False)
    assert per_sample.norms(layer, x, g).tolist() == [0.0] * 4


def test_an_empty_batch_has_no_norms_and_a_sum_of_zero():
    layer = sn.SpectralLinear(3, 2)
    x, g = torch.randn(0, 3), torch.randn(0, 2)
    assert per_sample.norms(layer, x, g).shape == (0,)
    assert per_sample.gradients(layer, x, g)[layer.weight].shape == (0, 2, 3)
    assert not per_sample.weighted_sum(layer, x, g, torch.ones(0))[layer.weight].any()


def test_samples_are_taken_a_few_at_a_time_and_none_is_lost(monkeypatch):
    torch.manual_seed(0)
    layer = sn.SpectralLinear(5, 3)
    x, g = torch.randn(11, 5), torch.randn(11, 3)
    whole = per_sample.norms(layer, x, g), per_sample.norms(layer, x[:, None], g[:, None])
    monkeypatch.setattr("specnorm_core.per_sample.base.CHUNK", 70)
    for before, after in zip(whole, (per_sample.norms(layer, x, g), per_sample.norms(layer, x[:, None], g[:, None])), strict=True):
        assert torch.allclose(before, after, rtol=1e-6)


def test_the_norm_never_stores_a_gradient_per_sample():
    """Nor does the sum: no tensor is as large as the batch's gradients together, nor as four weights."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            nonlocal largest
            result = function(*arguments, **(named or {}))
            for each in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel() * each.itemsize)
            return result

    layer = sn.SpectralLinear(256, 256)
    x, g = torch.randn(32, 256), torch.randn(32, 256)
    with Watch():
        per_sample.norms(layer, x, g)
        per_sample.weighted_sum(layer, x, g, torch.rand(32))
    assert 256 * 256 * 4 <= largest <= 4 * 256 * 256 * 4


def test_a_layer_without_a_rule_is_refused_with_the_list_of_those_that_have_one():
    for layer in (nn.Bilinear(2, 2, 2), type("Mine", (nn.Linear,), {})(2, 2), sn.SpectralLinear(2, 2)):
        x, g = torch.randn(3, 2), torch.randn(3, 2)
        if type(layer) is sn.SpectralLinear:
            per_sample.norms(layer, x, g)
            continue
        for call in (per_sample.gradients, per_sample.norms, lambda *a: per_sample.weighted_sum(*a, torch.ones(3))):
            with pytest.raises(ValueError, match=rf"{type(layer).__name__}.*Linear.*SpectralLinear"):
                call(layer, x, g)
    assert per_sample.norms(nn.ReLU(), torch.randn(3, 2), torch.randn(3, 2)).tolist() == [0.0] * 3


def test_a_parameter_that_the_rule_does_not_know_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="weight_g"):
        per_sample.norms(layer, torch.randn(4, 3), torch.randn(4, 2))


def test_sizes_that_do_not_agree_are_refused():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="4 samples and g 5"):
        per_sample.norms(layer, torch.randn(4, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="one entry for each of 4 samples"):
        per_sample.weighted_sum(layer, torch.randn(4, 3), torch.randn(4, 2), torch.ones(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_autocast_change_no_guarantee(dtype):
    torch.manual_seed(0)
    layer = sn.SpectralLinear(9, 6, bias=False).to(dtype)
    x, g = torch.randn(4, 9).to(dtype), torch.randn(4, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = per_sample.norms(layer, x, g)
        total = per_sample.weighted_sum(layer, x, g, torch.ones(4))
    assert not understated(found, exactly(layer, x, g))
    assert total[layer.weight].dtype == dtype


def test_products_cut_short_by_choice_do_not_understate():
    """Where float32 products may be rounded to TF32 or bfloat16, the norm's product is in float64."""
    torch.manual_seed(0)
    layer = sn.SpectralLinear(20, 20, bias=False)
    u, v = layer.pair
    x, g = v + 1e-3 * torch.randn(8, 20), u + 1e-3 * torch.randn(8, 20)
    torch.set_float32_matmul_precision("medium")
    try:
        found = per_sample.norms(layer, x, g)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not understated(found, exactly(layer, x, g))
    assert bool((found < per_sample.norms(layer, x, g)).all())  # less is added for rounding, whether or not this machine cuts


def exact_layer(make):
    """A layer whose sigma is 4 and whose pair is an entry each of u and v, of small integers: float64 makes no error with it."""
    layer = make().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
        if isinstance(layer, sn.layers.SpectralLayer):
            u, v = (torch.zeros_like(part) for part in layer.pair)
            u.view(-1)[0] = v.view(-1)[0] = 1.0
            touched = torch.autograd.functional.jacobian(lambda weight: (u * layer.forward_map(v, weight)).sum(), layer.weight.detach())
            layer.weight[touched != 0] = 4 / touched[touched != 0] / touched.count_nonzero()
            layer.set_pair(u, v)
            assert float(layer.sigma()) == 4
    return layer


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(5, 3), (5,)),
        (lambda: nn.Linear(5, 3), (2, 5)),  # the Gram form
        (lambda: nn.Linear(2, 3), (9, 2)),  # the matrices themselves
        (lambda: nn.Conv1d(4, 2, 2, groups=2, bias=False), (4, 3)),
        (lambda: nn.Conv2d(2, 2, 2, bias=False), (2, 5, 5)),
        (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 2, 2, 2)),
        (lambda: nn.ConvTranspose2d(2, 2, 2), (2, 3, 3)),
        (lambda: nn.Embedding(5, 3), (4,)),
        *(
            (lambda mode=mode, make=make: make(mode), shape)
            for mode in ("full", "simplified")
            for make, shape in (
                (lambda mode: sn.SpectralLinear(5, 3, bias=False, gradient_mode=mode), (5,)),
                (lambda mode: sn.SpectralLinear(5, 3, bias=False, gradient_mode=mode), (2, 5)),
                (lambda mode: sn.SpectralLinear(2, 3, bias=False, gradient_mode=mode), (9, 2)),
                (lambda mode: sn.SpectralConv2d(2, 2, 2, input_size=5, bias=False, gradient_mode=mode), (2, 5, 5)),
                (lambda mode: sn.SpectralConv2d(2, 2, 2, input_size=2, bias=False, gradient_mode=mode), (2, 2, 2)),
                (lambda mode: sn.SpectralEmbedding(5, 3, gradient_mode=mode), (4,)),
            )
        ),
    ],
)
def test_norms_of_every_kind_are_rounded_up_where_their_terms_cancel(make, shape):
    """Of integers, so that the true norm is known as a fraction; what is far larger cancels, among positions or against u and v.

    Input and gradient are a coarse part and a fine one, of few bits each: of these float64 makes the four gradients without an error.
    """
    torch.manual_seed(0)
    layer = exact_layer(make)
    looked_up = isinstance(layer, nn.Embedding | sn.SpectralEmbedding)
    x = torch.randint(5, (60, 1)).expand(60, *shape) if looked_up else torch.zeros(60, *shape).double()
    g = torch.randint(-(2**16), 2**16, (2, *layer(x).shape)).double()
    if len(shape) == 1 and not looked_up:  # rows: the coarse parts are along the pair
        inputs = torch.stack([torch.zeros_like(x), torch.randint_like(x, -(2**16), 2**16)])
        inputs[0, :, 0] = 2.0**16
        g[0, :, 0], g[0, :, 1:] = 2.0**16, 0
    else:  # the coarse inputs are alike and their gradients add up to zero
        inputs = torch.stack([torch.full_like(x, 2**16), torch.randint_like(x, -(2**16), 2**16)])
        axis = range(1, g[0].ndim - 1) if isinstance(layer, nn.Linear | sn.SpectralLinear) or looked_up else range(2, g[0].ndim)
        positions = g[0].movedim(tuple(axis), tuple(range(-len(axis), 0))).flatten(-len(axis))
        half = positions.shape[-1] // 2
        positions[..., :half] = positions[..., :half].abs() + 2**16
        positions[..., half:] = 0
        positions[..., half : 2 * half] = -positions[..., :half]
        shaped = positions.unflatten(-1, [g[0].shape[at] for at in axis])
        g[0] = shaped.movedim(tuple(range(-len(axis), 0)), tuple(axis))
    parts = [(Fraction(2**36), 0), (Fraction(1), 1)]
    outer = [(Fraction(1), x)] if looked_up else [(Fraction(2**20), inputs[0]), (Fraction(1), inputs[1])]
    pieces = [(a * b, list(per_sample.gradients(layer, one, g[at]).items())) for a, one in outer for b, at in parts]
    squares = [Fraction(0)] * len(x)
    for at, (parameter, _) in enumerate(pieces[0][1]):
        bias = parameter is getattr(layer, "bias", None)  # in which the input has no part
        chosen = [(b, per_sample.gradients(layer, inputs[1] if not looked_up else x, g[i])[parameter]) for b, i in parts] if bias else [
            (factor, found[at][1]) for factor, found in pieces
        ]  # fmt: skip
        for row in range(len(x)):
            columns = zip(*(each[row].flatten().tolist() for _, each in chosen), strict=True)
            squares[row] += sum(sum(f * Fraction(e) for (f, _), e in zip(chosen, entry, strict=True)) ** 2 for entry in columns)
    whole = x if looked_up else 2**20 * inputs[0] + inputs[1]
    g = 2**36 * g[0] + g[1]
    found = per_sample.norms(layer, whole, g)
    assert all(Fraction(norm) ** 2 >= square for norm, square in zip(found.tolist(), squares, strict=True))
    sizes = g.abs().flatten(1).sum(dim=1) * (1 if looked_up else whole.abs().max())
    assert bool((found <= torch.tensor([math.sqrt(square) for square in squares], dtype=torch.float64) + 1e-11 * sizes).all())


def test_the_norm_of_a_bias_is_rounded_up_where_the_positions_cancel():
    torch.manual_seed(0)
    layer = nn.Linear(2, 3).double()
    layer.weight.requires_grad_(False)
    fine = torch.randint(-(2**16), 2**16, (60, 16, 3)).double()
    coarse = torch.randint(2**16, 2**17, (60, 8, 3)).double() * 2**36
    g = torch.cat([coarse, -coarse], dim=1) + fine  # without an error, but for sums of two of them
    true = fine.sum(dim=1).square().sum(dim=1).tolist()
    found = per_sample.norms(layer, torch.zeros(60, 16, 2).double(), g).tolist()
    assert all(Fraction(norm) ** 2 >= square for norm, square in zip(found, true, strict=True))
