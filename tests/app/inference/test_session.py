from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import CorruptError, InvalidRequestError, UnavailableError
from app.inference.runtime import PACKAGES, installed
from app.inference.session import DEVICES, Session, Stop, available_cpus
from app.settings import Settings
from export.bundle import InputDomain, Signature, Tensor


@pytest.fixture
def settings(settings_with: Callable[..., Settings]) -> Settings:
    return settings_with()


def test_a_session_gives_every_output_by_name(models: Any, settings: Settings) -> None:
    artifact = models.affine(2.0)
    session = Session(artifact.model, artifact.manifest, settings)
    outputs = session.run({"input": np.array([[1, 2, 3]], np.float32)})
    assert {name: array.tolist() for name, array in outputs.items()} == {"logits": [[2, 4, 6]], "certified_radius": [6]}
    assert session.device == "cpu"


def test_activations_that_meet_quantised_weights_are_not_rounded(models: Any, settings: Settings) -> None:
    """ONNX Runtime rounds them to 8 bits unless it is told not to, and nothing that is proved of the graph is true of such answers."""
    rng = np.random.default_rng(0)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 8]) for name in ("input", "logits"))
    weights = [rng.integers(-100, 100, (8, 8)).astype(np.int8), np.float32(0.1), np.int8(3)]
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]), helper.make_node("Gemm", ["input", "w"], ["logits"])]
    constants = [numpy_helper.from_array(np.asarray(weight), name) for weight, name in zip(weights, "qsz", strict=True)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    signature = Signature(
        inputs=(Tensor(name="input", datatype="FP32", shape=(-1, 8)),), outputs=(Tensor(name="logits", datatype="FP32", shape=(-1, 8)),)
    )
    manifest = models.affine().manifest.model_copy(update={"signature": signature})
    rows = rng.standard_normal((4, 8)).astype(np.float32)
    answer = Session(model.SerializeToString(), manifest, settings).run({"input": rows})["logits"]
    exact = rows.astype(np.float64) @ ((weights[0].astype(np.float64) - 3) * float(weights[1]))
    assert np.abs(answer - exact).max() < 1e-4


def test_a_run_that_was_ended_on_purpose_is_no_news_and_one_that_fails_is(
    models: Any, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = models.affine()
    session = Session(artifact.model, artifact.manifest, settings)
    stop = Stop()
    stop()
    with pytest.raises(InvalidRequestError):
        session.run({"input": np.zeros((1, 3), np.float32)}, stop)
    assert not caplog.records
    with pytest.raises(InvalidRequestError):
        session.run({"input": np.zeros((1, 4), np.float32)}, Stop())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_small_model_is_quick_for_a_few_rows_and_not_for_very_many(models: Any, settings: Settings) -> None:
    artifact = models.affine(width=512)
    session = Session(artifact.model, artifact.manifest, settings)
    assert not session.quick(10_000_000)


def test_a_model_of_unknown_cost_is_never_quick(models: Any, settings: Settings) -> None:
    artifact = models.loop()
    assert not Session(artifact.model, artifact.manifest, settings).quick(1)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"datatype": "FP64"},
        {"shape": (-1, 4)},
        {"shape": (1, 3)},
        {"shape": (-1, -1)},
        {"shape": (-1, 3, 1)},
    ],
)
@pytest.mark.parametrize("role", ["inputs", "outputs"])
def test_a_manifest_that_tells_of_another_graph_is_corrupt(models: Any, settings: Settings, role: str, change: dict[str, Any]) -> None:
    manifest = models.affine().manifest
    tensors = getattr(manifest.signature, role)
    other = Signature.model_validate({**dict(manifest.signature), role: (tensors[0].model_copy(update=change), *tensors[1:])})
    with pytest.raises(CorruptError, match="The manifest"):
        Session(models.affine().model, manifest.model_copy(update={"signature": other}), settings)


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_bytes_that_are_no_model_are_corrupt(models: Any, settings: Settings, cut: int) -> None:
    artifact = models.affine()
    with pytest.raises(CorruptError):
        Session(artifact.model[:cut], artifact.manifest, settings)


def test_a_model_that_does_not_run_is_corrupt(models: Any, settings: Settings) -> None:
    artifact = models.gather()
    manifest = artifact.manifest.model_copy(update={"input": InputDomain(minimum=9.0)})
    with pytest.raises(CorruptError, match="does not run"):
        Session(artifact.model, manifest, settings)


def test_inputs_that_the_graph_refuses_are_the_callers_fault(models: Any, settings: Settings) -> None:
    artifact = models.gather()
    with pytest.raises(InvalidRequestError, match="cannot be run"):
        Session(artifact.model, artifact.manifest, settings).run({"input": np.array([[4]], np.int64)})


def test_a_device_that_is_demanded_and_not_had_is_an_error(models: Any, settings_with: Callable[..., Settings]) -> None:
    artifact = models.affine()
    demanding = settings_with(device="cuda")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert Session(artifact.model, artifact.manifest, demanding).device == "cuda"
    else:
        with pytest.raises(UnavailableError, match="The setting device is cuda, but this build of ONNX Runtime has no CUDA"):
            Session(artifact.model, artifact.manifest, demanding)


def test_a_device_that_is_only_preferred_comes_with_the_reason_for_another(models: Any, settings_with: Callable[..., Settings]) -> None:
    artifact = models.affine()
    session = Session(artifact.model, artifact.manifest, settings_with(device="auto"))
    assert session.device == DEVICES[onnxruntime.InferenceSession(artifact.model).get_providers()[0]]
    assert (session.device_reason is None) == (session.device == "cuda")
    assert Session(artifact.model, artifact.manifest, settings_with(device="cpu")).device_reason is None


def test_two_builds_of_the_runtime_in_one_environment_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in PACKAGES:
        folder = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    assert installed().startswith("onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match="both onnxruntime and onnxruntime-gpu"):
        installed()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_control_groups_limit_counts(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (expected or available_cpus(tmp_path / "nowhere"))
