"""What the protocol says of a model: metadata and configuration."""

import json
from typing import Any, Final

from app.inference.catalog import Catalog
from app.inference.served import Served
from app.inference.statistics import Statistics
from app.totals import Tree
from export.bundle import Tensor

NAME: Final = "specnorm"
PLATFORM: Final = "onnxruntime_onnx"
BACKEND: Final = "onnxruntime"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "x_spectral",
)


def server(version: str) -> dict[str, Any]:
    """Return the metadata of the server itself."""
    return {"name": NAME, "version": version, "extensions": list(EXTENSIONS)}


async def metadata(catalog: Catalog, model: str, version: str | None) -> dict[str, Any]:
    """Return the metadata of one version; a free dimension is -1, the batch dimension included. Raises what ``catalog.get`` does."""
    served = await catalog.get(model, version)
    versions = await catalog.versions(model) if version is None and served.name == model else [served.version]
    manifest = served.manifest
    certificate = manifest.lipschitz
    bound = certificate.bound
    properties = {
        "version": served.version,
        "device": served.device,
        "device_reason": served.device_reason,
        "model_digest": served.digest,
        "input_units": manifest.input.units,
        "input_normalisation": manifest.input.normalisation,
        "gradient_mode": manifest.gradient_mode,
        "lipschitz_bound": None if bound is None else repr(bound),
        "lipschitz_norm": None if bound is None else certificate.norm,
        "lipschitz_method": certificate.method,
        "lipschitz_reason": certificate.reason,
        "sensitivity": json.dumps(certificate.sensitivity) if certificate.sensitivity else None,
        "aliases": ",".join(catalog.aliases.of(served.name, served.version)) or None,
        "problem": catalog.problems().get(served.name),
    }
    return {
        "name": served.name,
        "versions": versions,
        "platform": "onnx_onnxv1",
        "inputs": [tensor.model_dump() for tensor in manifest.signature.inputs],
        "outputs": [tensor.model_dump() for tensor in manifest.signature.outputs],
        "properties": {name: value for name, value in properties.items() if value is not None},
    }


def numbers(catalog: Catalog) -> Tree:
    """Return what this process has counted (``kept``) and holds (``now``); see :mod:`app.totals`."""
    kept: Tree = {}
    memory: Tree = {}
    for (model, version), (statistics, device) in catalog.statistics().items():
        kept.setdefault(model, {})[version] = statistics.tree()
        if device is not None:
            memory.setdefault(model, {})[version] = {"GPU" if device == "cuda" else "CPU": statistics.model_bytes}
    return {"kept": {"statistics": kept}, "now": {"memory": memory}}


def counted(totals: Tree) -> dict[tuple[str, str], Statistics]:
    """Return the statistics of every version in ``totals``, by model and version."""
    of_models = totals["kept"].get("statistics", {})
    return {(model, version): Statistics.of(tree) for model, versions in of_models.items() for version, tree in versions.items()}


async def statistics_of(catalog: Catalog, totals: Tree, model: str, version: str | None) -> dict[str, Any]:
    """Return the statistics of one version, or of all of a model that were loaded. Raises what ``catalog.get`` does."""
    served = await catalog.get(model, version)
    return statistics(totals, served.name, version if served.name == model else served.version)  # an alias means one version


def statistics(totals: Tree, model: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return the statistics of every version that was ever loaded, or of those that are asked for."""
    memory = totals["now"].get("memory", {})
    return {
        "model_stats": [
            told.describe(*key, memory.get(key[0], {}).get(key[1], {}))
            for key, told in sorted(counted(totals).items())
            if model in (None, key[0]) and version in (None, key[1])
        ]
    }


def config(served: Served) -> dict[str, Any]:
    """Return the configuration of one version; dimensions are without the batch where requests are batched."""
    signature = served.manifest.signature
    device = {"device": served.device, "device_reason": served.device_reason}

    def entry(tensor: Tensor) -> dict[str, Any]:
        datatype = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        return {"name": tensor.name, "data_type": datatype, "dims": list(tensor.shape[1:] if served.batched else tensor.shape)}

    return {
        "name": served.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": served.max_batch_rows if served.batched else 0,
        "input": [entry(tensor) for tensor in signature.inputs],
        "output": [entry(tensor) for tensor in signature.outputs],
        **({"dynamic_batching": {}} if served.batched else {}),
        "instance_group": [{"kind": "KIND_GPU" if served.device == "cuda" else "KIND_CPU", "count": 1}],
        "default_model_filename": "model.onnx",
        "parameters": {name: {"string_value": value} for name, value in device.items() if value is not None},
    }
