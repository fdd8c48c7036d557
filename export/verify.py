"""Is the graph the folded network, on real inputs? And is the manifest true of the bytes?"""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from export import bundle
from export.audit import audit
from export.rounding import Affine

ATOL = RTOL = 1e-5


class VerificationError(ValueError):
    """An export is not what it should be; the sentence says where and by how much."""


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


def check(manifest: bundle.Manifest, files: Mapping[str, bytes]) -> None:
    """Recompute from the bytes what the manifest promises about them.

    Raises:
        VerificationError: a digest, a folded norm or the Lipschitz bound is not what the manifest says.
    """
    for name, expected in manifest.files.items():
        if bundle.digest(files.get(name, b"")) != expected:
            raise VerificationError(f"{name} is not the file that the manifest names: its sha256 differs")
    report = audit(files[bundle.MODEL], chain=True)
    actual = report.lipschitz[manifest.signature.outputs[0].name]
    if manifest.lipschitz.bound is not None and (actual.bound is None or actual.bound > manifest.lipschitz.bound):
        raise VerificationError(f"the manifest promises a Lipschitz bound of {manifest.lipschitz.bound}, the bytes prove {actual.bound}")
    if manifest.signature.rows_independent and not report.rows_independent:
        raise VerificationError("the manifest says that rows are independent, which the bytes do not prove")
    audited = {layer.name: layer.sigma_upper for layer in report.layers}
    for layer in manifest.layers:
        if layer.norm == "operator" and audited.get(layer.name, float("inf")) > layer.folded_sigma_upper:
            raise VerificationError(f"layer {layer.name!r}: the bytes have norm {audited.get(layer.name)}, not {layer.folded_sigma_upper}")
        if layer.folded_sigma_upper > layer.target:
            raise VerificationError(f"layer {layer.name!r}: its folded norm {layer.folded_sigma_upper} is above its target {layer.target}")
