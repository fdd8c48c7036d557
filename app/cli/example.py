"""A request that works as pasted."""

import json
import math
from typing import TYPE_CHECKING

from app.errors import SpecnormError
from export.bundle import Manifest

if TYPE_CHECKING:
    from app.registry.registry import Registry

# The first of scikit-learn's handwritten digits: a nought, 8 × 8 pixels of 0 to 16.
NOUGHT = bytes.fromhex(
    "0000050d0901000000000d0f0a0f050000030f02000b080000040c0000080800000508000009080000040b00010c070000020e050a0c00000000060d0a000000"
)


def curl(models: "Registry", url: str, *, with_key: bool) -> str | None:
    """Return a shell line that asks the first live model for an answer, or None where there is none."""
    for name in models.models():
        try:
            version = models.live(name)
            body = request(models.manifest(name, version)) if version else None
        except SpecnormError:
            continue
        if body:
            key = ' -H "Authorization: Bearer $SPECNORM_API_KEY"' if with_key else ""
            return f"curl -s{key} {url}/v2/models/{name}/infer -d '{body}'"
    return None


def request(manifest: Manifest) -> str | None:
    """Return the JSON of a request of one row, or None where it would fill the screen or not be numbers."""
    if len(manifest.signature.inputs) != 1:
        return None
    tensor = manifest.signature.inputs[0]
    shape = [max(size, 1) for size in tensor.shape]
    count = math.prod(shape)
    if tensor.datatype not in {"FP32", "FP64"} or count > 1024:
        return None
    data = list(NOUGHT) if count == len(NOUGHT) else [0] * count
    given = {"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data}
    return json.dumps({"inputs": [given]}, separators=(",", ":"))
