"""Tiny real graphs, judged by the bytes that would be served."""

from typing import Any

import numpy as np
import pytest
from onnx import helper

from app.worker.verdict import judge, scored
from export import bundle
from export.bundle import MODEL, Manifest, Training
from specnorm_core.data import Dataset

X = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
CLASSES = Dataset(X, np.array([0, 1, 2, 1]), "")
VALUES = Dataset(X, np.array([1, 2, 3, 1], np.float32), "")


@pytest.fixture
def publish(workspace: Any) -> Any:
    def act(artifact: Any, *, model: str = "other") -> None:
        workspace.registry.publish(model, manifest(artifact), {MODEL: artifact.model})
        workspace.registry.promote(model, "1", why="first", who="test")

    return act


def manifest(artifact: Any) -> Manifest:
    found: Manifest = artifact.manifest.model_copy(update={"training": Training(metrics={})})
    return found


def verdict(workspace: Any, artifact: Any, data: Dataset) -> Any:
    return judge(workspace.registry, "other", scored(manifest(artifact), artifact.model, data, threads=1), data, threads=1)


def regressor(models: Any, *weights: float) -> Any:
    shapes = (
        (bundle.Tensor(name="input", datatype="FP32", shape=(-1, 3)),),
        (bundle.Tensor(name="prediction", datatype="FP32", shape=(-1, 1)),),
    )
    return models.build(
        *map(list, shapes), [helper.make_node("MatMul", ["input", "w"], ["prediction"])], {"w": np.array(weights, np.float32)[:, None]}
    )


def test_a_model_that_does_as_well_as_the_live_one_may_take_its_place_and_a_worse_one_may_not(
    workspace: Any, publish: Any, models: Any
) -> None:
    publish(models.affine(1.0))
    same = verdict(workspace, models.affine(2.0), CLASSES)
    assert (same.promote, same.against) == (True, "1")
    assert same.scores == {"validation_accuracy": 0.75, "live_validation_accuracy": 0.75}
    worse = verdict(workspace, models.affine(-1.0), CLASSES)
    assert (worse.promote, worse.scores["validation_accuracy"]) == (False, 0.25)
    assert worse.reason == "its validation accuracy is 0.25, that of the live other:1 is 0.75"


def test_of_values_the_smaller_error_is_the_better_and_one_that_is_no_number_never_is(workspace: Any, publish: Any, models: Any) -> None:
    publish(regressor(models, 1, 2, 2))
    better = verdict(workspace, regressor(models, 1, 2, 3), VALUES)
    assert (better.promote, better.scores) == (True, {"validation_mse": 0.0, "live_validation_mse": 0.25})
    assert not verdict(workspace, regressor(models, 1, 2, 0), VALUES).promote
    assert not verdict(workspace, regressor(models, 1, 2, np.nan), VALUES).promote


def test_a_first_version_is_promoted_and_one_of_another_signature_is_not(workspace: Any, publish: Any, models: Any) -> None:
    assert verdict(workspace, models.affine(1.0), CLASSES)[:3] == (True, None, "no version of other is live yet")
    publish(models.affine(1.0, width=4))
    other = verdict(workspace, models.affine(1.0), CLASSES)
    assert (other.promote, "its signature differs" in other.reason) == (False, True)


def test_without_a_validation_file_the_manifest_stays_as_it_is(models: Any) -> None:
    artifact = models.affine(1.0)
    assert scored(manifest(artifact), artifact.model, None, threads=1) == manifest(artifact)
