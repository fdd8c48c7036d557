"""Noise that a thread of its own draws while the gradients are computed: each draw is used once, in the step that it was drawn for."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import specnorm_core as sn
from specnorm_core.data import load
from specnorm_core.privacy import NotPrivateError, Secure, Seeded, set_gradients
from specnorm_core.privacy.ahead import BLOCK, Noise, blocks
from specnorm_core.privacy.noise import spacing, to_grid

ENTRIES = 3 * BLOCK  # enough for a thread


class Fixed(Secure):
    """The secure source's arithmetic on words that are the same every time."""

    def __init__(self, seed):
        self._words = np.random.default_rng(seed)

    def words(self, count):
        return self._words.integers(2**64, size=count, dtype=np.uint64)


class Silent(Seeded):
    """No noise, where there would be some: what is added to it can be seen."""

    def fill(self, values, deviation):
        values.zero_()


class Slow(Seeded):
    """A source that others overtake."""

    def fill(self, values, deviation):
        time.sleep(0.002)
        super().fill(values, deviation)


class Broken(Seeded):
    def fill(self, values, deviation):
        raise OSError("no randomness left")


def parameters(*shapes, dtype=torch.float32):
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def noise_alone(given, deviation, source):
    with Noise(given, deviation, source) as noise:
        return [gradient.clone() for _, gradient in noise.gradients()]


def test_blocks_cover_every_row_once():
    for shape in ((1,), (5, 7), (3, BLOCK), (BLOCK + 1,), (700, 600), (2, 3, 4), (0, 4), (4, 0)):
        rows = [row for part in blocks(torch.Size(shape)) for row in range(part.start, part.stop)]
        assert rows == list(range(shape[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_what_is_released_is_the_noise_plus_a_rounding_of_the_sum_that_depends_on_the_sum_alone(size, dtype):
    """Were sum and noise rounded together, the size of the noise would tell of digits of the sum (Mironov 2012)."""
    given = parameters((BLOCK // 100, 150), (7,), dtype=dtype)
    deviation = 0.9
    alone = noise_alone(given, deviation, Fixed(1))
    sums = [size * torch.randn(parameter.shape, dtype=dtype) for parameter in given]
    with Noise(given, deviation, Fixed(1)) as noise:
        for parameter, total in zip(given, sums, strict=True):
            for rows in blocks(parameter.shape):
                noise.add(parameter, rows, total[rows].clone())
        found = dict(noise.gradients())
    for parameter, drawn, total in zip(given, alone, sums, strict=True):
        expected = drawn.double() + to_grid(total.clone(), spacing(deviation)).double()
        assert torch.equal(found[parameter], expected.to(dtype))
        assert torch.equal(found[parameter].double() / spacing(deviation), (found[parameter].double() / spacing(deviation)).round())


def test_one_row_moves_what_is_released_by_at_most_the_bound_however_its_entries_round():
    """One row, all of whose entries are alike: on a coarse grid they round up together."""
    layer = nn.Linear(64, 1, bias=False)
    worst = 0.0
    for bound in np.linspace(1.0, 1.1, 60):
        noise_multiplier = 2.0**13 / bound  # a step of 2^-7, entries of some 16 steps
        x = torch.full((1, 64), 5.0)
        options = {"max_grad_norm": float(bound), "noise_multiplier": noise_multiplier, "expected_rows": 1.0}
        set_gradients(layer, lambda x=x: layer(x).sum(dim=1), source=Silent(0), **options)
        worst = max(worst, float(layer.weight.grad.double().norm()) / bound)
    assert 0.9 < worst <= 1


def test_no_two_blocks_layers_or_steps_share_noise():
    given = parameters((4, BLOCK), (4, BLOCK), (BLOCK,))
    drawn = [row for _ in range(2) for gradient in noise_alone(given, 1.0, Secure()) for row in gradient.view(-1, BLOCK)]
    correlations = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs()
    assert len(drawn) == 18
    assert float(correlations.max()) < 6 / BLOCK**0.5
    assert min(float(row.std()) for row in drawn) > 0.98


def test_a_seeded_step_draws_the_same_noise_whatever_the_pace_of_the_threads():
    given = parameters((3, BLOCK), (50,))
    for first, second in zip(noise_alone(given, 2.0, Seeded(4)), noise_alone(given, 2.0, Slow(4)), strict=True):
        assert torch.equal(first, second)


def test_a_sum_waits_for_its_noise():
    given = parameters((3, BLOCK))
    alone = noise_alone(given, 1.0, Seeded(4))[0]
    with Noise(given, 1.0, Slow(4)) as noise:
        for rows in reversed(list(blocks(given[0].shape))):  # the last block first
            noise.add(given[0], rows, torch.full((rows.stop - rows.start, BLOCK), 2.0))
        assert torch.equal(dict(noise.gradients())[given[0]], alone + 2)


def wide():
    return nn.Sequential(nn.Linear(2, BLOCK))


def test_a_step_without_randomness_fails_and_sets_no_gradient():
    model, x = wide(), torch.randn(3, 2)
    with pytest.raises(OSError, match="no randomness left"):
        set_gradients(model, lambda: model(x).sum(dim=1), max_grad_norm=1.0, noise_multiplier=1.0, expected_rows=3.0, source=Broken(0))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_refused_step_leaves_no_thread_that_goes_on_drawing():
    model, x = wide(), torch.randn(3, 2)
    with pytest.raises(NotPrivateError, match="one per row"):
        set_gradients(model, lambda: model(x).sum(), max_grad_norm=1.0, noise_multiplier=1.0, expected_rows=3.0, source=Slow(0))
    assert not [thread for thread in threading.enumerate() if thread.name == "noise"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_memory_of_the_gradient_before_is_used_again_and_none_of_its_contents():
    model, x = wide(), torch.randn(3, 2)
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_rows": 3.0}
    set_gradients(model, lambda: model(x).sum(dim=1), source=Seeded(1), **options)
    fresh, memory = model[0].weight.grad.clone(), model[0].weight.grad.data_ptr()
    model[0].weight.grad.fill_(torch.nan)
    set_gradients(model, lambda: model(x).sum(dim=1), source=Seeded(1), **options)
    assert model[0].weight.grad.data_ptr() == memory
    assert torch.equal(model[0].weight.grad, fresh)


def test_steps_that_are_taken_again_after_a_resume_meet_noise_that_was_never_used():
    digits = load("digits").subset(np.arange(400))
    privacy = sn.privacy.Privacy(max_grad_norm=1.0, noise_multiplier=100.0, delta=1e-4)
    options = sn.Hyperparameters(n_epochs=2, batch_size=100, privacy=privacy)

    def network():
        return sn.build(sn.preset("mlp-small", (64,), 10, shift=8.0, scale=0.125), seed=0)

    def gradients(run, steps):
        for _, _record in zip(range(steps), run, strict=False):
            yield torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])

    first = sn.Fit(network(), digits, options)
    used = list(gradients(first, 3))
    checkpoint = first.checkpoint()
    used += gradients(first, 3)  # lost in a crash
    again = list(gradients(sn.Fit(network(), digits, options, resume=checkpoint, begun=first.begun), 3))
    assert torch.corrcoef(torch.stack([*used, *again])).fill_diagonal_(0).abs().max() < 0.1
    held = b"".join(gradient.numpy().tobytes() for gradient in used)
    assert not any(held[at : at + 32] in checkpoint for at in range(0, 4096, 4))  # nor does the checkpoint hold any of it
