"""Whether a finished model may take the place of the live one: both are judged on the same rows, by the bytes that are served."""

import math
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from app.errors import NotFoundError
from app.registry.registry import Registry
from export.bundle import Manifest
from specnorm_core.data import Dataset

BATCH = 256
CLASSES, VALUES = "validation_accuracy", "validation_mse"


class Verdict(NamedTuple):
    """The decision, the version that it was taken against, and its reason as a sentence."""

    promote: bool
    against: str | None
    reason: str
    scores: dict[str, float]


def scored(manifest: Manifest, model: bytes, validation: Dataset | None, *, threads: int) -> Manifest:
    """Return the manifest with what counts on ``validation`` among its metrics: of the bytes that are served."""
    if validation is None or manifest.training is None:
        return manifest
    metrics = {**manifest.training.metrics, measure(manifest): score(manifest, model, validation, threads=threads)}
    return manifest.model_copy(update={"training": manifest.training.model_copy(update={"metrics": metrics})})


def judge(registry: Registry, target: str, manifest: Manifest, validation: Dataset, *, threads: int) -> Verdict:
    """Return whether a model that was :func:`scored` on ``validation`` is at least as good as the live version of ``target``."""
    name = measure(manifest)
    new = manifest.training.metrics[name] if manifest.training else math.nan
    try:
        against = registry.live(target)
    except NotFoundError:
        against = None
    if against is None:
        return Verdict(True, None, f"no version of {target} is live yet", {name: new})
    old_manifest, old_model = registry.artifact(target, against)
    if old_manifest.signature != manifest.signature:
        return Verdict(False, against, f"its signature differs from that of the live {target}:{against}", {name: new})
    old = score(old_manifest, old_model, validation, threads=threads)
    good = new <= old if name == VALUES else new >= old
    reason = f"its {name.replace('_', ' ')} is {new:.6g}, that of the live {target}:{against} is {old:.6g}"
    return Verdict(good, against, reason, {name: new, f"live_{name}": old})


def measure(manifest: Manifest) -> str:
    """Return the name of what counts: the accuracy of classes, or the mean square error of values."""
    return VALUES if manifest.signature.outputs[0].shape[-1] == 1 else CLASSES


def score(manifest: Manifest, model: bytes, data: Dataset, *, threads: int) -> float:
    """Return what counts on ``data``, of the graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given, wanted = manifest.signature.inputs[0].name, manifest.signature.outputs[0].name
    parts: list[Any] = [session.run([wanted], {given: data.x[at : at + BATCH]})[0] for at in range(0, len(data.x), BATCH)]
    output = np.concatenate(parts)
    if measure(manifest) == VALUES:
        return float(np.mean((output[:, 0].astype(np.float64) - data.y) ** 2))
    return float(np.mean(output.argmax(axis=1) == data.y))
