"""Every kind of layer in every form that it comes in: what it computes, what is told of it, and the way back."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hook_form

import specnorm_core as sn
from specnorm_core.lanczos import settle
from specnorm_core.orthogonal import OrthogonalLinear

FORMS = {"hook": hook_form, "parametrization": parametrizations.spectral_norm}
INDICES = torch.tensor([[0, 3], [5, 1]])
KINDS = {
    "linear": (lambda: nn.Linear(6, 5), sn.SpectralLinear, (4, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2), sn.SpectralConv1d, (2, 4, 9)),
    "conv1d same": (lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="replicate"), sn.SpectralConv1d, (2, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), sn.SpectralConv2d, (2, 2, 7, 6)),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), sn.SpectralConv2d, (2, 2, 5, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), sn.SpectralConv2d, (2, 2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), sn.SpectralConv3d, (2, 2, 4, 4, 3)),
    "convtranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), sn.SpectralConvTranspose2d, (2, 4, 3, 4)),
    "embedding": (lambda: nn.Embedding(6, 3, padding_idx=1), sn.SpectralEmbedding, None),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("form", FORMS)


def plain_layer(kind):
    torch.manual_seed(0)
    build, spectral, shape = KINDS[kind]
    return build(), spectral, INDICES if shape is None else torch.randn(shape)


def incoming(kind, form, *, trained):
    """A layer of PyTorch: fresh from its constructor, or trained, averaged and only then left to converge."""
    layer, spectral, x = plain_layer(kind)
    layer = FORMS[form](layer, n_power_iterations=15).train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(5 if trained else 0):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    return layer, spectral, x


def converge(layer, x):
    with torch.no_grad():
        for _ in range(20):
            layer(x)
    return layer


def quietly(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.ConversionWarning)
        return sn.spectral_norm(model, **options)


@torch.no_grad()
def close(a, b):
    return (a - b).abs().max().item() <= 1e-6 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@every_form
@every_kind
def test_a_converged_layer_of_pytorch_computes_the_same_there_and_back_again(kind, form, trained):
    layer, spectral, x = incoming(kind, form, trained=trained)
    expected = converge(layer, x).eval()(x)
    ours = quietly(layer)
    assert type(ours) is spectral
    assert close(ours(x), expected)
    back = sn.plain(ours)
    assert type(back) is type(plain_layer(kind)[0])
    assert close(back(x), expected)
    assert quietly(back, example=x, norm="matricised")(x).shape == expected.shape


@every_form
@every_kind
def test_its_state_dict_loads_into_the_converted_layer(kind, form):
    layer, _, x = incoming(kind, form, trained=True)
    state, expected = converge(layer, x).state_dict(), layer.eval()(x)
    ours = quietly(incoming(kind, form, trained=False)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", sn.ConversionWarning)
        assert not any(sn.load_torch_state_dict(ours, state))
    assert close(ours(x), expected)


@every_form
@every_kind
def test_a_lagging_sigma_is_told_with_the_factor_by_which_outputs_change(kind, form):
    layer, _, x = incoming(kind, form, trained=True)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        (layer.weight_orig if form == "hook" else layer.parametrizations.weight.original).add_(0.3)
    with pytest.warns(sn.ConversionWarning) as caught:
        ours = sn.spectral_norm(layer)
    (line,) = [str(warning.message) for warning in caught if "stale" in str(warning.message)]
    layer.eval()
    theirs = layer(x)
    norm, factor = (float(number) for number in re.findall(r"has norm ([\d.]+), .* scale by (-?[\d.]+)", line)[0])
    assert abs(factor) == pytest.approx(1 / norm, rel=1e-5)
    assert abs(factor) < 1 - 1e-6
    torch.testing.assert_close(ours(x), theirs * factor, rtol=1e-5, atol=1e-6)


@every_kind
def test_a_plain_layer_is_normalised_in_the_norm_of_its_map(kind):
    layer, spectral, x = plain_layer(kind)
    ours = sn.spectral_norm(layer, example=x, target=2.0)
    assert type(ours) is spectral
    true = copy.deepcopy(ours)
    scale = 2 / settle(true)
    bias = getattr(layer, "bias", None)
    shift = 0.0 if bias is None else bias.detach().reshape(-1, *[1] * (x.ndim - 2))
    assert close(ours(x), (layer(x) - shift) * scale + shift)
    if x.is_floating_point():
        sigmas = torch.autograd.functional.jacobian(lambda x: ours(x[None])[0], x[0]).flatten(x.ndim - 1).flatten(0, -2)
        assert float(torch.linalg.matrix_norm(sigmas, 2)) == pytest.approx(2.0, rel=1e-5)


@every_form
def test_a_transposed_convolution_is_matricised_as_pytorch_does_and_told_of_its_true_norm(form):
    layer, _, x = incoming("convtranspose2d", form, trained=True)
    converge(layer, x).eval()
    with pytest.warns(sn.ConversionWarning, match="as a convolution of images of size 3 x 4 its norm is") as caught:
        ours = sn.spectral_norm(layer, example=x)
    assert sn.sigma(ours) == pytest.approx(float(torch.linalg.matrix_norm(ours.weight.detach().transpose(0, 1).flatten(1), 2)), rel=1e-6)
    told = float(re.findall(r"its norm is ([\d.]+)", str(caught[0].message))[0])
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x[0]).flatten(3).flatten(0, 2)
    assert told == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-5)


def test_a_kernel_wider_than_the_size_that_is_assumed_without_an_example_converts():
    layer = parametrizations.spectral_norm(nn.Conv1d(1, 1, 5, dilation=5, padding=12))
    with pytest.warns(sn.ConversionWarning, match="of size 45"):
        sn.spectral_norm(layer)


def test_the_padding_entry_of_an_embedding_stays_zero_and_untrained():
    layer, _, _ = plain_layer("embedding")
    ours = quietly(layer)
    assert ours.padding_idx == 1
    assert not ours(torch.tensor(1)).any()
    ours(INDICES).square().sum().backward()
    assert not ours.weight.grad[1].any()
    assert sn.plain(ours).padding_idx == 1


@pytest.mark.parametrize(("name", "value"), [("max_norm", 1.0), ("sparse", True), ("scale_grad_by_freq", True)])
def test_an_option_that_a_spectral_embedding_has_not_is_refused_by_name(name, value):
    model = nn.Sequential(nn.Embedding(4, 3, **{name: value}))
    with pytest.raises(sn.ConversionError, match=f"layer '0' cannot be converted: a spectral embedding has no {name}"):
        sn.spectral_norm(model)
    with pytest.raises(sn.ConversionError, match=f"layer '0' cannot be converted: a spectral embedding has no {name}"):
        sn.spectral_norm(model, example=torch.tensor([0]))


class SymmetricConv2d(nn.Conv2d):
    """What deel-torchlip makes of a convolution: known by its parts."""

    _coefficient_lip = 1.0
    old_padding_mode = "symmetric"


REFUSED = {
    "symmetric padding has no counterpart": lambda: parametrizations.spectral_norm(SymmetricConv2d(2, 2, 3)),
    "no spectral layer for the spectral norm of weight of a ConvTranspose1d": lambda: hook_form(nn.ConvTranspose1d(2, 2, 3)),
    "no spectral layer for a ConvTranspose3d": lambda: parametrizations.spectral_norm(nn.ConvTranspose3d(2, 2, 2)),
    "along axis 0, and the spectral layer's along axis 1": lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 2), dim=0),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(why):
    with pytest.raises(sn.ConversionError, match=f"layer '1' cannot be converted: .*{why}"):
        sn.spectral_norm(nn.Sequential(nn.Identity(), REFUSED[why]()))


@pytest.mark.parametrize("target", [1.0, 0.5])
def test_an_orthogonal_layer_folds_to_its_orthonormal_factor_times_its_target(target):
    torch.manual_seed(0)
    layer = OrthogonalLinear(6, 4, target=target)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight) * 0.3)
    layer.rederive(300)
    back = sn.plain(nn.Sequential(layer))[0]
    x = torch.randn(5, 6)
    assert type(back) is nn.Linear
    assert close(back(x), layer(x))
    assert torch.linalg.svdvals(back.weight.detach()).tolist() == pytest.approx([target] * 4, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@every_kind
def test_a_broken_weight_is_refused_by_name_in_both_directions(kind, value):
    layer, _, x = plain_layer(kind)
    ours = nn.Sequential(quietly(layer, example=x))
    for weight in (layer.weight, ours[0].weight):
        with torch.no_grad():
            weight.fill_(value)
    with pytest.raises(sn.ConversionError, match=r"layer '0' cannot be converted: the weight of .* is (zero|not finite)"):
        sn.spectral_norm(nn.Sequential(layer), example=x, norm="matricised")
    with pytest.raises(sn.ConversionError, match=r"layer '0' cannot be folded: the weight of .* is (zero|not finite)"):
        sn.plain(ours)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@every_kind
def test_a_weight_of_any_scale_converts_and_folds(kind, scale):
    layer, _, x = plain_layer(kind)
    expected = sn.plain(quietly(layer, example=x)).weight
    with torch.no_grad():
        layer.weight.mul_(scale)
    torch.testing.assert_close(sn.plain(quietly(layer, example=x)).weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_kind
def test_a_half_precision_weight_stays_so_there_and_back(kind, dtype):
    layer, _, x = plain_layer(kind)
    exact = sn.plain(quietly(layer, example=x, norm="matricised")).weight
    ours = quietly(layer.to(dtype), norm="matricised")
    assert ours.weight.dtype == dtype
    back = sn.plain(ours)
    assert back.weight.dtype == dtype
    torch.testing.assert_close(back.weight.float(), exact, rtol=0.02, atol=0.01)


@every_kind
def test_a_weight_that_is_not_contiguous_converts(kind):
    layer, _, x = plain_layer(kind)
    expected = quietly(layer, example=x)(x)
    layer.weight = nn.Parameter(layer.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    assert close(quietly(layer, example=x)(x), expected)


@pytest.mark.parametrize("build", [lambda: nn.Linear(0, 3), lambda: nn.Linear(3, 0), lambda: nn.Embedding(0, 3)])
def test_an_empty_weight_is_refused_by_name(build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch warns that there is nothing to initialise
        with pytest.raises(sn.ConversionError, match=r"layer '0' cannot be converted: .* is empty"):
            sn.spectral_norm(nn.Sequential(build()))
