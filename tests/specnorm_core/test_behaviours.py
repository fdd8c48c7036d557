"""What PyTorch offers around a layer, each tried on every layer: second derivatives, torch.func, compile, copies, export, averaging."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call, grad, jvp, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import specnorm_core as sn
from specnorm_core.norms import converge

LAYERS = {
    "linear": (lambda **o: sn.SpectralLinear(4, 3, **o), (4,)),
    "conv1d": (lambda **o: sn.SpectralConv1d(2, 3, 3, padding=1, input_size=5, padding_mode="circular", **o), (2, 5)),
    "conv2d": (lambda **o: sn.SpectralConv2d(2, 2, 2, stride=2, groups=2, input_size=(4, 3), **o), (2, 4, 3)),
    "conv2d reflected": (lambda **o: sn.SpectralConv2d(1, 2, 3, padding=1, padding_mode="reflect", input_size=3, **o), (1, 3, 3)),
    "conv2d matricised": (lambda **o: sn.SpectralConv2d(1, 2, 2, norm="matricised", **o), (1, 3, 3)),
    "conv3d": (lambda **o: sn.SpectralConv3d(1, 2, 2, input_size=3, padding=1, padding_mode="replicate", **o), (1, 3, 3, 3)),
    "convtranspose2d": (lambda **o: sn.SpectralConvTranspose2d(2, 2, 2, stride=2, input_size=(2, 3), **o), (2, 2, 3)),
    "embedding": (lambda **o: sn.SpectralEmbedding(5, 3, **o), None),
    "orthogonal": (lambda constraint="unit", **o: sn.OrthogonalLinear(4, 3, **o), (4,)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, dtype=torch.float64, **options):
    """A layer and a batch of three inputs for it."""
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    x = torch.tensor([[0, 4], [1, 1], [3, 0]]) if shape is None else torch.randn(3, *shape, dtype=dtype)
    return build(**options).to(dtype).advance(), x  # what is orthogonal is so in this type too


def weights(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("constraint", ["unit", "cap"])
@every_layer
def test_gradcheck_and_gradgradcheck_pass_in_input_weight_and_bias(kind, constraint):
    layer, x = make(kind, constraint=constraint, target=0.6)
    x = x[:1].requires_grad_() if x.is_floating_point() else x

    def run(x, *parameters):
        return functional_call(layer, dict(zip(weights(layer), parameters, strict=True)), (x,))

    inputs = (x, *(value.clone().requires_grad_() for value in weights(layer).values()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "orthogonal"])  # a polar factor does not depend on sigma
def test_simplified_fails_gradcheck_in_the_weight(kind):
    layer, x = make(kind, gradient_mode="simplified")
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(lambda weight: functional_call(layer, {"weight": weight}, (x,)), layer.weight.detach().requires_grad_())


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@every_layer
def test_vmap_grad_and_jvp_agree_with_the_eager_layer(kind):
    layer, x = make(kind)
    torch.testing.assert_close(vmap(layer)(x), torch.stack([layer(row) for row in x]))

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    layer(x).square().sum().backward()
    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights(layer), x)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grad(loss)(weights(layer), x)[name], parameter.grad)
        torch.testing.assert_close(per_sample[name].sum(dim=0), parameter.grad)
    direction = {name: torch.randn_like(value) for name, value in weights(layer).items()}
    _, slope = jvp(lambda parameters: loss(parameters, x), (weights(layer),), (direction,))
    along = sum((parameter.grad * direction[name]).sum() for name, parameter in layer.named_parameters())
    torch.testing.assert_close(slope, along)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_layer
def test_compile_without_a_graph_break_gives_the_same_output_and_gradient(kind):
    layer, x = make(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    first = torch.autograd.grad(y.square().sum(), layer.weight)[0]
    torch.testing.assert_close(first, torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])
    layer.refresh(20)
    torch.testing.assert_close(compiled(x), layer(x))  # the pair is an input of the graph, no constant in it
    torch._dynamo.reset()


@every_layer
def test_export_captures_the_layer_with_its_pair(kind):
    layer, x = make(kind, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecations
        program = torch.export.export(layer.eval(), (x,), strict=False)
    torch.testing.assert_close(program.module()(x), layer(x))


@every_layer
def test_under_bf16_autocast_the_pair_and_sigma_stay_in_float32(kind):
    layer, x = make(kind, torch.float32)
    converge(layer)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = nn.functional.linear(x, layer.weight) if kind == "linear" else None
        low = layer(x)
        layer.refresh()
        assert layer.sigma().dtype == torch.float32
    assert {part.dtype for part in layer.pair} == {torch.float32}
    assert low.dtype == (torch.float32 if kind == "embedding" else torch.bfloat16)  # a look-up is not autocast
    assert plain is None or plain.dtype == low.dtype
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)
    low.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


def by_state(layer):
    fresh = copy.deepcopy(layer)
    with torch.no_grad():
        fresh.weight.normal_()
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored))
    return fresh


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer)), "state_dict": by_state}


@pytest.mark.parametrize("way", COPIES)
@every_layer
def test_a_copy_answers_the_same_and_its_state_is_that_of_the_plain_layer(kind, way):
    layer, x = make(kind)
    layer.rederive()
    again = COPIES[way](layer)
    assert torch.equal(again(x), layer(x))
    assert set(again.state_dict()) <= {"weight", "bias"}
    assert not list(again.buffers())
    again.refresh()
    assert not any(a is b for a, b in zip(again.pair, layer.pair, strict=True))


@every_layer
def test_an_averaged_model_answers_with_the_pair_of_the_averaged_weights(kind):
    layer, x = make(kind)
    average = AveragedModel(nn.Sequential(layer), multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
    for _ in range(3):
        with torch.no_grad():
            layer.weight.normal_(std=3)
        average.update_parameters(nn.Sequential(layer))
    y = average(x)
    inner = average.module[0]
    expected = inner.pair
    inner.rederive()
    assert all(torch.equal(a, b) for a, b in zip(expected, inner.pair, strict=True))
    assert torch.equal(average(x), y)


@every_layer
def test_in_eval_mode_a_changed_weight_gets_a_pair_of_its_own_and_a_copy_of_it_too(kind):
    layer, x = make(kind)
    layer.eval()
    with torch.no_grad():
        layer.weight.normal_(std=30)
        late = pickle.loads(pickle.dumps(layer))
        moved = copy.deepcopy(layer).to(torch.float32).double()
        torch.testing.assert_close(late(x), layer(x))
        torch.testing.assert_close(moved(x), layer(x), rtol=1e-4, atol=1e-4)
    assert float(late.sigma()) > 10
