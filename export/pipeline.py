"""From a trained network to a bundle: fold, write the graph, audit its bytes, certify, verify."""

from collections.abc import Callable, Mapping
from importlib.metadata import version

import numpy as np
import onnx
from onnx import helper
from torch import nn

from export import bundle, checkpoint, claims, radius, verify
from export.audit import HINT, Report
from export.bundle import InputDomain, Lipschitz, Manifest, Training
from export.checkpoint import Provenance
from export.fold import FoldedLayer, fold, named_norm_upper
from export.normalisation import normalisation
from export.proof import proved
from export.radius import Certificate
from export.to_onnx import LOGITS, PREDICTION, to_onnx
from specnorm_core.architecture import Architecture, Network
from specnorm_core.data import Dataset
from specnorm_core.training import evaluate

Progress = Callable[[str], None]
PROBES = 1000
HAIR = 1 + 2.0**-24
"""What is stated of a bound above what was proved here: another machine may prove it again a few last bits larger."""


def export_bundle(
    model: Network,
    architecture: Architecture,
    *,
    samples: np.ndarray | None = None,
    domain: InputDomain | None = None,
    labels: tuple[str, ...] = (),
    training: Training | None = None,
    validation: Dataset | None = None,
    source: str | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the files of the bundle of ``model``.

    Args:
        model: trained; left as it is.
        architecture: what built it.
        samples: real inputs ``(N, *input_shape)``; up to 1,000 of them are run through both models. Without them, random ones are.
        domain: what the numbers of the input mean; what it says of a normalisation is replaced by what the graph does.
        labels: names of the classes; empty for a regressor.
        training: what the manifest says about how the weights came about.
        validation: rows whose accuracy is compared before and after the fold.
        source: a data set that goes by name, kept in the checkpoint.
        progress: called with one sentence per step.

    Raises:
        FoldError: a layer cannot be folded.
        GraphError: a layer has no form in the graph.
        VerificationError: the graph does not compute what the folded model does.
    """
    domain = domain or InputDomain()
    output = LOGITS if labels else PREDICTION
    progress("folding W / sigma with a certified sigma")
    folded, layers = fold(model)
    progress("auditing the graph's bytes")
    content, report, lipschitz, certificate = _certified_graph(folded, progress, classifier=bool(labels))
    progress("verifying the graph against the folded model")
    domain = domain.model_copy(update={"normalisation": normalisation(onnx.load_from_string(content))})
    real = samples is not None
    x = _some(samples) if samples is not None else checkpoint.probes(model, domain)
    verification = {
        "inputs": float(len(x)), "real_inputs": float(real),
        "max_abs_error": verify.parity(content, folded, x, output, certificate.error if certificate else None),
        "logit_shift": float(np.abs(verify.outputs_of(model, x) - verify.outputs_of(folded, x)).max()),
        "sigma_lag": max((layer.sigma_upper / layer.sigma_estimate - 1 for layer in layers), default=0.0),
    }  # fmt: skip
    if validation is not None:
        for when, which in (("trained", model), ("folded", folded)):
            verification |= {f"{key}_{when}": value for key, value in evaluate(which, validation).items()}
    provenance = Provenance(architecture=architecture, input=domain, labels=labels, training=training, source=source)
    files = {
        bundle.MODEL: content,
        bundle.CHECKPOINT: checkpoint.save(model, provenance),
        bundle.ARCHITECTURE: architecture.model_dump_json(indent=2).encode(),
    }
    manifest = Manifest(
        signature=_signature(report, architecture, output, labels, certificate is not None),
        input=domain, layers=tuple(_layer(layer, folded, report) for layer in layers), lipschitz=lipschitz,
        gradient_mode=layers[0].layer.gradient_mode if layers else None,  # type: ignore[arg-type]  # checked when the layer was made
        training=training, verification=verification, origin="specnorm",
        tools={name: version(name) for name in ("specnorm", "torch", "onnx", "onnxruntime", "numpy")},
        files={name: bundle.digest(part) for name, part in files.items()},
    )  # fmt: skip
    claims.check(manifest, files)
    return manifest, files


def load_bundle(files: Mapping[str, bytes]) -> tuple[Network, Provenance]:
    """Return the trained (unfolded) model of a bundle, with what its checkpoint says about it.

    Raises:
        CheckpointError: the bundle has no checkpoint, or it is damaged.
    """
    if bundle.CHECKPOINT not in files:
        raise checkpoint.CheckpointError("this model has no checkpoint to go on from: it was imported as a graph alone")
    return checkpoint.load(files[bundle.CHECKPOINT])


def _certified_graph(folded: Network, progress: Progress, *, classifier: bool) -> tuple[bytes, Report, Lipschitz, Certificate | None]:
    """Return the graph's bytes and what is proved of *them*; a classifier with a bound gets the output ``certified_radius``."""
    output = LOGITS if classifier else PREDICTION
    model = to_onnx(folded, classifier=classifier)
    proof = proved(model, output)
    lipschitz = _stated(proof.report.lipschitz[output])
    if lipschitz.bound is None:
        return model.SerializeToString(), proof.report, lipschitz, None
    certificate = proof.certificate() if classifier else None
    if classifier and certificate is None:
        progress(f"no certified radius: {proof.why}")
    helper.set_model_props(model, claims.told(lipschitz) | ({} if proof.chain is None else {HINT + output: proof.chain.encode()}))
    if certificate is not None:
        model = radius.attached(model, certificate)
    stated = lipschitz.model_copy(update={"pairs": certificate is not None and proof.chain is not None})
    return model.SerializeToString(), proof.report, stated, certificate


def _stated(proved: Lipschitz) -> Lipschitz:
    """Return what is promised where this was proved: a hair more."""
    larger = {"bound": proved.bound and proved.bound * HAIR, "sensitivity": tuple(one * HAIR for one in proved.sensitivity)}
    return proved.model_copy(update=larger)


def _some(samples: np.ndarray) -> np.ndarray:
    """Return up to 1,000 of the samples, evenly spread."""
    picked: np.ndarray = samples[np.linspace(0, len(samples) - 1, min(PROBES, len(samples))).astype(int)]
    return picked


def _layer(layer: FoldedLayer, folded: nn.Module, report: Report) -> bundle.Layer:
    """Return what the manifest says of one layer: the norms before the fold, and the audited norm of the folded bytes."""
    audited = {found.name: found.sigma_upper for found in report.layers}
    after = audited[layer.name] if layer.layer.norm == "operator" else named_norm_upper(layer.layer, getattr(folded, layer.name).weight)
    after = min(after * HAIR, max(after, layer.layer.target))
    return bundle.Layer(
        name=layer.name, kind=layer.layer.kind, shape=tuple(layer.layer.weight.shape), norm=layer.layer.norm,  # type: ignore[arg-type]  # checked when the layer was made
        constraint=layer.layer.constraint, target=layer.layer.target, sigma_estimate=layer.sigma_estimate,  # type: ignore[arg-type]  # as above
        sigma_upper=layer.sigma_upper, operator_sigma_upper=layer.operator_sigma_upper, folded_sigma_upper=after,
        stable_rank=layer.stable_rank,
    )  # fmt: skip


def _signature(report: Report, architecture: Architecture, output: str, labels: tuple[str, ...], certified: bool) -> bundle.Signature:
    size = len(labels) or _width(architecture)
    outputs = [bundle.Tensor(name=output, datatype="FP32", shape=(-1, size))]
    if certified:
        outputs.append(radius.TENSOR)
    return bundle.Signature(
        inputs=(bundle.Tensor(name="input", datatype="FP32", shape=(-1, *architecture.input_shape)),), outputs=tuple(outputs),
        rows_independent=report.rows_independent, labels=labels,
    )  # fmt: skip


def _width(architecture: Architecture) -> int:
    return int(getattr(architecture.layers[-1], "features", 1))
