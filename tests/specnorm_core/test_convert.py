import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hook_form

import specnorm_core as sn

FORMS = {"hook": hook_form, "parametrization": parametrizations.spectral_norm}
IMAGES = (2, 2, 8, 8)


def network(form):
    torch.manual_seed(0)
    norm = FORMS[form]
    return nn.Sequential(
        norm(nn.Conv2d(2, 4, 3, padding=1, stride=2)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(64, 12, bias=False)), nn.Tanh(),
        nn.Sequential(norm(nn.Linear(12, 5))),
    )  # fmt: skip


def converged(form, rounds=400):
    model = network(form).train()
    with torch.no_grad():
        for _ in range(rounds):
            model(torch.zeros(IMAGES))
    return model


def trained(form, steps=20):
    model = converged(form, 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(IMAGES)).square().sum().backward()
        optimizer.step()
    return model


def quietly(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.ConversionWarning)
        return sn.spectral_norm(model, **options)


@torch.no_grad()
def close(a, b):
    return (a - b).abs().max().item() <= 1e-6 * max(1.0, b.abs().max().item())


def norm_of(weight):
    return float(torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2))


def told(model, **options):
    with pytest.warns(sn.ConversionWarning) as caught:
        sn.spectral_norm(model, **options)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_converged_model_of_pytorch_computes_the_same_after_conversion(form, training):
    model = converged(form).train(training)
    x = torch.randn(IMAGES)
    spectral = quietly(model)
    assert close(spectral(x), model(x))
    assert spectral[0].norm == "matricised"
    assert spectral.training is spectral[0].training is training
    assert set(spectral.state_dict()) == {"0.weight", "0.bias", "3.weight", "5.0.weight", "5.0.bias"}


@pytest.mark.parametrize("form", FORMS)
def test_a_freshly_loaded_model_converts_without_a_forward(form):
    model = converged(form).eval()
    x = torch.randn(IMAGES)
    expected = model(x)
    loaded = network(form).eval()
    loaded.load_state_dict(model.state_dict())
    assert close(quietly(loaded)(x), expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_taken_is_the_trained_one_and_not_what_the_last_forward_left(form):
    model = trained(form)
    original = model[3].weight_orig if form == "hook" else model[3].parametrizations.weight.original
    assert torch.equal(quietly(model)[3].weight, original)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_that_comes_in_is_not_touched(form):
    model = trained(form)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quietly(model, example=torch.zeros(IMAGES))
    assert type(model[3]) is not sn.SpectralLinear
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_hook_form_that_deepcopy_refuses_after_a_forward_converts():
    model = network("hook")
    model(torch.randn(IMAGES))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    assert isinstance(quietly(model)[0], sn.SpectralConv2d)


def test_a_parametrized_form_that_pickle_refuses_converts_to_one_that_it_takes():
    model = converged("parametrization").eval()
    with pytest.raises(RuntimeError, match=r"[Ss]erialization"):
        pickle.dumps(model)
    x = torch.randn(IMAGES)
    assert close(pickle.loads(pickle.dumps(quietly(model)))(x), model(x))


@pytest.mark.parametrize("form", FORMS)
def test_stale_u_and_v_are_told_with_the_norm_that_the_folded_weight_had(form):
    model = trained(form).eval()
    model(torch.zeros(IMAGES))  # the hook form folds in its forward
    told_norms = dict(re.findall(r"layer '([\d.]+)': its u and v are stale.*?has norm ([\d.]+)", "\n".join(told(model))))
    assert told_norms
    for name, told_norm in told_norms.items():
        assert float(told_norm) == pytest.approx(norm_of(model.get_submodule(name).weight), rel=1e-5)
        assert float(told_norm) > 1 + 1e-6


def test_averaged_u_and_v_are_told():
    models = [trained("parametrization", steps) for steps in (5, 25)]
    average = network("parametrization").eval()
    states = [model.state_dict() for model in models]
    average.load_state_dict({key: (states[0][key] + states[1][key]) / 2 for key in states[0]})
    folded = norm_of(average[3].weight)
    assert folded > 1.0001
    (line,) = [line for line in told(average) if "layer '3': its u and v are stale" in line]
    assert float(re.findall(r"has norm ([\d.]+)", line)[0]) == pytest.approx(folded, rel=1e-5)


def test_a_converged_linear_model_converts_in_silence():
    torch.manual_seed(0)
    model = parametrizations.spectral_norm(nn.Linear(6, 4))
    with torch.no_grad():
        for _ in range(300):
            model(torch.zeros(1, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(sn.spectral_norm(model), sn.SpectralLinear)


def test_a_matricised_convolution_is_told_with_its_operator_norm_at_the_size_that_it_meets():
    model = converged("parametrization").eval()
    (line,) = [line for line in told(model, example=torch.zeros(IMAGES)) if "layer '0'" in line]
    assert "size 8 x 8" in line
    eye = torch.eye(2 * 8 * 8).reshape(-1, 2, 8, 8)
    columns = nn.functional.conv2d(eye, model[0].weight.detach(), stride=2, padding=1).flatten(1)
    assert float(re.findall(r"its norm is ([\d.]+)", line)[0]) == pytest.approx(norm_of(columns), rel=1e-5)


def test_a_plain_model_is_normalised_and_goes_on_as_a_plain_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).double()
    spectral = sn.spectral_norm(model, example=torch.zeros(1, 2, 8, 8, dtype=torch.float64))
    assert (spectral[0].norm, spectral[0].input_size) == ("operator", (8, 8))
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    by_hand = copy.deepcopy(model)
    for layer, columns in ((by_hand[0], model[0]), (by_hand[3], model[3])):
        image = torch.eye(128, dtype=torch.float64).reshape(-1, 2, 8, 8) if columns is model[0] else None
        matrix = columns.weight if image is None else nn.functional.conv2d(image, columns.weight, padding=1)
        layer.weight.data /= norm_of(matrix)
    assert torch.allclose(spectral(x), by_hand(x), rtol=1e-9, atol=1e-12)
    back = sn.plain(spectral)
    assert [type(layer) for layer in back] == [type(layer) for layer in model]
    assert torch.allclose(back(x), spectral(x), rtol=1e-9, atol=1e-12)
    assert type(spectral[0]) is sn.SpectralConv2d


@pytest.mark.parametrize("constraint", ["unit", "cap"])
@pytest.mark.parametrize("training", [True, False])
def test_there_and_back_gives_the_folded_weight(constraint, training):
    torch.manual_seed(0)
    model = nn.Linear(7, 5, bias=False).train(training)
    model.weight.requires_grad_(False)
    back = sn.plain(sn.spectral_norm(model, constraint=constraint, target=0.25))
    assert norm_of(back.weight) == pytest.approx(0.25, rel=1e-6)
    assert (back.training, back.weight.requires_grad, back.bias) == (training, False, None)


def test_a_gap_that_power_iteration_is_too_slow_for_is_no_hindrance():
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0] for _ in range(2))
    model = nn.Linear(40, 40).double()
    model.weight.data = u @ torch.diag(torch.cat((torch.tensor([1.0, 1 - 1e-5]), torch.linspace(0.999, 0.1, 38))).double()) @ v
    assert norm_of(sn.plain(sn.spectral_norm(model)).weight) == pytest.approx(1.0, abs=1e-9)


def test_the_options_reach_every_layer():
    spectral = sn.spectral_norm(nn.Sequential(nn.Linear(3, 3)), gradient_mode="simplified", constraint="cap", target=2.0)
    assert (spectral[0].gradient_mode, spectral[0].constraint, spectral[0].target) == ("simplified", "cap", 2.0)


def test_shared_layers_and_tied_weights_stay_shared():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    spectral = sn.spectral_norm(nn.ModuleList([shared, shared, tied]))
    assert spectral[0] is spectral[1]
    assert spectral[2].weight is spectral[0].weight
    assert spectral[0].weight is not shared.weight


def test_conversion_draws_no_random_numbers():
    model = nn.Linear(4, 3)
    state = torch.get_rng_state()
    sn.plain(sn.spectral_norm(model))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("form", FORMS)
def test_the_state_dict_of_pytorch_loads_and_its_stale_pairs_are_told(form):
    model = converged(form).eval()
    x = torch.randn(IMAGES)
    expected = model(x)
    state = model.state_dict()
    spectral = quietly(network(form))
    assert not any(sn.load_torch_state_dict(spectral, state))
    assert close(spectral(x), expected)
    key = next(key for key in state if key.startswith("3.") and key.endswith("_v"))
    state[key] = torch.randn_like(state[key])
    with pytest.warns(sn.ConversionWarning, match="layer '3': its u and v are stale"):
        sn.load_torch_state_dict(spectral, state)
    del state["5.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        sn.load_torch_state_dict(spectral, state)


def test_what_is_left_unbounded_is_told():
    torch.manual_seed(0)
    (line,) = told(nn.ModuleDict({"a": nn.Linear(2, 2), "gru": nn.GRU(2, 2), "attention": nn.MultiheadAttention(4, 2)}))
    assert "'gru' (GRU), 'attention' (MultiheadAttention), 'attention.out_proj'" in line


def test_hooks_that_do_not_come_along_are_told():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert told(layer) == ["the model itself: 1 hook(s) of its own did not come along"]


def test_a_user_of_the_layer_under_another_name_gets_the_spectral_one():
    model = nn.Sequential(nn.Linear(2, 2))
    model.favourites = {"first": model[0]}
    spectral = sn.spectral_norm(model)
    assert spectral.favourites["first"] is spectral[0]


def zero():
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    return layer


REFUSED = {
    "weight of a linear layer .* is zero": zero,
    "is not understood": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "of weight_hh_l0 of a GRU": lambda: hook_form(nn.GRU(2, 2), name="weight_hh_l0"),
    "of a GRU": lambda: hook_form(nn.GRU(2, 2), name="weight_ih_l0"),
    "there is no spectral layer for a Bilinear": lambda: parametrizations.spectral_norm(nn.Bilinear(2, 2, 2)),
    "along axis 1": lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 3), dim=1),
    "size of its input": lambda: nn.Conv2d(2, 3, 3),
    "even kernel": lambda: nn.Conv2d(2, 3, 2, padding="same"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_layer_that_cannot_be_converted_is_named(why):
    with pytest.raises(sn.ConversionError, match=f"layer 'inner.1' cannot be converted.*{why}"):
        sn.spectral_norm(nn.ModuleDict({"inner": nn.Sequential(nn.Linear(2, 2), REFUSED[why]())}))


def test_a_convolution_that_meets_two_sizes_has_no_one_operator_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    with pytest.raises(sn.ConversionError, match=r"several sizes, \[\(6, 6\), \(8, 8\)\]"):
        sn.spectral_norm(Twice(), example=torch.zeros(1, 1, 8, 8))


# deel-torchlip, known by the names of its parts: the package itself is no dependency of the tests.
class _BjorckNorm(nn.Module):
    def forward(self, weight):
        for _ in range(15):
            weight = 1.5 * weight - 0.5 * (weight.flatten(1) @ weight.flatten(1).T @ weight.flatten(1)).reshape(weight.shape)
        return weight


class _LConvNorm(nn.Module):
    lconv_coefficient = 0.3

    def forward(self, weight):
        return weight * self.lconv_coefficient


class _LipschitzCoefMultiplication(nn.Module):
    _coef = 2.0

    def forward(self, weight):
        return weight * self._coef


class TorchlipLinear(nn.Linear):
    _coefficient_lip = 2.0


class TorchlipConv2d(nn.Conv2d):
    _coefficient_lip = 2.0
    old_padding_mode = "zeros"


@pytest.mark.parametrize("bjorck", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: TorchlipLinear(6, 4), lambda: TorchlipConv2d(2, 3, 3, padding="same")])
def test_a_layer_in_the_form_of_torchlip_computes_the_same(make, training, bjorck):
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(make())
    convolves = isinstance(layer, nn.Conv2d)
    for part in (_BjorckNorm,) * bjorck + (_LConvNorm,) * convolves + (_LipschitzCoefMultiplication,):
        parametrize.register_parametrization(layer, "weight", part())
    for _ in range(300):
        _ = layer.weight
    layer.train(training)
    x = torch.randn(2, 2, 7, 7) if convolves else torch.randn(3, 6)
    spectral = quietly(layer)
    assert close(spectral(x), layer(x))
    assert spectral.target == pytest.approx(0.6 if convolves else 2.0, rel=1e-3)
    if bjorck:
        assert any("Björck iteration is not continued" in line for line in told(layer))
