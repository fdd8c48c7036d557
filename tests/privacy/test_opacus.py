"""Opacus trains the spectral layers, in each of its modes, as our own per-sample sums do."""

import subprocess
import sys
import warnings
from itertools import pairwise

import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import specnorm_core as sn
from specnorm_core import per_sample
from specnorm_core.opacus import norms, register
from specnorm_core.orthogonal import OrthogonalLinear

pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus warns of its random numbers, of hooks on inputs without gradient and the like
MODES = ("hooks", "functorch", "ghost")
BOUND = 0.5


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register()


def images(mode="full", constraint="unit"):
    torch.manual_seed(0)
    kind = {"gradient_mode": mode, "constraint": constraint, "target": 0.9}
    model = nn.Sequential(
        sn.SpectralConv2d(1, 4, 3, padding=1, input_size=6, **kind), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
        sn.SpectralLinear(144, 8, **kind), sn.GroupSort(), nn.LayerNorm(8), nn.Linear(8, 3),
    )  # fmt: skip
    return model.double(), torch.randn(24, 1, 6, 6, dtype=torch.float64), torch.randint(3, (24,))


class Words(nn.Module):
    """An embedding and a dense layer on sequences."""

    def __init__(self, mode):
        super().__init__()
        self.embedding = sn.SpectralEmbedding(11, 6, gradient_mode=mode)
        self.dense = sn.SpectralLinear(6, 5, gradient_mode=mode, target=3.0)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.dense(self.embedding(x)).relu().mean(dim=1))


def axes(mode="full"):
    """Convolutions over one and three axes and a transposed one, each reading the pixels of the one before in its own shape."""
    torch.manual_seed(0)
    model = nn.Sequential(
        sn.SpectralConvTranspose2d(1, 2, 2, stride=2, input_size=3, gradient_mode=mode), nn.Flatten(2),
        sn.SpectralConv1d(2, 2, 3, padding=1, input_size=36, gradient_mode=mode), nn.Tanh(), nn.Unflatten(2, (4, 3, 3)),
        sn.SpectralConv3d(2, 2, 2, input_size=(4, 3, 3), gradient_mode=mode), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    return model.double(), torch.randn(24, 1, 3, 3, dtype=torch.float64), torch.randint(3, (24,))


def words(mode="full"):
    torch.manual_seed(0)
    return Words(mode).double(), torch.randint(11, (24, 4)), torch.randint(3, (24,))


def with_opacus(model, x, y, mode, *, noise=0.0, steps=1, attach_to="private", **more):
    """Train by `PrivacyEngine.make_private`, its optimiser and its loader; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = PrivacyEngine(accountant="rdp")
    given = {
        "module": model,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "data_loader": DataLoader(TensorDataset(x, y), batch_size=8),
    }
    options = {"noise_multiplier": noise, "max_grad_norm": BOUND, "poisson_sampling": False, "grad_sample_mode": mode, **more}
    private, private_optimizer, *criterion, loader = engine.make_private(**given, **options)
    loss_of = criterion[0] if criterion else nn.CrossEntropyLoss()
    sn.attach(private, private_optimizer if attach_to == "private" else optimizer)
    losses = []
    for _ in range(steps):
        for some_x, some_y in loader:
            private_optimizer.zero_grad()
            loss = loss_of(private(some_x), some_y)
            loss.backward()
            private_optimizer.step()
            losses.append(float(loss.item()))
    return losses, engine


def with_ours(model, x, y, *, steps=1):
    """The same by `per_sample`: clip with Opacus's own factor, and sum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sn.attach(model, optimizer)
    for _ in range(steps):
        for some_x, some_y in DataLoader(TensorDataset(x, y), batch_size=8):
            seen = []
            layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
            hooks = [module.register_forward_hook(lambda *call, seen=seen: seen.append(call)) for module in layers]
            loss = nn.functional.cross_entropy(model(some_x), some_y, reduction="sum")
            for hook in hooks:
                hook.remove()
            calls = [
                (layer, given[0].detach(), g)
                for (layer, given, _), g in zip(seen, torch.autograd.grad(loss, [c[2] for c in seen]), strict=True)
            ]
            norm = sum(per_sample.squared_norms(*call) for call in calls).sqrt()
            weights = (BOUND / (norm + 1e-6)).clamp(max=1)
            assert bool((weights < 1).any()), "the bound must bite"
            for call in calls:
                for parameter, total in per_sample.weighted_sum(*call, weights).items():
                    parameter.grad = total / 8
            optimizer.step()


@pytest.mark.parametrize("gradient_mode", ["full", "simplified"])
@pytest.mark.parametrize("make", [images, axes, words])
@pytest.mark.parametrize("mode", MODES)
def test_without_noise_opacus_ends_where_our_own_sums_end(mode, make, gradient_mode):
    theirs, x, y = make(gradient_mode)
    with_opacus(theirs, x, y, mode, steps=2)
    ours, *_ = make(gradient_mode)
    with_ours(ours, x, y, steps=2)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("mode", MODES)
def test_a_capped_layer_is_trained_alike(mode):
    theirs, x, y = images(constraint="cap")
    with_opacus(theirs, x, y, mode)
    ours, *_ = images(constraint="cap")
    with_ours(ours, x, y)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_network_learns_under_noise_and_poisson_sampling_with_an_epsilon_that_grows(mode):
    model, x, _ = images()
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    losses, engine = with_opacus(model.float(), x.float(), y, mode, noise=0.5, steps=8, poisson_sampling=True)
    assert sum(losses[-6:]) < sum(losses[:6])
    assert engine.get_epsilon(1e-5) > 0


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_of_poisson_sampling_is_a_step_like_any_other(mode):
    model, x, y = images()
    if mode == "functorch":  # whose vmap takes no empty batch through a GroupNorm or a plain convolution
        model, x = nn.Sequential(*[sn.SpectralLinear(4, 4) for _ in range(5)]).double(), x[:, 0, 0, :4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    private, private_optimizer, *criterion, _loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), data_loader=DataLoader(TensorDataset(x, y), batch_size=8),
        noise_multiplier=1.0, max_grad_norm=BOUND, grad_sample_mode=mode,
    )  # fmt: skip
    before = model[4].weight.clone()
    private_optimizer.zero_grad()
    (criterion[0] if criterion else nn.CrossEntropyLoss())(private(x[:0]), y[:0]).backward()
    private_optimizer.step()
    assert model[4].weight.isfinite().all()
    assert not torch.equal(model[4].weight, before)


@pytest.mark.parametrize("attach_to", ["private", "inner"])
def test_the_power_iteration_steps_once_for_each_step_of_the_optimiser(attach_to):
    model, x, y = images()
    calls = []
    model[4].refresh = lambda steps=1: calls.append(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_opacus(model, x, y, "hooks", steps=2, attach_to=attach_to)
    assert calls == [1] * 6


def test_a_batch_in_parts_is_one_step_of_the_power_iteration():
    model, x, y = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    private, private_optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=8),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
    )
    sn.attach(private, private_optimizer)
    seen, weights = [], []
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=private_optimizer) as parts:
        for some_x, some_y in parts:
            private_optimizer.zero_grad()
            nn.functional.cross_entropy(private(some_x), some_y).backward()
            private_optimizer.step()
            seen.append(model[4].pair[1].clone())
            weights.append(model[4].weight.detach().clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert 0 < sum(moved) < len(moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norms_that_opacus_gets_are_rounded_up_in_its_own_type(dtype):
    torch.manual_seed(0)
    layer = sn.SpectralLinear(7, 5).to(dtype)
    x, g = torch.randn(200, 7).to(dtype), torch.randn(200, 5).to(dtype)
    exact = per_sample.squares(layer, x, g)
    for parameter, norm in norms(layer, [x], g).items():
        assert norm.dtype == dtype
        assert bool((norm.double() >= exact[parameter].sqrt()).all())
        assert torch.allclose(norm.double(), exact[parameter].sqrt(), rtol=1e-6)


def test_functorch_works_on_the_layer_as_it_is_now_and_not_on_the_copy_that_opacus_made():
    torch.manual_seed(0)
    layer = sn.SpectralLinear(5, 4).double()
    wrapped = GradSampleModule(nn.Sequential(layer), force_functorch=True, loss_reduction="sum")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 5))
    layer.refresh(3)
    x, g = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    wrapped(x).backward(g)
    expected = per_sample.gradients(layer, x, g)
    for parameter in layer.parameters():
        assert torch.allclose(parameter.grad_sample, expected[parameter], rtol=1e-9, atol=1e-12)


def test_a_layer_without_a_rule_is_trained_by_functorch():
    torch.manual_seed(0)
    layer = OrthogonalLinear(5, 4).double()
    wrapped = GradSampleModule(nn.Sequential(layer), loss_reduction="sum")
    x, g = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    wrapped(x).backward(g)
    assert torch.allclose(layer.weight.grad_sample.sum(dim=0), layer.weight.grad, atol=1e-6)
    assert layer.weight.grad_sample.shape == (3, 4, 5)


def test_the_package_does_not_load_opacus():
    code = "import sys, specnorm_core as sn; sn.per_sample, sn.attach; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
