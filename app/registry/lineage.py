"""Where a version came from, and how two versions differ: read off their manifests."""

from collections.abc import Iterator
from typing import Any

from app.errors import SpecnormError
from app.registry.contents import Contents
from export.bundle import Manifest


def lineage(contents: Contents, model: str, version: str) -> dict[str, Any]:
    """Return parent, data, hyperparameters, seed, tools and gradient mode of a version, and its sigmas beside those of its parent.

    Raises:
        NotFoundError: there is no such version.
    """
    manifest = contents.manifest(model, version)
    line = contents.line(model, version)
    before = _parent(contents, line["parent"])
    training = manifest.training
    return {
        "model": model,
        "version": version,
        "created": line["created"],
        "parent": line["parent"],
        "job": line["job"],
        "aliases": sorted(alias for alias, target in contents.aliases().get(model, {}).items() if target == version),
        "origin": manifest.origin,
        "gradient_mode": manifest.gradient_mode,
        "data_digest": training.data_digest if training else None,
        "hyperparameters": training.hyperparameters if training else {},
        "seed": training.seed if training else None,
        "metrics": training.metrics if training else {},
        "private": bool(training and training.privacy),
        "tools": manifest.tools,
        "model_digest": manifest.model_digest,
        "lipschitz_bound": {"before": before.lipschitz.bound if before else None, "after": manifest.lipschitz.bound},
        "sigma": list(_sigmas(before, manifest)),
    }


def differences(first: Manifest, second: Manifest) -> list[dict[str, Any]]:
    """Return what two versions have side by side: sigma of every layer, bound, metrics and how they were trained."""
    sides = [_sheet(manifest) for manifest in (first, second)]
    names = [*sides[0], *(name for name in sides[1] if name not in sides[0])]
    rows = []
    for name in names:
        one, other = (side.get(name) for side in sides)
        rows.append({"what": name, "a": one, "b": other, "change": _change(one, other), "differs": one != other})
    return rows


def _change(one: Any, other: Any) -> float | None:
    if isinstance(one, bool) or isinstance(other, bool) or not isinstance(one, int | float) or not isinstance(other, int | float):
        return None
    return other - one


def _parent(contents: Contents, name: str | None) -> Manifest | None:
    model, _, version = (name or "").rpartition(":")
    try:
        return contents.manifest(model, version) if model else None
    except SpecnormError:  # of a bundle that came from elsewhere, or damaged: what it came from is not here to be read
        return None


def _sigmas(before: Manifest | None, after: Manifest) -> Iterator[dict[str, Any]]:
    known = {layer.name: layer.sigma_upper for layer in before.layers} if before else {}
    for layer in after.layers:
        yield {
            "layer": layer.name,
            "before": known.get(layer.name),
            "after": layer.sigma_upper,
            "folded": layer.folded_sigma_upper,
        }


def _sheet(manifest: Manifest) -> dict[str, Any]:
    training = manifest.training
    sheet: dict[str, Any] = {"model_digest": manifest.model_digest, "gradient_mode": manifest.gradient_mode}
    sheet["lipschitz_bound"] = manifest.lipschitz.bound
    for layer in manifest.layers:
        sheet[f"sigma_upper of {layer.name}"] = layer.sigma_upper
        sheet[f"folded_sigma_upper of {layer.name}"] = layer.folded_sigma_upper
    if training is not None:
        sheet |= {f"{name} (metric)": value for name, value in sorted(training.metrics.items())}
        sheet |= {"data_digest": training.data_digest, "seed": training.seed}
        sheet |= {name: value for name, value in sorted(training.hyperparameters.items()) if name not in sheet}
    return sheet
