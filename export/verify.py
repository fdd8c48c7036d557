"""Is the graph the folded network, on real inputs? And is it what its checkpoint folds to?"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn

from export import bundle, checkpoint
from export.audit.rounding import Affine
from export.bundle import Manifest
from export.checkpoint import Provenance
from export.claims import VerificationError as VerificationError  # noqa: PLC0414  # what is raised here, for whoever catches it
from export.fold import FoldedLayer, fold
from export.radius import detached
from export.to_onnx import to_onnx

ATOL = RTOL = 1e-5
FOLDED = 1e-5
"""How far, relative to the largest, a weight may be from the one that is folded again, on another machine."""
MEASURED = 1e-3
"""The same of a norm: an estimate of one that is still in training may lag behind it."""


def run(model: bytes, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of ``model`` on ``x (N, ...)``, by plain ONNX Runtime on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, {"input": x}), strict=True))


@torch.no_grad()
def outputs_of(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """Return the outputs of a PyTorch model in eval mode, of ``x`` in the type and on the device of its parameters."""
    training = model.training
    like = next(model.parameters(), torch.empty(0))
    outputs: torch.Tensor = model.eval()(torch.from_numpy(x).to(like))
    model.train(training)
    y: np.ndarray = (outputs.float() if outputs.dtype.itemsize < 4 else outputs).cpu().numpy()
    return y


def parity(model: bytes, folded: nn.Module, x: np.ndarray, output: str, error: Affine | None = None) -> float:
    """Return the largest difference between ``model`` in ONNX Runtime and ``folded`` in PyTorch on ``x``.

    Where a proved ``error`` bound is given, both must also lie within it of the float64 evaluation.

    Raises:
        VerificationError: a difference is above ``1e-5 + 1e-5 |y|``, or above the proved bound.
    """
    expected, actual = outputs_of(folded, x), run(model, x)[output]
    off = np.abs(actual - expected)
    if not np.isfinite(actual).all() or (off > ATOL + RTOL * np.abs(expected)).any():
        worst = int(np.nan_to_num(off, nan=np.inf).max(axis=1).argmax())
        raise VerificationError(
            f"ONNX Runtime and the folded PyTorch model differ on input {worst}: {actual[worst]} against {expected[worst]}, "
            f"more than {ATOL} + {RTOL} |y|"
        )
    if error is not None:
        exact = outputs_of(folded.double(), x.astype(np.float64))
        folded.float()
        bound = error.slope * np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1) + error.offset
        if (np.linalg.norm(actual - exact, axis=1) > bound).any():
            raise VerificationError("the float32 error exceeds its proved bound: the runtime does not compute in float32")
    return float(off.max(initial=0.0))


def check_checkpoint(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Fold the checkpoint of a bundle again, and compare what comes out with the graph and with what the manifest says of the weights.

    Raises:
        VerificationError: the graph is another network, or the checkpoint does not have the norms, labels or input that the manifest tells.
        CheckpointError: it is no checkpoint.
        FoldError: it cannot be folded.
    """
    model, provenance = checkpoint.load(files[bundle.CHECKPOINT])
    folded, layers = fold(model)
    for fault in _checkpoint_faults(manifest, files, provenance, layers):
        raise VerificationError(f"{bundle.CHECKPOINT} is not what the manifest tells of: {fault}")
    found, _ = detached(onnx.load_from_string(files[bundle.MODEL]))
    expected = to_onnx(folded, classifier=bool(provenance.labels))
    if list(found.graph.node) != list(expected.graph.node):
        raise VerificationError(f"{bundle.MODEL} is not the graph of {bundle.CHECKPOINT}: its nodes are others")
    own, others = ({weight.name: numpy_helper.to_array(weight) for weight in graph.initializer} for graph in (found.graph, expected.graph))
    for name, weight in others.items():
        if name not in own or own[name].shape != weight.shape or np.abs(own[name] - weight).max(initial=0) > FOLDED * np.abs(weight).max():
            raise VerificationError(f"{bundle.MODEL} is not what {bundle.CHECKPOINT} folds to: {name!r} differs")


def _checkpoint_faults(
    manifest: Manifest, files: Mapping[str, bytes], provenance: Provenance, layers: Sequence[FoldedLayer]
) -> Iterator[str]:
    """Yield where the manifest says other than the checkpoint."""
    if files.get(bundle.ARCHITECTURE, b"").strip() != provenance.architecture.model_dump_json(indent=2).encode():
        yield f"{bundle.ARCHITECTURE} is another architecture than its own"
    if (manifest.signature.labels, manifest.input) != (provenance.labels, provenance.input):
        yield "its labels or its input are others"
    if [layer.name for layer in manifest.layers] != [layer.name for layer in layers]:
        yield f"it has the layers {[layer.name for layer in layers]}"
        return
    for found, promised in zip(layers, manifest.layers, strict=True):
        kept = (found.layer.kind, found.layer.norm, found.layer.constraint, found.layer.target)
        if kept != (promised.kind, promised.norm, promised.constraint, promised.target):
            yield f"its layer {found.name!r} is {kept}"
        for name in ("sigma_upper", "operator_sigma_upper", "sigma_estimate", "stable_rank"):
            number, told = float(getattr(found, name)), getattr(promised, name)
            if told is None or abs(number - told) > MEASURED * number:
                yield f"the {name} of its layer {found.name!r} is {number}, not {told}"
