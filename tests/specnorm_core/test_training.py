import numpy as np
import pytest
import torch

import specnorm_core as sn
from specnorm_core.data import load
from specnorm_core.norms import spectral_layers
from specnorm_core.training import evaluate


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network(mode="full", arch="mlp-small"):
    return sn.build(sn.preset(arch, (64,), 10, gradient_mode=mode, shift=8.0, scale=0.125), seed=0)


def bits(model):
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_both_modes_learn_the_digits(digits, mode):
    rows, held_out = digits.split(0.2)
    model = network(mode)
    records = list(sn.fit(model, rows, validation=held_out, epochs=12, gradient_mode=mode))
    assert records[-1].step == records[-1].steps == len(records)
    assert records[-1].accuracy > 0.9
    assert evaluate(model, held_out)["accuracy"] == records[-1].accuracy
    assert set(records[-1].sigmas) == {"0", "2"}


@pytest.mark.parametrize(("optimizer", "schedule"), [("adam", "constant"), ("sgd", "constant"), ("adam", "one_cycle")])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(digits, optimizer, schedule):
    options = sn.Hyperparameters(n_epochs=2, optimizer=optimizer, learning_rate=1e-3, schedule=schedule)
    whole = network()
    list(sn.Fit(whole, digits, options))
    first = sn.Fit(network(), digits, options)
    for record in first:
        if record.step == 40:
            break
    second = sn.Fit(network(), digits, options, resume=first.checkpoint())
    rest = list(second)
    assert rest[0].step == 41
    assert bits(second.model) == bits(whole)


def test_one_cycle_rises_to_the_learning_rate_and_falls_to_nothing(digits):
    run = sn.Fit(network(), digits, sn.Hyperparameters(n_epochs=2, learning_rate=0.01, schedule="one_cycle"))
    rates = [run.optimizer.param_groups[0]["lr"] for _ in run]
    top = rates.index(max(rates))
    assert 0.12 < top / len(rates) < 0.18
    assert rates[top] == pytest.approx(0.01, rel=0.05)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 1e-3 * rates[top]


def test_a_checkpoint_of_another_run_is_refused(digits):
    run = sn.Fit(network(), digits, sn.Hyperparameters(n_epochs=1))
    next(iter(run))
    with pytest.raises(ValueError, match="another run: its options"):
        sn.Fit(network(), digits, sn.Hyperparameters(n_epochs=2), resume=run.checkpoint())


def test_a_run_ends_with_a_converged_sigma_and_says_how_far_it_lagged(digits):
    run = sn.Fit(network(), digits, sn.Hyperparameters(n_epochs=1))
    list(run)
    for name, layer in spectral_layers(run.model).items():
        assert float(layer.sigma()) == pytest.approx(np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[0], rel=1e-5)
        assert run.lag[name] >= -1e-6


def test_divergence_is_named_with_step_and_advice(digits):
    with pytest.raises(sn.DivergedError, match=r"step 16 of .*: try a learning_rate below 1e\+30"):
        list(sn.fit(network(), digits, hyperparameters=sn.Hyperparameters(learning_rate=1e30, optimizer="sgd")))


def test_real_targets_need_the_loss_for_them(digits):
    values = type(digits)(digits.x, digits.y.astype(np.float32) / 3, digits.digest)
    with pytest.raises(ValueError, match="use the loss mse"):
        sn.Fit(network(), values)
    model = sn.build(sn.preset("mlp-small", (64,), 1, shift=8.0, scale=0.125), seed=0)
    records = list(sn.fit(model, values, hyperparameters=sn.Hyperparameters(loss="mse", n_epochs=2)))
    assert np.isfinite(records[-1].loss)


def test_the_margin_loss_is_zero_exactly_when_every_margin_is_met():
    from specnorm_core.training import LOSSES

    options = sn.Hyperparameters(loss="margin", margin=0.5, temperature=1.0)
    logits = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 1.9]])
    assert float(LOSSES["margin"](logits[:1], torch.tensor([0]), options)) == 0.0
    assert float(LOSSES["margin"](logits, torch.tensor([0, 1]), options)) == pytest.approx((0 + 0.4) / 2)


@pytest.mark.parametrize("arch", sorted(["mlp-small", "mlp", "cnn"]))
@pytest.mark.parametrize("activation", ["groupsort", "relu"])
def test_every_preset_builds_and_survives_its_json(arch, activation):
    spec = sn.preset(arch, (64,), 10, activation=activation)
    again = sn.Architecture.model_validate_json(spec.model_dump_json())
    assert again == spec
    x = torch.randn(2, 64)
    assert torch.equal(sn.build(again, seed=3).eval()(x), sn.build(spec, seed=3).eval()(x))


def test_an_architecture_that_does_not_fit_together_names_the_layer():
    from specnorm_core.architecture import Linear, Sort

    with pytest.raises(ValueError, match="layer 1: groupsort needs"):
        sn.build(sn.Architecture(input_shape=(4,), layers=(Linear(features=3), Sort())))
    with pytest.raises(ValueError, match="cnn, mlp, mlp-orthogonal, mlp-small; got 'vgg'"):
        sn.preset("vgg", (64,), 10)
