import contextlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch.nn import functional as F

from export.bundle import InputDomain
from export.compare import plots, summary
from export.compare.__main__ import main
from export.compare.pair import Pair, Run
from export.compare.report import FILE, read
from export.compare.trace import correction_sizes, look
from specnorm_core.architecture import Architecture, Linear, Network, Relu, build
from specnorm_core.data import Dataset, load
from specnorm_core.norms import spectral_layers
from specnorm_core.training import Hyperparameters

ARCHITECTURE = Architecture(input_shape=(64,), shift=8.0, scale=0.125, layers=(Linear(features=16), Relu(), Linear(features=10)))
OPTIONS = Hyperparameters(n_epochs=2, batch_size=32, learning_rate=1e-2, temperature=1.0, seed=3)
RADII = tuple(np.linspace(0, 4, 9).tolist())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits").subset(np.arange(300))


@pytest.fixture(scope="module")
def pair(digits: Dataset) -> Pair:
    found = Pair(ARCHITECTURE, digits, OPTIONS, points=3)
    for _ in found:
        pass
    found.finish(RADII[:2], RADII, InputDomain())
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, x=digits.x, y=digits.y)
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, file: Path) -> tuple[Path, str]:
    """The folder of a small comparison at two rates, one of which nothing survives, and what it printed."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    printed = io.StringIO()
    arguments = ["--data", str(file), "--arch", "mlp-small", "--seeds", "2", "--epochs", "1", "--points", "2", "--out", str(folder)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert main([*arguments, "--learning-rate", "0.01", "1e30"]) == 0
    return folder, printed.getvalue()


def test_both_runs_of_a_pair_begin_at_the_same_weights_and_go_through_the_same_rows(digits: Dataset) -> None:
    pair = Pair(ARCHITECTURE, digits, OPTIONS, points=3)
    before = [side.model.state_dict() for side in pair.sides]
    assert all(torch.equal(value, before[1][name]) for name, value in before[0].items())
    assert torch.equal(*(torch.from_numpy(side.fit.data.x) for side in pair.sides))
    seen: list[list[torch.Tensor]] = [[], []]
    for side, batches in zip(pair.sides, seen, strict=True):

        def keep(model: Any, given: Any, side: Any = side, batches: Any = batches) -> None:
            if model is side.model and model.training:  # not the copy that is measured
                batches.append(given[0].clone())

        side.model.register_forward_pre_hook(keep)
    for _ in pair:
        pass
    assert [len(batches) for batches in seen] == [pair.steps] * 2
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    first = [side.trace[0] for side in pair.sides]
    assert first[0] == first[1]
    assert first[0].step == 0


def test_the_two_modes_truly_differ_and_are_what_their_names_say(pair: Pair) -> None:
    full, simplified = pair.sides
    for side, mode in ((full, "full"), (simplified, "simplified")):
        assert {layer.gradient_mode for layer in spectral_layers(side.model).values()} == {mode}
        assert side.trace[-1].step == pair.steps
    assert full.trace[-1].layers["0"].sigma != pytest.approx(simplified.trace[-1].layers["0"].sigma, rel=1e-3)
    assert full.trace[-1].loss != simplified.trace[-1].loss


def test_steps_are_done_in_turn_and_each_is_timed(digits: Dataset) -> None:
    pair = Pair(ARCHITECTURE, digits, OPTIONS, points=1)
    for step in pair:
        assert [side.fit.step for side in pair.sides] == [step, step]
        if step == 5:
            break
    assert [len(run.seconds) for run in pair.runs()] == [5, 5]
    assert all(seconds > 0 for run in pair.runs() for seconds in run.seconds)
    assert all(run.result is None and run.failure is None for run in pair.runs())


def test_a_run_that_training_gives_up_is_kept_with_the_reason(digits: Dataset) -> None:
    pair = Pair(ARCHITECTURE, digits, OPTIONS.model_copy(update={"learning_rate": 1e30}), points=1)
    steps = [*pair]
    pair.finish(RADII, RADII, InputDomain())
    assert len(steps) < pair.steps
    for run in pair.runs():
        assert run.failure is not None
        assert "try a learning_rate below" in run.failure
        assert run.result is None
        assert [point.step for point in run.trace] == [0]


def test_a_run_goes_on_to_its_end_when_the_other_of_its_pair_has_failed(digits: Dataset) -> None:
    pair = Pair(ARCHITECTURE, digits, OPTIONS, points=1)
    for step in pair:
        if step == 3:
            pair.sides[1].failure = "it failed"
    pair.finish(RADII, RADII, InputDomain())
    full, simplified = pair.runs()
    assert (len(full.seconds), len(simplified.seconds)) == (pair.steps, 3)
    assert full.result is not None
    assert (simplified.result, simplified.failure) == (None, "it failed")


def _through_svd(model: Network, batch: Dataset, *, constant: bool) -> list[torch.Tensor]:
    """The gradient of the loss in float64, sigma taken from an SVD that is differentiated, or held constant."""
    weights = [layer.weight.detach().double().requires_grad_() for layer in spectral_layers(model).values()]
    biases = [layer.bias.detach().double() for layer in spectral_layers(model).values() if layer.bias is not None]
    x = (torch.from_numpy(batch.x).double() - model.shift) * model.scale
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        sigma = torch.linalg.svd(weight, full_matrices=False).S[0]
        x = F.linear(x if index == 0 else x.relu(), weight / (sigma.detach() if constant else sigma), bias)
    return [*torch.autograd.grad(F.cross_entropy(x, torch.from_numpy(batch.y)), weights)]


def test_the_correction_is_the_term_that_autograd_through_an_svd_finds_and_simplified_drops(digits: Dataset) -> None:
    model, batch = build(ARCHITECTURE, seed=1), digits.subset(np.arange(50))
    with torch.no_grad():
        for layer in spectral_layers(model).values():
            layer.weight.add_(torch.outer(*layer.pair))  # a clear top singular value: sigma is differentiable there
            layer.rederive(50)
    exact, kept = (_through_svd(model, batch, constant=constant) for constant in (False, True))
    expected = [float((whole - part).norm() / part.norm()) for whole, part in zip(exact, kept, strict=True)]
    _, found = correction_sizes(model, batch, OPTIONS)
    assert [*found.values()] == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-3


def test_looking_leaves_training_as_it_is(digits: Dataset) -> None:
    model = build(ARCHITECTURE, seed=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = [layer.pair for layer in spectral_layers(model).values()]
    point = look(model, digits, digits, OPTIONS, step=0, epoch=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        new is old
        for layer, kept in zip(spectral_layers(model).values(), pairs, strict=True)
        for new, old in zip(layer.pair, kept, strict=True)
    )
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {layer.gradient_mode for layer in spectral_layers(model).values()} == {"full"}
    for name, layer in spectral_layers(model).items():
        values = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
        assert values[0] * 0.98 < point.layers[name].sigma <= values[0]
        assert point.layers[name].stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-3)


def test_certified_accuracy_falls_with_the_radius_and_is_never_above_what_an_attack_leaves(pair: Pair) -> None:
    for side in pair.sides:
        assert side.result is not None
        assert side.result.curve is not None
        assert side.result.lipschitz_bound is not None
        assert list(side.result.curve) == sorted(side.result.curve, reverse=True)
        assert side.result.curve[:2] == side.result.certified
        assert side.result.curve[0] <= side.result.accuracy
        assert side.result.curve[0] > side.result.curve[-1]
        x = torch.from_numpy(side.held_out.x).requires_grad_()
        y = torch.from_numpy(side.held_out.y)
        (slope,) = torch.autograd.grad(F.cross_entropy(side.model(x), y, reduction="sum"), x)
        for radius, proved in zip(RADII, side.result.curve, strict=True):
            moved = x.detach() + radius * 0.999 * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-30)
            assert float((side.model(moved).argmax(dim=1) == y).double().mean()) >= proved


def test_the_results_are_of_the_exported_model_with_rigorous_norms(pair: Pair) -> None:
    for side in pair.sides:
        assert side.result is not None
        for name, layer in spectral_layers(side.model).items():
            true = float(torch.linalg.svdvals(layer.weight.detach().double())[0])
            assert true <= side.result.layers[name].sigma_upper < true * 1.001
            assert side.result.layers[name].folded_sigma_upper <= 1


def test_the_file_holds_all_raw_numbers_the_command_and_what_it_ran_with(compared: tuple[Path, str], digits: Dataset) -> None:
    found = json.loads((compared[0] / FILE).read_text())
    subject = found["subject"]
    assert subject["command"].startswith("specnorm compare --data ")
    assert {"python", "specnorm", "torch", "numpy", "onnxruntime"} <= subject["versions"].keys()
    assert (subject["data_digest"], subject["rows"], subject["held_out"]) == (load_digest(digits), 300, 60)
    assert subject["hyperparameters"]["temperature"] == 10
    assert (subject["seeds"], subject["learning_rates"], found["stopped"]) == ([0, 1], [0.01, 1e30], False)
    assert {(run["mode"], run["seed"], run["learning_rate"]) for run in found["runs"]} == {
        (mode, seed, rate) for mode in ("full", "simplified") for seed in (0, 1) for rate in (0.01, 1e30)
    }
    run = found["runs"][0]
    assert len(run["seconds"]) == run["steps"]
    assert [point["step"] for point in run["trace"]] == [0, run["steps"] // 2, run["steps"]]
    assert run["trace"][0]["layers"]["0"].keys() == {"sigma", "stable_rank", "correction"}
    assert len(run["result"]["curve"]) == len(subject["curve_radii"])


def load_digest(data: Dataset) -> str:
    from specnorm_core.data import assemble

    return assemble(data.x, data.y).digest


def test_runs_that_end_in_no_number_are_counted_and_told_of(compared: tuple[Path, str]) -> None:
    folder, printed = compared
    found = read(folder / FILE)
    assert [row.failed for row in found.sweep] == [{"full": 0, "simplified": 0}, {"full": 2, "simplified": 2}]
    assert found.rates == {"full": 0.01, "simplified": 0.01}
    assert "2/2, 2/2" in printed
    assert "full, seed 1, learning rate 1e+30: " in printed


def test_the_table_gives_each_measure_of_both_modes_and_their_difference(compared: tuple[Path, str]) -> None:
    found = read(compared[0] / FILE)
    names = [row.measure for row in found.rows]
    for word in (
        "held-out accuracy",
        "certified at r = ",
        "largest raw sigma",
        "stable rank, layer 0",
        "correction, layer 2",
        "ms per step",
    ):
        assert any(name.startswith(word) for name in names)
        assert word in compared[1]
    accuracy = found.rows[0]
    runs = {(run.mode, run.seed): run.result.accuracy for run in found.runs if run.result}
    assert accuracy.full.mean == pytest.approx((runs["full", 0] + runs["full", 1]) / 2)
    assert accuracy.difference.mean == pytest.approx(sum(runs["full", seed] - runs["simplified", seed] for seed in (0, 1)) / 2)
    assert "\x1b" not in compared[1]
    assert max(len(line) for line in compared[1].splitlines() if " ± " in line and "deviation" not in line) <= 80


def test_an_earlier_comparison_is_shown_again_without_training(
    compared: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (compared[0] / FILE).read_bytes()
    monkeypatch.setattr(plots, "PLOTS", {})  # drawing takes its time
    assert main(["--from", str(compared[0] / FILE)]) == 0
    assert capsys.readouterr().out == compared[1]
    assert main(["--from", str(compared[0] / FILE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before)
    assert (compared[0] / FILE).read_bytes() == before


def test_every_plot_is_a_picture(compared: tuple[Path, str]) -> None:
    for name in plots.PLOTS:
        content = (compared[0] / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert 10_000 < len(content) < 150_000


def test_without_matplotlib_a_sentence_says_how_to_get_the_plots(
    compared: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / FILE).write_bytes((compared[0] / FILE).read_bytes())
    assert main(["--from", str(tmp_path / FILE)]) == 0
    told = capsys.readouterr()
    assert "held-out accuracy" in told.out
    assert "pip install 'specnorm[plots]'" in told.err
    assert f"specnorm compare --from {tmp_path / FILE}" in told.err
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "real numbers as targets": ({"y": np.linspace(0, 1, 40)}, [], "class labels"),
    "one class": ({"y": np.zeros(40, int)}, [], "one class"),
    "few rows": ({"x": np.ones((4, 3)), "y": np.arange(4)}, [], "10 are needed"),
    "no architecture": ({}, ["--arch", "resnet"], "mlp-small"),
    "cnn of no square": ({}, ["--arch", "cnn"], "no square"),
    "no seeds": ({}, ["--seeds", "0"], "--seeds"),
    "epochs below 1": ({}, ["--epochs", "0"], "n_epochs"),
    "rate below 0": ({}, ["--learning-rate", "-1"], "learning_rate"),
    "radius below 0": ({}, ["--radii", "-1"], "radius"),
    "unknown activation": ({}, ["--activation", "swish"], "groupsort"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused_in_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, more, word = BAD[case]
    rows = {"x": np.random.default_rng(0).normal(size=(40, 3)), "y": np.arange(40) % 2, **changes}
    np.savez(tmp_path / "data.npz", x=rows["x"], y=rows["y"])
    assert main(["--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out"), *more]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("specnorm compare: ")
    assert told.err.count("\n") == 1
    assert word in told.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["--data", str(file), "--out", str(tmp_path)]) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: specnorm compare ")


def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["--from", str(tmp_path / "other.json")]) == 1
    assert main(["--from", str(tmp_path / "nothing.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=7)
    found = summary.difference((a - b).tolist())
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((a - b).mean())
    assert summary.difference([0.5]).low is None
    assert summary.spread([1.0, 3.0]) == summary.Spread(mean=2.0, sd=math.sqrt(2), n=2)


def test_the_interval_of_a_ratio_never_goes_below_zero_and_is_the_same_from_either_side() -> None:
    found = summary.ratio([0.5, 1.6])
    assert found.mean == pytest.approx(math.sqrt(0.8))
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.mean < found.high
    other = summary.ratio([1 / 0.5, 1 / 1.6])
    assert (other.mean, other.low, other.high) == pytest.approx((1 / found.mean, 1 / found.high, 1 / found.low))


def test_a_band_of_shares_stays_between_nothing_and_all() -> None:
    drawn = Figure().add_subplot()
    plots._band(drawn, {"full": ([1.0, 2.0], np.array([[0.0, 1.0], [0.3, 0.9]]))}, most=1.0)
    (band,) = drawn.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() >= 0
    assert heights.max() <= 1


def test_the_time_ratio_is_of_steps_done_one_after_the_other() -> None:
    def run(mode: Any, seconds: list[float]) -> Run:
        return Run(mode=mode, seed=0, learning_rate=1.0, steps=3, trace=(), seconds=tuple(seconds))

    # The machine is ten times slower in the second step: it is so for both.
    assert summary.step_ratios([run("full", [1.1, 11.0, 1.1]), run("simplified", [1.0, 10.0, 1.0])]) == pytest.approx({0: 1.1})
