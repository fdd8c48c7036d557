"""A trained model as one file: raw weights as safetensors, with all that is needed to build and export it in the file's metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from export.bundle import Frozen, InputDomain, Training
from specnorm_core.architecture import Architecture, Network, build
from specnorm_core.norms import converge

KEY = "specnorm"


class CheckpointError(ValueError):
    """A file is no checkpoint of ours; the sentence says why."""


class Provenance(Frozen):
    """What a checkpoint says beside its weights. ``source`` is a data set that goes by name (``digits``), for verification."""

    architecture: Architecture
    input: InputDomain = InputDomain()
    labels: tuple[str, ...] = ()
    training: Training | None = None
    source: str | None = None


def save(model: Network, provenance: Provenance) -> bytes:
    """Return the checkpoint of ``model``: its state dict and ``provenance``."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return save_tensors(tensors, metadata={KEY: provenance.model_dump_json()})


def load(content: bytes) -> tuple[Network, Provenance]:
    """Return the model of a checkpoint, in eval mode with a converged (u, v), and its provenance.

    Raises:
        CheckpointError: ``content`` is not such a file, or its weights do not fit its architecture.
    """
    try:
        tensors = load_tensors(content)
        provenance = Provenance.model_validate_json(_metadata(content)[KEY])
        model = build(provenance.architecture, seed=0)
        model.load_state_dict(tensors)
        converge(model)
    except (SafetensorError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"this is no checkpoint of specnorm (a safetensors file that `specnorm train` wrote): {error}") from None
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint's metadata is not understood: {error.errors()[0]['msg']}") from None
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its architecture: {str(error).splitlines()[-1].strip()}") from None
    return model.eval(), provenance


def read(path: Path) -> tuple[Network, Provenance]:
    """Return :func:`load` of the file at ``path``, or of ``checkpoint.safetensors`` in the folder ``path``."""
    try:
        return load((path / "checkpoint.safetensors" if path.is_dir() else path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _metadata(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def probes(model: Network, domain: InputDomain, count: int = 1000) -> Any:
    """Return ``count`` inputs drawn evenly from the stated range, where no real ones are at hand."""
    low, high = (-1.0 if domain.minimum is None else domain.minimum), (1.0 if domain.maximum is None else domain.maximum)
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, *model.input_shape, generator=generator) * (high - low) + low).numpy()
