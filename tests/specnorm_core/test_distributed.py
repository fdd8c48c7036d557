"""Two processes of DistributedDataParallel on gloo: one pair (u, v) everywhere, and the training of a single process."""

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import specnorm_core as sn
from specnorm_core.norms import spectral_layers


def model(seed):
    torch.manual_seed(seed)
    convolutions = (
        sn.SpectralConv2d(1, 2, 3, padding=1, padding_mode="circular", input_size=(4, 4)), nn.Tanh(),
        sn.SpectralConvTranspose2d(2, 2, 2, stride=2, input_size=(4, 4)), nn.Tanh(), nn.Flatten(), sn.SpectralLinear(128, 3),
    )  # fmt: skip
    return nn.Sequential(*convolutions).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def train(network, x, y, steps=4):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    sn.attach(network, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()


def state(network):
    pairs = {
        f"{part}.{name}": value for name, layer in spectral_layers(network).items() for part, value in zip("uv", layer.pair, strict=True)
    }
    return {name: value.detach().clone() for name, value in network.state_dict().items()} | pairs


def run(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = model(seed=rank)  # each process draws weights of its own, and gets those of the first
    x, y = batch()
    train(DistributedDataParallel(network), x[rank::2], y[rank::2])
    torch.save(state(network), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_keep_one_pair_and_train_as_one_process_does(tmp_path):
    multiprocessing.spawn(run, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = model(seed=0)
    for layer in spectral_layers(alone).values():
        layer.rederive()
    train(alone, *batch())
    assert first.keys() == second.keys() == state(alone).keys()
    for name, value in state(alone).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-11)
