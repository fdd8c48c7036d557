"""A training step on a CUDA device: a CUDA graph can hold it, which no host-device synchronisation survives, and it is that of the CPU."""

import copy

import pytest
import torch
from torch import nn

import specnorm_core as sn

LAYERS = {
    "linear": (lambda mode: sn.SpectralLinear(24, 16, gradient_mode=mode), (8, 24)),
    "conv1d": (lambda mode: sn.SpectralConv1d(3, 4, 3, padding=1, input_size=9, gradient_mode=mode), (8, 3, 9)),
    "conv2d": (lambda mode: sn.SpectralConv2d(3, 4, 3, padding=1, input_size=6, gradient_mode=mode), (8, 3, 6, 6)),
    "conv3d": (lambda mode: sn.SpectralConv3d(2, 3, 3, padding=1, input_size=4, gradient_mode=mode), (8, 2, 4, 4, 4)),
    "transposed": (lambda mode: sn.SpectralConvTranspose2d(3, 4, 3, input_size=5, gradient_mode=mode), (8, 3, 5, 5)),
}


@pytest.fixture(autouse=True)
def float32():
    with torch.backends.cudnn.flags(allow_tf32=False):  # products are in float32 unless asked otherwise; convolutions are not
        yield


def step(layer, optimizer, x):
    optimizer.zero_grad(set_to_none=False)
    layer(x).square().mean().backward()
    optimizer.step()
    sn.power_iteration(layer)


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_training_step_is_captured_in_a_cuda_graph(kind, mode):
    build, shape = LAYERS[kind]
    layer = build(mode).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    x = torch.randn(shape, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # warm-up: libraries allocate and choose their kernels
            step(layer, optimizer, x)
    torch.cuda.current_stream().wait_stream(side)
    before = layer.weight.detach().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # raises at the first synchronisation
        step(layer, optimizer, x)
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(layer.weight, before)
    assert torch.isfinite(layer.weight).all()


@pytest.mark.parametrize("mode", ["full", "simplified"])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_step_on_cuda_is_that_of_the_cpu(kind, mode):
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = build(mode), torch.randn(shape)
    other = copy.deepcopy(layer).cuda()
    step(layer, torch.optim.SGD(layer.parameters(), lr=0.1), x)
    step(other, torch.optim.SGD(other.parameters(), lr=0.1), x.cuda())
    torch.testing.assert_close(other.weight.cpu(), layer.weight, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(layer.pair, other.pair, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4)


def test_a_model_trained_on_cuda_keeps_its_pair_there():
    model = nn.Sequential(sn.SpectralLinear(8, 8), nn.ReLU(), sn.SpectralLinear(8, 2)).cuda()
    assert all(part.is_cuda for layer in (model[0], model[2]) for part in layer.pair)
