"""A training step: the power iteration takes A v from the forward pass, changes no answer, and never waits for the device."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import specnorm_core as sn
from specnorm_core import functional, gradients
from specnorm_core.norms import converge

LAYERS = {
    "linear": (lambda **o: sn.SpectralLinear(6, 5, **o), (6,)),
    "conv1d": (lambda **o: sn.SpectralConv1d(2, 3, 3, padding=1, input_size=6, padding_mode="circular", **o), (2, 6)),
    "conv2d": (lambda **o: sn.SpectralConv2d(2, 3, 3, padding=1, input_size=(4, 5), **o), (2, 4, 5)),
    "conv2d matricised": (lambda **o: sn.SpectralConv2d(2, 3, 3, norm="matricised", **o), (2, 4, 5)),
    "conv3d": (lambda **o: sn.SpectralConv3d(2, 2, 2, input_size=3, **o), (2, 3, 3, 3)),
    "convtranspose2d": (lambda **o: sn.SpectralConvTranspose2d(2, 3, 2, stride=2, input_size=(2, 3), **o), (2, 2, 3)),
    "embedding": (lambda **o: sn.SpectralEmbedding(6, 3, **o), None),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **options):
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    return build(**options), torch.tensor([0, 3, 3]) if shape is None else torch.randn(4, *shape)


def change(layer):
    """What an optimiser does."""
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(5)), alpha=0.1)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.pair, other.pair, strict=True))


def expected(before, after):
    """The pair after one iteration whose first half is done with the weight before the step and whose second with that after it."""
    u = functional.unit(before.forward_map(before.pair[1], before.weight.detach()))
    return u, functional.unit(after.adjoint_map(u, after.weight.detach()))


@every_layer
def test_a_refresh_goes_on_from_the_image_of_v_that_the_forward_pass_had(kind):
    layer, x = make(kind)
    before = copy.deepcopy(layer)
    layer(x)
    change(layer)
    u, v = expected(before, layer)
    layer.refresh()
    torch.testing.assert_close(layer.pair, (u, v))


@every_layer
def test_a_refresh_without_a_forward_pass_does_the_whole_iteration_itself(kind):
    layer, x = make(kind)
    change(layer)
    u, v = expected(layer, layer)
    layer.refresh()
    torch.testing.assert_close(layer.pair, (u, v))
    layer(x)
    layer.refresh()
    change(layer)
    u, v = expected(layer, layer)  # the image of the one forward pass is used once
    layer.refresh()
    torch.testing.assert_close(layer.pair, (u, v))


@every_layer
def test_the_iteration_depends_on_the_weight_alone_whatever_the_batch_and_however_many_forward_and_backward_passes(kind):
    layer, x = make(kind)
    one, many, none, small = layer, copy.deepcopy(layer), copy.deepcopy(layer), copy.deepcopy(layer)
    one(x).sum().backward()
    for _ in range(3):  # an accumulated gradient, a pass without a backward, another batch
        many(x).square().sum().backward()
    many(x)
    many(x[:2])
    none(x)
    small(x[:1]).sum().backward()
    checkpointed = copy.deepcopy(none)
    checkpoint(checkpointed, x, use_reentrant=False).sum().backward()
    for candidate in (one, many, none, small, checkpointed):
        change(candidate)
        candidate.refresh()
    assert same(one, many)
    assert same(one, none)
    assert same(one, small)
    assert same(one, checkpointed)


@every_layer
def test_two_forward_passes_before_one_refresh_give_one_answer(kind):
    layer, x = make(kind)
    first = layer(x)
    first.sum().backward()
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
@every_layer
def test_a_copy_between_forward_and_refresh_goes_on_as_the_layer_does(kind, way):
    layer, x = make(kind)
    layer(x)
    again = way(layer)
    for one in (layer, again):
        change(one)
        one.refresh()
    assert same(layer, again)


@every_layer
def test_what_another_weight_left_is_not_used(kind):
    layer, x = make(kind)
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    fresh = copy.deepcopy(layer)
    layer(x)
    layer.load_state_dict(state)
    fresh.load_state_dict(state)
    assert same(layer.refresh(), fresh.refresh())
    torch.func.functional_call(layer, {"weight": torch.randn_like(layer.weight)}, (x,))
    assert same(layer.refresh(), fresh.refresh())
    torch.func.vmap(lambda scale: torch.func.functional_call(layer, {"weight": layer.weight * scale}, (x,)))(torch.ones(2))
    assert same(layer.refresh(), fresh.refresh())
    if x.is_floating_point():
        torch.func.grad(lambda x: layer(x).sum())(x)
    layer.eval()(x)
    for one in (layer, fresh):
        change(one)
    assert same(layer.refresh(), fresh.refresh())
    layer.train()(x)
    fresh.refresh(3)
    layer.set_pair(*fresh.pair)
    assert same(layer.refresh(), fresh.refresh())
    layer(x)
    for one in (layer, fresh):
        one.double()
    assert same(layer.refresh(), fresh.refresh())


class NoSynchronisation(TorchDispatchMode):
    """Fails on the operations that a device would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in {
            torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.is_nonzero, torch.ops.aten.equal,
            torch.ops.aten.nonzero, torch.ops.aten._to_copy,
        }:  # fmt: skip
            raise AssertionError(f"{function} synchronises the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("constraint", ["unit", "cap"])
@pytest.mark.parametrize("mode", ["full", "simplified"])
@every_layer
def test_no_step_waits_for_the_device(kind, mode, constraint):
    layer, x = make(kind, gradient_mode=mode, constraint=constraint)
    if x.is_floating_point():
        x.requires_grad_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sn.attach(layer, optimizer)
    with NoSynchronisation():
        for _ in range(2):
            layer(x).square().sum().backward()
            optimizer.step()
            sn.power_iteration(layer)
    with pytest.raises(AssertionError, match="synchronises"), NoSynchronisation():
        float(layer.sigma())


@pytest.mark.parametrize("constraint", ["unit", "cap"])
@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("rows", [1, 2, 9, 200])
@pytest.mark.parametrize("needs_x", [True, False])
def test_the_gradient_is_the_closed_form_in_each_way_to_compute_it(monkeypatch, rows, mode, constraint, needs_x):
    monkeypatch.setattr(functional, "FEW", 16)
    layer = sn.SpectralLinear(32, 7, gradient_mode=mode, constraint=constraint, target=0.5).double()
    converge(layer, tolerance=1e-15)
    sigma = float(layer.sigma())
    x, g = torch.randn(rows, 32, dtype=torch.float64, requires_grad=needs_x), torch.randn(rows, 7, dtype=torch.float64)
    layer(x).backward(g)
    weight = layer.weight.detach()
    assert sigma > 0.5  # the cap binds, so that both constraints are W c / sigma
    torch.testing.assert_close(layer.weight.grad, 0.5 * getattr(gradients, mode)(weight, x.detach(), g, *layer.pair))
    torch.testing.assert_close(layer.bias.grad, g.sum(dim=0))
    if needs_x:
        torch.testing.assert_close(x.grad, 0.5 * gradients.input_gradient(weight, g, *layer.pair))


def test_the_gradient_of_one_row_is_the_same_beyond_the_cache(monkeypatch):
    layer, x = sn.SpectralLinear(64, 30), torch.randn(1, 64)
    layer(x).square().sum().backward()
    inside = layer.weight.grad.clone()
    monkeypatch.setattr(functional, "CACHE", 0)
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, inside)
    assert layer.weight.grad.is_contiguous()


class NoSecondWeight(TorchDispatchMode):
    """Fails where a tensor of the weight's shape appears that is not the weight itself."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and sorted(result.shape) == sorted(self.weight.shape):
            same_memory = result.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr()
            assert same_memory, f"{function} makes a second weight"
        return result


@pytest.mark.parametrize("mode", ["full", "simplified"])
@every_layer
def test_the_forward_pass_never_forms_the_weight_divided_by_sigma(kind, mode):
    layer, x = make(kind, gradient_mode=mode)
    with NoSecondWeight(layer.weight):
        layer(x)
    with pytest.raises(AssertionError, match="second weight"), NoSecondWeight(layer.weight):
        layer.weight / layer.sigma()


def most_bytes(layer, x, g):
    """The most that tensors take at once in a step, beyond those before it."""
    layer(x).backward(g)
    layer.zero_grad()
    x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        layer(x).backward(g)
        getattr(layer, "refresh", lambda: None)()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        most = max(most, taken)
    return most


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("batch", [1, 4, 64, 300])
def test_a_step_takes_the_memory_of_the_plain_layer(mode, batch):
    n = 256
    x, g = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
    plain = most_bytes(nn.Linear(n, n), x, g)
    assert plain >= 4 * n * n
    assert most_bytes(sn.SpectralLinear(n, n, gradient_mode=mode), x, g) <= 1.05 * plain


def test_a_training_run_is_that_of_the_power_iteration_written_out():
    torch.manual_seed(2)
    layer, x = sn.SpectralLinear(5, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    weight, bias = (part.detach().clone().requires_grad_() for part in (layer.weight, layer.bias))
    u, v = layer.pair
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sn.attach(layer, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        y = x @ weight.T / (u @ weight @ v) + bias
        slopes = torch.autograd.grad(y.square().sum(), (weight, bias))
        with torch.no_grad():
            u = weight @ v / math.sqrt((weight @ v) @ (weight @ v))
            for part, slope in zip((weight, bias), slopes, strict=True):
                part.sub_(slope, alpha=0.1)
            v = u @ weight / math.sqrt((u @ weight) @ (u @ weight))
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer.pair, (u, v))
