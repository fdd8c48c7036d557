"""Whether a finished model may take the place of the live one: both are judged on the same rows, by the bytes that are served."""

from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from app.errors import NotFoundError
from app.registry.registry import Registry
from export.bundle import Manifest
from specnorm_core.data import Dataset

BATCH = 256


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
    name, value = score(manifest, model, validation, threads=threads)
    metrics = {**manifest.training.metrics, f"validation_{name}": value}
    return manifest.model_copy(update={"training": manifest.training.model_copy(update={"metrics": metrics})})


def judge(registry: Registry, target: str, manifest: Manifest, model: bytes, validation: Dataset, *, threads: int) -> Verdict:
    """Return whether the new model is at least as good on ``validation`` as the live version of ``target``."""
    name, new = score(manifest, model, validation, threads=threads)
    try:
        against = registry.live(target)
    except NotFoundError:
        against = None
    if against is None:
        return Verdict(True, None, f"no version of {target} is live yet", {f"validation_{name}": new})
    old_manifest, old_model = registry.artifact(target, against)
    if old_manifest.signature != manifest.signature:
        return Verdict(False, against, f"its signature differs from that of the live {target}:{against}", {f"validation_{name}": new})
    _, old = score(old_manifest, old_model, validation, threads=threads)
    good = new >= old if name == "accuracy" else new <= old
    reason = f"its validation {name} is {new:.6g}, that of the live {target}:{against} is {old:.6g}"
    return Verdict(good, against, reason, {f"validation_{name}": new, f"live_validation_{name}": old})


def score(manifest: Manifest, model: bytes, data: Dataset, *, threads: int) -> tuple[str, float]:
    """Return the name and value of what counts on ``data``: ``accuracy`` for classes, ``mse`` for values."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given, wanted = manifest.signature.inputs[0].name, manifest.signature.outputs[0].name
    parts: list[Any] = [session.run([wanted], {given: data.x[at : at + BATCH]})[0] for at in range(0, len(data.x), BATCH)]
    output = np.concatenate(parts)
    if manifest.signature.outputs[0].shape[-1] == 1:
        return "mse", float(np.mean((output[:, 0].astype(np.float64) - data.y) ** 2))
    return "accuracy", float(np.mean(output.argmax(axis=1) == data.y))
