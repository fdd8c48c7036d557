"""Is what a bundle promises true of its bytes? All of it is proved again here; nothing that the bundle says is believed."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Final

import onnx
from onnx import numpy_helper

from export import bundle, radius
from export.admission.structure import StructureError, opened
from export.audit import AuditError, Report
from export.bundle import Layer, Lipschitz, Manifest, Tensor
from export.graph import Graph
from export.normalisation import normalisation
from export.proof import Proved, proved
from export.radius import RADIUS, TENSOR
from specnorm_core.bounds import matricised_sigma_upper

OWN: Final = "specnorm"
METHODS: Final = ("product", "graph", "chain")
TOLD: Final = {"bound": "lipschitz_bound", "norm": "lipschitz_norm", "method": "lipschitz_method", "sensitivity": "sensitivity"}
"""What the metadata of a graph say of its first output, by the field of `Lipschitz`."""
NUMBERS: Final = ("bound", "sensitivity")


class VerificationError(ValueError):
    """A bundle is not what it should be; the sentence says where and by how much."""


def check(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Prove again from the bytes what the manifest and the graph itself promise.

    Raises:
        VerificationError: a digest, a tensor, a norm, a bound or a constant of the radius is not what the bytes prove.
    """
    for name, expected in manifest.files.items():
        if bundle.digest(files.get(name, b"")) != expected:
            raise VerificationError(f"{name} is not the file that the manifest names: its sha256 differs")
    try:
        model = opened(files[bundle.MODEL])
        onnx.checker.check_model(model, full_check=True)
        for fault in faults(manifest, model):
            raise VerificationError(fault)
    except (StructureError, AuditError) as error:
        raise VerificationError(str(error)) from None
    except UnicodeDecodeError:
        raise VerificationError(f"{bundle.MODEL} holds a name that is no text") from None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{bundle.MODEL} is not valid ONNX: {str(error).strip().partition(chr(10))[0][:300]}") from None


def faults(manifest: Manifest, model: onnx.ModelProto) -> Iterator[str]:
    """Yield what is promised and not so, as sentences.

    Raises:
        AuditError: nothing can be proved of such a file.
    """
    given = [output.name for output in model.graph.output]
    outputs = manifest.signature.outputs
    if not outputs or outputs[0].name != given[0]:
        yield f"the manifest's first output is {outputs[0].name if outputs else None!r}, the graph's {given[0]!r}"
        return
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    body, part = radius.detached(model)
    chain = manifest.lipschitz.method == "chain" or RADIUS in given or TOLD["bound"] in metadata
    proof = proved(body, given[0], chain=chain)
    yield from tensor_faults("input", proof.report.inputs, manifest.signature.inputs)
    yield from tensor_faults("output", proof.report.outputs, tuple(tensor for tensor in outputs if tensor.name != RADIUS))
    if manifest.signature.rows_independent and not proof.report.rows_independent:
        yield "the manifest says that rows are independent, which the bytes do not prove"
    if manifest.signature.labels and outputs[0].shape[1:] != (len(manifest.signature.labels),):
        yield f"the manifest has {len(manifest.signature.labels)} labels for rows of {list(outputs[0].shape[1:])} numbers"
    if manifest.origin == OWN and not {bundle.CHECKPOINT, bundle.ARCHITECTURE} <= manifest.files.keys():
        yield "the manifest says that this is an export of ours, and names no checkpoint that it would be the fold of"
    yield from layer_faults(manifest, proof.report, model)
    yield from bound_faults("the manifest", manifest.lipschitz, proof)
    yield from other_faults(manifest, proof.report)
    yield from told_faults(manifest, metadata, proof)
    if manifest.lipschitz.pairs and (proof.chain is None or RADIUS not in given):
        yield "the manifest says that the radius goes by pairs of classes, which the bytes do not prove"
    if [tensor for tensor in outputs if tensor.name == RADIUS] != [TENSOR] * (RADIUS in given):
        yield f"the manifest and the graph do not both say that {RADIUS} is one float32 number per row"
    if RADIUS in given:
        yield from radius_faults(body, part, proof)
    if manifest.origin == OWN and manifest.input.normalisation != normalisation(body):
        yield f"the manifest says {manifest.input.normalisation!r} of the normalisation, which is {normalisation(body)!r}"


def radius_faults(body: onnx.ModelProto, part: Graph, proof: Proved) -> Iterator[str]:
    """Yield what is wrong with the radius of a graph that has one."""
    certificate = proof.certificate()
    if certificate is None:
        yield f"the graph gives a {RADIUS}, and the bytes prove none: {proof.why or 'a row of its first output is no row of logits'}"
        return
    for fault in radius.faults(body, part, certificate):
        yield f"{RADIUS} is not what the bytes prove: {fault}"


def radius_fault(model: onnx.ModelProto) -> str | None:
    """Return what is wrong with the radius of any model that gives one, in a sentence; None where nothing is."""
    given = [output.name for output in model.graph.output]
    if RADIUS not in given:
        return None
    body, part = radius.detached(model)
    if not body.graph.output:
        return f"the graph gives a {RADIUS} of nothing"
    try:
        return next(radius_faults(body, part, proved(body, body.graph.output[0].name)), None)
    except AuditError as error:
        return f"the graph gives a {RADIUS}, and nothing can be proved of it: {error}"


def tensor_faults(role: str, found: tuple[Tensor, ...], promised: tuple[Tensor, ...]) -> Iterator[str]:
    """Yield where the tensors of the graph are not those that are promised; a size that one of them leaves free fits any."""
    if [(tensor.name, tensor.datatype) for tensor in found] != [(tensor.name, tensor.datatype) for tensor in promised]:
        yield f"the manifest names the {role}s {said(promised)}, the graph has {said(found)}"
        return
    for own, other in zip(found, promised, strict=True):
        sizes = zip(own.shape, other.shape, strict=False)
        if own.shape and (len(own.shape) != len(other.shape) or any(a != b and -1 not in (a, b) for a, b in sizes)):
            yield f"the manifest gives the {role} {own.name!r} the shape {list(other.shape)}, the graph {list(own.shape)}"


def said(tensors: tuple[Tensor, ...]) -> str:
    """Return names and types of tensors."""
    return ", ".join(f"{tensor.name} ({tensor.datatype})" for tensor in tensors)


def layer_faults(manifest: Manifest, report: Report, model: onnx.ModelProto) -> Iterator[str]:
    """Yield where the layers of the bytes are not those that are promised."""
    own, promised = [found.name for found in report.layers], [layer.name for layer in manifest.layers]
    if own != promised:
        yield f"the manifest tells of the layers {promised}, the bytes have {own}"
        return
    for found, layer in zip(report.layers, manifest.layers, strict=True):
        kinds = (found.kind, f"{found.kind.replace('_', '')}{len(found.shape) - 2}d")
        if layer.kind not in kinds or found.shape != layer.shape:
            yield f"layer {layer.name!r}: the bytes have {found.kind} {found.shape}, the manifest says {layer.kind} {layer.shape}"
            continue
        norm = found.sigma_upper if layer.norm == "operator" else matricised(model, layer)
        if bundle.CHECKPOINT not in manifest.files and found.sigma_upper > min(layer.sigma_upper, layer.operator_sigma_upper):
            yield f"layer {layer.name!r}: the bytes, which were not folded, have norm {found.sigma_upper}, not {layer.sigma_upper}"
        if norm > layer.folded_sigma_upper:
            yield f"layer {layer.name!r}: the bytes have norm {norm}, not {layer.folded_sigma_upper}"
        if layer.folded_sigma_upper > layer.target:
            yield f"layer {layer.name!r}: its folded norm {layer.folded_sigma_upper} is above its target {layer.target}"


def matricised(model: onnx.ModelProto, layer: Layer) -> float:
    """Return the norm of a layer's kernel as a matrix of a row for each of its outputs; infinite where it has none."""
    kernel = next((numpy_helper.to_array(weight) for weight in model.graph.initializer if weight.name == f"{layer.name}.weight"), None)
    if kernel is None:
        return math.inf
    return matricised_sigma_upper(kernel.swapaxes(0, 1) if layer.kind.startswith("convtranspose") else kernel)


def bound_faults(who: str, promised: Lipschitz, proof: Proved) -> Iterator[str]:
    """Yield what ``who`` promises of the first output's bound and is not proved."""
    found = proof.report.lipschitz[proof.output]
    if promised.bound is not None:
        if found.bound is None or found.bound > promised.bound:
            yield f"{who} promises a Lipschitz bound of {promised.bound}, the bytes prove {found.bound}"
        by_method = getattr(proof.report.bounds[proof.output], promised.method or "", None) if promised.method in METHODS else None
        if by_method is None or by_method > promised.bound:
            yield f"{who} says that its bound is proved by {promised.method!r}, which gives {by_method}"
    if promised.rigorous and not found.rigorous:
        yield f"{who} calls its bound rigorous, which it is not: {found.reason}"
    if promised.sensitivity:
        pairs = zip(promised.sensitivity, found.sensitivity, strict=False)
        if len(promised.sensitivity) != len(found.sensitivity) or any(a < b for a, b in pairs):
            yield f"{who} promises sensitivities of {list(promised.sensitivity)}, the bytes prove {list(found.sensitivity)}"


def other_faults(manifest: Manifest, report: Report) -> Iterator[str]:
    """Yield what is promised of the bounds of other outputs and not proved."""
    for key, promised in manifest.verification.items():
        kind, _, name = key.partition("/")
        if kind == TOLD["bound"]:
            bound = report.lipschitz[name].bound if name in report.lipschitz else None
            if bound is None or bound > promised:
                yield f"the manifest promises a Lipschitz bound of {promised} of {name!r}, the bytes prove {bound}"


def told(lipschitz: Lipschitz) -> dict[str, str]:
    """Return what a file itself says of its bound."""
    values = lipschitz.model_dump(mode="json")
    return {name: values[key] if isinstance(values[key], str) else json.dumps(values[key]) for key, name in TOLD.items()}


def told_faults(manifest: Manifest, metadata: Mapping[str, str], proof: Proved) -> Iterator[str]:
    """Yield what the file itself says of its bound, and is not proved."""
    given = {key: metadata[name] for key, name in TOLD.items() if name in metadata}
    if manifest.origin == OWN and manifest.lipschitz.bound is not None and len(given) < len(TOLD):
        yield f"the graph says nothing of {', '.join(name for key, name in TOLD.items() if key not in given)}"
    elif given:
        try:
            numbers = {key: json.loads(text) if key in NUMBERS else text for key, text in given.items()}
            promised = Lipschitz.model_validate({"rigorous": False, "bound": None, "method": None} | numbers)
        except ValueError:
            yield f"what the metadata of the graph say of its bound is not understood: {given}"
            return
        yield from bound_faults("the graph itself", promised, proof)
