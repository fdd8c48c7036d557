"""No attack inside the certified radius changes an answer of the served graph. ``make test-attack`` runs the long form.

Gradients come from the folded model; what counts is the graph's own answer, and the distance of the float32 input that it was given.
"""

import os

import numpy as np
import pytest
import torch

import specnorm_core as sn
from export import verify
from export.fold import fold
from export.pipeline import export_bundle
from specnorm_core.architecture import Architecture, Linear
from specnorm_core.data import load

LONG = os.environ.get("ATTACK") == "long"
STEPS, RESTARTS, EVERY, EPOCHS = (100, 5, 1, 5) if LONG else (20, 2, 12, 1)
NETWORKS = {"mlp-small": "relu", "mlp-orthogonal": "groupsort"} | ({"mlp": "groupsort", "cnn": "groupsort"} if LONG else {})


def margins(model, x, label):
    """By how much the answer leads the best other class; negative: another class wins."""
    out = model(x)
    index = torch.from_numpy(label)[:, None]
    return (out.gather(1, index) - out.scatter(1, index, -torch.inf).amax(dim=1, keepdim=True)).squeeze(1)


def shortened(delta, most):
    return delta * (most / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).reshape(-1, *[1] * (delta.ndim - 1))


def pgd(model, x, label, radius, generator):
    """Projected gradient descent on the margin, from a random start in the ball."""
    most = torch.from_numpy(radius)
    delta = shortened(torch.randn(x.shape, generator=generator), most)
    for step in range(STEPS):
        delta.requires_grad_()
        (slope,) = torch.autograd.grad(margins(model, x + delta, label).sum(), delta)
        length = most * (0.5 if step < STEPS // 2 else 0.05)
        slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (x.ndim - 1))
        delta = shortened(delta.detach() - slope * length.reshape(-1, *[1] * (x.ndim - 1)), most)
    return delta.detach()


def carlini_wagner(model, x, label, radius, generator):
    """Least ``norm(delta)^2 + c max(margin, 0)`` by Adam, c by bisection per input; the shortest change that wins."""
    low, c, high = torch.zeros(len(x)), torch.ones(len(x)), torch.full((len(x),), 1e4)
    shortest, found = torch.full((len(x),), torch.inf), torch.zeros_like(x)
    for _ in range(6 if LONG else 3):
        delta = (torch.randn(x.shape, generator=generator) * 1e-3).requires_grad_()
        adam = torch.optim.Adam([delta], lr=float(np.median(radius)) / 10 + 1e-6)
        won = torch.zeros(len(x), dtype=torch.bool)
        for _ in range(STEPS):
            lead = margins(model, x + delta, label)
            square = delta.flatten(1).square().sum(dim=1)
            length = square.detach().sqrt()
            better = (lead.detach() < 0) & (length < shortest)
            won |= lead.detach() < 0
            shortest, found[better] = torch.where(better, length, shortest), delta.detach()[better]
            adam.zero_grad()
            (square + c * lead.clamp_min(-1e-4)).sum().backward()
            adam.step()
        low, high = torch.where(won, low, c), torch.where(won, c, high)
        c = torch.where(high < 1e4, (low + high) / 2, c * 10)
    return shortened(found, torch.from_numpy(radius))


ATTACKS = {"pgd": pgd, "carlini wagner": carlini_wagner}


def changed(files, folded, x, factor=1.0):
    """Number of inputs whose answer some attack within ``factor`` times the radius changes, by attack, and the radii."""
    served = verify.run(files["model.onnx"], x)
    label, radius = served["logits"].argmax(axis=1), served["certified_radius"].astype(np.float64) * factor
    generator, broken = torch.Generator().manual_seed(0), dict.fromkeys(ATTACKS, 0)
    for name, attack in ATTACKS.items():
        wrong = np.zeros(len(x), dtype=bool)
        for restart in range(1, RESTARTS + 1):
            delta = attack(folded, torch.from_numpy(x), label, (radius * (1 - 1e-6)).astype(np.float32), generator).numpy()
            moved = x + delta
            distance = np.linalg.norm((moved.astype(np.float64) - x).reshape(len(x), -1), axis=1)
            wrong |= (verify.run(files["model.onnx"], moved)["logits"].argmax(axis=1) != label) & (distance <= radius)
            if LONG:
                print(f"{name}, restart {restart} of {RESTARTS}: {int(wrong.sum())} of {len(x)} answers changed", flush=True)
        broken[name] = int(wrong.sum())
    return broken, radius


@pytest.mark.parametrize("arch", NETWORKS)
def test_no_attack_within_the_radius_changes_an_answer(arch):
    digits = load("digits")
    spec = sn.preset(arch, (64,), 10, activation=NETWORKS[arch], shift=8.0, scale=0.125)
    model = sn.build(spec, seed=0)
    list(sn.fit(model, digits, epochs=EPOCHS))
    _, files = export_bundle(model, spec, samples=digits.x[:100], labels=tuple(map(str, range(10))))
    folded, _ = fold(model)
    broken, radius = changed(files, folded, digits.x[::EVERY])
    assert broken == dict.fromkeys(ATTACKS, 0)
    assert (radius > 0).mean() > 0.9


@pytest.fixture(scope="module")
def linear():
    spec = Architecture(input_shape=(8,), layers=(Linear(features=3, bias=False),))
    model = sn.build(spec, seed=1)
    sn.power_iteration(model, 50)
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    return export_bundle(model, spec, samples=x, labels=("a", "b", "c"))[1], fold(model)[0], x


def test_on_a_linear_network_a_constant_that_is_two_percent_too_small_is_caught(linear):
    files, folded, x = linear
    assert changed(files, folded, x)[0] == dict.fromkeys(ATTACKS, 0)
    broken, _ = changed(files, folded, x, factor=1 / 0.98)
    assert broken["pgd"] > 0.5 * len(x), "the radius is tight here, and the attack good enough to see it"
