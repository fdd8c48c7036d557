"""A membership inference attack (Yeom et al. 2018): rows whose loss is below a threshold are taken for rows of the training set."""

import dataclasses

import numpy as np
import pytest
import torch

import specnorm_core as sn
from specnorm_core.data import Dataset, load
from specnorm_core.losses import ROW_LOSSES
from specnorm_core.privacy import Privacy

ROWS = 250


@pytest.fixture(scope="module")
def halves() -> tuple[Dataset, Dataset]:
    """Return real digits to learn and as many to leave out, a third of both with a label drawn at random: what is there to memorise."""
    generator = np.random.default_rng(0)
    digits = load("digits").subset(generator.permutation(1797)[: 2 * ROWS])
    labels = np.where(generator.random(2 * ROWS) < 1 / 3, generator.integers(10, size=2 * ROWS), digits.y)
    mixed = dataclasses.replace(digits, y=labels)
    return mixed.subset(np.arange(ROWS)), mixed.subset(np.arange(ROWS, 2 * ROWS))


def advantage(model, options, inside, outside):
    """Return the share of members found less the share of others taken for members, with the members' mean loss as the threshold."""
    with torch.no_grad():
        losses = [
            ROW_LOSSES["cross_entropy"](model(torch.from_numpy(rows.x)), torch.from_numpy(rows.y), options).numpy()
            for rows in (inside, outside)
        ]
    return float((losses[0] <= losses[0].mean()).mean() - (losses[1] <= losses[0].mean()).mean())


def attacked(halves, **chosen):
    inside, outside = halves
    model = sn.build(sn.preset("mlp-small", (64,), 10, shift=8.0, scale=0.125), seed=0)
    options = sn.Hyperparameters(learning_rate=1e-2, batch_size=50, temperature=20.0, **chosen)
    run = sn.Fit(model, inside, options)
    list(run)
    accuracy = sn.training.evaluate(model, outside)["accuracy"]
    return advantage(model, options, inside, outside), accuracy, run.epsilon


def test_who_was_in_the_training_set_can_be_told_from_a_plain_model_and_hardly_from_a_private_one(halves):
    plain, _, _ = attacked(halves, n_epochs=40)
    privacy = Privacy(max_grad_norm=2.0, target_epsilon=2.0, delta=1e-3, secure=False)
    private, accuracy, epsilon = attacked(halves, n_epochs=15, privacy=privacy)
    assert accuracy > 0.2  # it has learned: chance is 0.1, and a third of the labels are noise
    assert plain > 0.4
    assert abs(private) < 0.12
    assert private < (np.exp(epsilon) - 1) / (np.exp(epsilon) + 1)
