import pytest
import torch

import specnorm_core as sn
from specnorm_core.data import load
from specnorm_core.norms import spectral_layers
from specnorm_core.privacy import Privacy
from specnorm_core.training import evaluate


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network(mode="full"):
    return sn.build(sn.preset("mlp-small", (64,), 10, gradient_mode=mode, shift=8.0, scale=0.125), seed=0)


def options(mode="full", epochs=2, **privacy):
    chosen = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "secure": False, **privacy}
    return sn.Hyperparameters(n_epochs=epochs, batch_size=128, gradient_mode=mode, learning_rate=1e-2, privacy=Privacy(**chosen))


def bits(model):
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_a_private_run_learns_and_tells_what_it_spent_but_no_loss(digits, mode):
    rows, held_out = digits.split(0.2)
    model = network(mode)
    run = sn.Fit(model, rows, options(mode, epochs=6), validation=held_out)
    records = list(run)
    assert evaluate(model, held_out)["accuracy"] > 0.6
    assert all(record.loss is None for record in records)
    spent = [record.epsilon for record in records if record.epsilon is not None]
    assert spent == sorted(spent)
    assert len(spent) == 6
    expected = sn.privacy.epsilon(noise_multiplier=1.0, sample_rate=128 / len(rows), steps=len(records), delta=1e-5)
    assert spent[-1] == run.epsilon == expected


def test_a_target_is_what_the_whole_run_spends_at_most(digits):
    run = sn.Fit(network(), digits, options(target_epsilon=4.0, noise_multiplier=None, secure=True))
    records = list(run)
    assert 3.8 < records[-1].epsilon <= 4.0


def test_a_seeded_private_run_goes_on_with_the_same_bits_and_a_secure_one_does_not(digits):
    whole = network()
    list(sn.Fit(whole, digits, options()))
    assert bits(half_way(digits, options())) == bits(whole)
    assert bits(half_way(digits, options(secure=True))) != bits(half_way(digits, options(secure=True)))


def half_way(digits, chosen):
    first = sn.Fit(network(), digits, chosen)
    for record in first:
        if record.step == 9:
            break
    second = sn.Fit(network(), digits, chosen, resume=first.checkpoint())
    list(second)
    return second.model


def test_steps_that_a_crash_lost_count_as_spent(digits):
    first = sn.Fit(network(), digits, options())
    for record in first:
        if record.step == 9:
            break
    second = sn.Fit(network(), digits, options(), resume=first.checkpoint(), begun=14)
    records = list(second)
    assert second.begun == 14 + (records[-1].steps - 9)
    assert second.epsilon > sn.privacy.epsilon(noise_multiplier=1.0, sample_rate=128 / len(digits), steps=records[-1].steps, delta=1e-5)
    third = sn.Fit(network(), digits, options(), resume=second.checkpoint(), begun=3)
    assert third.begun == second.begun  # the checkpoint knows of more


def test_a_target_holds_even_after_crashes_since_lost_steps_are_not_made_up_for(digits):
    chosen = options(target_epsilon=4.0, noise_multiplier=None)
    first = sn.Fit(network(), digits, chosen)
    for record in first:
        if record.step == 9:
            break
    second = sn.Fit(network(), digits, chosen, resume=first.checkpoint(), begun=14)
    records = list(second)
    assert records[-1].step == records[-1].steps == record.steps - 5
    assert records[-1].epsilon <= 4.0
    last = sn.Fit(network(), digits, chosen, begun=10_000)
    assert list(last) == []
    assert not last.model.training


def test_batches_are_poisson_and_an_empty_one_is_a_step_like_any_other(digits):
    few = digits.subset(torch.arange(10).numpy())
    chosen = options(epochs=30, delta=1e-3).model_copy(update={"batch_size": 2})
    run = sn.Fit(network(), few, chosen)
    layer = next(iter(spectral_layers(run.model).values()))
    sizes, seen, before, u = [], [], bits(run.model), layer.pair[0].clone()
    run.model.register_forward_pre_hook(lambda _model, inputs: seen.append(len(inputs[0])))
    for _ in run:
        sizes.append(sum(seen))
        seen.clear()
        assert bits(run.model) != before  # by the noise, where there was no row
        assert not torch.equal(layer.pair[0], u)  # a power iteration for each
        before, u = bits(run.model), layer.pair[0].clone()
    assert len(sizes) == run.begun == 150
    assert 0 in sizes
    assert abs(sum(sizes) / 150 - 2) < 4 * (1.6 / 150) ** 0.5
    assert 1.0 < torch.tensor(sizes).double().var() < 2.5  # binomial: 1.6


def test_the_power_iteration_after_a_step_does_not_depend_on_the_batch_not_even_on_there_being_one():
    pairs = []
    for rows in (0, 1, 7):
        torch.manual_seed(0)
        layer = sn.SpectralLinear(6, 5)
        sn.power_iteration(layer)
        x = torch.randn(rows, 6)
        losses = (lambda layer=layer, x=x: layer(x).sum(dim=1)) if rows else None
        sn.privacy.set_gradients(layer, losses, max_grad_norm=1.0, noise_multiplier=1.0, expected_rows=2.0)
        with torch.no_grad():  # as if the noisy sums had been the same
            layer.weight.copy_(torch.arange(30.0).reshape(5, 6).sin())
        sn.power_iteration(layer)
        pairs.append(torch.cat(layer.pair))
    assert torch.equal(pairs[0], pairs[1])
    assert torch.equal(pairs[0], pairs[2])


def test_a_step_tells_nothing_of_the_size_of_its_batch(digits):
    chosen = options(epochs=2, noise_multiplier=100.0).model_copy(update={"batch_size": 4})
    run = sn.Fit(network(), digits.subset(torch.arange(40).numpy()), chosen)
    for _ in run:  # batches of 0 to some 9 rows, each divided by the 4 that are expected
        drawn = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])
        assert float(drawn.std()) == pytest.approx(100 / 4, rel=0.06)


@pytest.mark.parametrize("secure", [True, False])
def test_no_two_steps_draw_the_same_noise(digits, secure):
    run = sn.Fit(network(), digits, options(epochs=1, noise_multiplier=100.0, secure=secure))
    drawn = torch.stack([torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]) for _ in run])
    assert len(drawn) > 10
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.1


def test_a_checkpoint_of_private_rows_holds_no_digest_of_them(digits):
    run = sn.Fit(network(), digits, options())
    next(iter(run))
    assert digits.digest.encode() not in run.checkpoint()


def test_a_model_that_cannot_be_trained_privately_is_refused_before_the_first_step(digits):
    model = sn.build(sn.preset("mlp-orthogonal", (64,), 10, shift=8.0, scale=0.125), seed=0)
    with pytest.raises(ValueError, match="no rule for the per-sample gradients of a layer OrthogonalLinear"):
        sn.Fit(model, digits, options())


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "mse"])
def test_the_losses_of_rows_have_the_loss_of_the_batch_as_their_mean(loss):
    from specnorm_core.losses import LOSSES, ROW_LOSSES

    chosen = sn.Hyperparameters(loss=loss, temperature=3.0)
    out = torch.randn(7, 1 if loss == "mse" else 4)
    y = torch.randn(7) if loss == "mse" else torch.randint(4, (7,))
    torch.testing.assert_close(ROW_LOSSES[loss](out, y, chosen).mean(), LOSSES[loss](out, y, chosen))
