"""Real tiny models in real bundles, and a folder of them to serve from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import ConflictError, CorruptError, NotFoundError
from app.inference.catalog import Artifact
from app.settings import Settings
from export import bundle

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    **{f"{sign}INT{bits}": getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


def tensor(name: str, datatype: str, *shape: int) -> bundle.Tensor:
    return bundle.Tensor.model_validate({"name": name, "datatype": datatype, "shape": shape})


def value(spec: bundle.Tensor) -> Any:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.datatype], [None if size == -1 else size for size in spec.shape])


class Models:
    """Builds artifacts; every graph is a few nodes."""

    @staticmethod
    def build(
        inputs: list[bundle.Tensor],
        outputs: list[bundle.Tensor],
        nodes: list[Any],
        weights: dict[str, np.ndarray] | None = None,
        *,
        rows_independent: bool = True,
        bound: float | None = 1.0,
        labels: tuple[str, ...] = (),
        domain: bundle.InputDomain | None = None,
    ) -> Artifact:
        constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
        graph = helper.make_graph(nodes, "g", [value(spec) for spec in inputs], [value(spec) for spec in outputs], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
        manifest = bundle.Manifest(
            signature=bundle.Signature(inputs=tuple(inputs), outputs=tuple(outputs), rows_independent=rows_independent, labels=labels),
            input=domain or bundle.InputDomain(),
            lipschitz=bundle.Lipschitz(
                bound=bound,
                rigorous=bound is not None,
                method="product" if bound is not None else None,
                reason=None if bound is not None else "Softsign is not known",
            ),
            origin="test",
            files={bundle.MODEL: bundle.digest(model)},
        )
        return Artifact(manifest, model)

    def honest(self, scale: float = 1.0, *, bound: float | None = None) -> Artifact:
        """logits = scale * input, and nothing is said that the bytes do not prove, unless another ``bound`` is given."""
        artifact = self.build(
            [tensor("input", "FP32", -1, 3)],
            [tensor("logits", "FP32", -1, 3)],
            [helper.make_node("MatMul", ["input", "w"], ["logits"])],
            {"w": np.eye(3, dtype=np.float32) * np.float32(scale)},
            bound=bound or scale * 1.0001,
        )
        upper = scale * 1.0001
        layer = bundle.Layer(
            name="logits", kind="linear", shape=(3, 3), norm="operator", constraint="none", target=upper, sigma_estimate=scale,
            sigma_upper=upper, operator_sigma_upper=upper, folded_sigma_upper=upper, stable_rank=None,
        )  # fmt: skip
        return Artifact(artifact.manifest.model_copy(update={"layers": (layer,)}), artifact.model)

    def affine(self, scale: float = 1.0, *, width: int = 3, **options: Any) -> Artifact:
        """logits = scale * input, certified_radius = the largest of them."""
        return self.build(
            [tensor("input", "FP32", -1, width)],
            [tensor("logits", "FP32", -1, width), tensor("certified_radius", "FP32", -1)],
            [
                helper.make_node("MatMul", ["input", "w"], ["logits"]),
                helper.make_node("ReduceMax", ["logits"], ["certified_radius"], axes=[1], keepdims=0),
            ],
            {"w": np.eye(width, dtype=np.float32) * np.float32(scale)},
            **options,
        )

    def identity(self, datatype: str, *shape: int, **options: Any) -> Artifact:
        return self.build(
            [tensor("input", datatype, *shape)],
            [tensor("output", datatype, *shape)],
            [helper.make_node("Identity", ["input"], ["output"])],
            **options,
        )

    def centred(self) -> Artifact:
        """Subtracts the mean over the rows: a row's answer depends on the others."""
        return self.build(
            [tensor("input", "FP32", -1, 3)],
            [tensor("output", "FP32", -1, 3)],
            [
                helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0], keepdims=1),
                helper.make_node("Sub", ["input", "mean"], ["output"]),
            ],
            rows_independent=False,
        )

    def two_inputs(self) -> Artifact:
        return self.build(
            [tensor("a", "FP32", -1, 2), tensor("b", "FP32", -1, 2)],
            [tensor("sum", "FP32", -1, 2)],
            [helper.make_node("Add", ["a", "b"], ["sum"])],
        )

    def gather(self) -> Artifact:
        """Fails at run time for an index outside 0..3."""
        return self.build(
            [tensor("input", "INT64", -1, 1)],
            [tensor("output", "FP32", -1, 1)],
            [helper.make_node("Gather", ["table", "input"], ["output"])],
            {"table": np.arange(4, dtype=np.float32)},
        )

    def loop(self, *, free: int = -1) -> Artifact:
        """Counts to each request's number: as slow as the caller likes. A free second dimension keeps it off the event loop."""
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["going_on"]),
                helper.make_node("Add", ["count", "one"], ["next"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("at", TensorProto.INT64, []),
                helper.make_tensor_value_info("going", TensorProto.BOOL, []),
                helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
            ],
            [
                helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
            ],
            [numpy_helper.from_array(np.array([1], np.int64), "one")],
        )
        return self.build(
            [tensor("input", "INT64", -1, free)],
            [tensor("output", "INT64", 1)],
            [
                helper.make_node("ReduceMax", ["input"], ["trips"], keepdims=0),
                helper.make_node("Loop", ["trips", "", "zero"], ["output"], body=body),
            ],
            {"zero": np.array([0], np.int64)},
            rows_independent=False,
        )


class Folder:
    """A source of versions: one bundle folder each, and a live version for each model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.promoted: dict[str, str] = {}
        self.named: dict[str, dict[str, str]] = {}
        self.reads: list[tuple[str, str]] = []

    def add(self, model: str, version: str, artifact: Artifact, *, live: bool = False) -> None:
        bundle.write(self.root / model / version, artifact.manifest, {bundle.MODEL: artifact.model})
        if live:
            self.promoted[model] = version

    def remove(self, model: str, version: str) -> None:
        shutil.rmtree(self.root / model / version)

    def damage(self, model: str, version: str) -> None:
        path = self.root / model / version / bundle.MODEL
        path.write_bytes(path.read_bytes()[:-1])

    def models(self) -> list[str]:
        return sorted(folder.name for folder in self.root.iterdir()) if self.root.exists() else []

    def versions(self, model: str) -> list[str]:
        if model not in self.models():
            raise NotFoundError(f"There is no model {model!r}.")
        return sorted(folder.name for folder in (self.root / model).iterdir())

    def live(self, model: str) -> str | None:
        return self.promoted.get(model)

    def previous(self, model: str) -> str:
        before = [version for version in self.versions(model) if version < (self.live(model) or "")]
        if not before:
            raise ConflictError(f"There is no version of {model!r} before the live one.")
        return before[-1]

    def aliases(self) -> dict[str, dict[str, str]]:
        return self.named

    def artifact(self, model: str, version: str) -> Artifact:
        if version not in self.versions(model):
            raise NotFoundError(f"There is no version {version!r} of {model!r}.")
        self.reads.append((model, version))
        try:
            manifest, files = bundle.read(self.root / model / version)
        except bundle.BundleError as error:
            raise CorruptError(str(error)) from None
        return Artifact(manifest, files[bundle.MODEL])


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@pytest.fixture(scope="session")
def folder_at() -> type[Folder]:
    return Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "bundles")


@pytest.fixture(scope="session")
def settings_with() -> Callable[..., Settings]:
    def make(**values: Any) -> Settings:
        return Settings(_env_file=None, **{"device": "cpu", "threads": 1, **values})

    return make
