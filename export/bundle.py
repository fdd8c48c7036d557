"""The bundle: the one format that training hands to serving.

A bundle is a folder of ``manifest.json`` and the files that the manifest names with their sha256. This module
knows neither torch nor onnx: it is all that the serving process takes from this package.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT: Final = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
CHECKPOINT = "checkpoint.safetensors"
ARCHITECTURE = "architecture.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"
]  # fmt: skip
GradientMode = Literal["full", "simplified"]


class BundleError(ValueError):
    """A bundle is not what its manifest says it is."""


class Frozen(BaseModel):
    """A value: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tensor(Frozen):
    """Name, Open Inference Protocol datatype and shape (``-1`` = free) of one input or output."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class Signature(Frozen):
    """What the graph takes and gives.

    ``rows_independent`` is true only where it is *proved* that row ``i`` of every output depends on row ``i`` of the
    inputs alone; without it requests are never batched together.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    rows_independent: bool = False
    labels: tuple[str, ...] = ()


class InputDomain(Frozen):
    """What the numbers of the input mean; a certified radius is measured in these units."""

    minimum: float | None = None
    maximum: float | None = None
    units: str = "as given"
    normalisation: str = "none"


class Layer(Frozen):
    """Norms of one layer: before the fold as trained, after it as audited in the bytes of ``model.onnx``.

    ``sigma_estimate`` is a lower bound (power iteration); every ``*_upper`` is a rigorous upper bound with rounding
    included. ``operator_sigma_upper`` is of the true linear map, ``sigma_upper`` of the norm named by ``norm``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    norm: Literal["operator", "matricised"]
    constraint: Literal["unit", "cap", "orthogonal", "none"]
    target: float
    sigma_estimate: float
    sigma_upper: float
    operator_sigma_upper: float
    folded_sigma_upper: float
    stable_rank: float | None = Field(description="None where it was not computed: of a model from elsewhere.")


class Lipschitz(Frozen):
    """The L2 → L2 bound of the whole graph, or the reason why there is none.

    ``method`` is ``product``, ``graph`` or ``chain``: how the least bound was proved. ``sensitivity`` holds how far each output by itself
    may move per unit of input, where that is known. ``pairs``: the radius goes by a constant for each pair of classes, not by
    ``sqrt(2) bound``.
    """

    bound: float | None
    norm: Literal["l2"] = "l2"
    rigorous: bool
    method: str | None
    reason: str | None = None
    sensitivity: tuple[float, ...] = ()
    pairs: bool = False


class Privacy(Frozen):
    """The differential privacy of a training: what is guaranteed, to whom, by what means, and what is not."""

    statement: str
    epsilon: float
    delta: float
    unit: str
    mechanism: str
    sampling: str
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    steps_charged: int
    steps_taken: int
    accountant: str
    randomness: str
    validation_is_public: bool
    not_covered: tuple[str, ...]


class Training(Frozen):
    """How the weights came about; of a private training neither digest nor seed nor a number that was measured on its rows."""

    data_digest: str | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    privacy: Privacy | None = None


class Manifest(Frozen):
    """Everything that is said about a model, bound to its bytes by sha256."""

    format: Literal[1] = FORMAT
    signature: Signature
    input: InputDomain = InputDomain()
    layers: tuple[Layer, ...] = ()
    lipschitz: Lipschitz
    gradient_mode: GradientMode | None = None
    training: Training | None = None
    verification: dict[str, float] = Field(default_factory=dict)
    origin: str
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, Digest]

    @property
    def model_digest(self) -> str:
        """The sha256 of ``model.onnx``."""
        return self.files[MODEL]


def digest(content: bytes) -> str:
    """Return the sha256 of ``content`` in hex."""
    return hashlib.sha256(content).hexdigest()


def parse(text: bytes | str) -> Manifest:
    """Return the manifest that ``text`` (JSON) holds.

    Raises:
        BundleError: it is not JSON, or not a manifest of this format.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise BundleError(f"{MANIFEST} is not a manifest of format {FORMAT}: {where}: {first['msg']}") from None
    if MODEL not in manifest.files:
        raise BundleError(f"{MANIFEST} names no {MODEL} among its files")
    bad = sorted(name for name in manifest.files if name != Path(name).name or name in {"", ".", "..", MANIFEST})
    if bad:
        raise BundleError(f"{MANIFEST} names a file that is no plain name: {bad[0]!r}")
    return manifest


def read(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest of ``folder`` and the content of its files, digests checked on the bytes returned.

    Raises:
        BundleError: a file is missing, or its sha256 is not the one that the manifest gives.
    """
    try:
        manifest = parse((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}") from None
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            raise BundleError(f"the bundle lacks {name}, which its manifest names") from None
        if digest(content) != expected:
            raise BundleError(f"{name} has sha256 {digest(content)}, its manifest says {expected}: the file was changed")
        files[name] = content
    return manifest, files


def write(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write the bundle to ``folder``, which must not exist or be empty: whole or not at all.

    Raises:
        BundleError: ``folder`` holds something, or ``files`` are not those that the manifest names.
    """
    actual = {name: digest(content) for name, content in files.items()}
    if actual != manifest.files:
        raise BundleError(f"the manifest names {sorted(manifest.files)} with digests other than those of {sorted(files)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists and is not empty: choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in {**files, MANIFEST: manifest.model_dump_json(indent=2).encode()}.items():
            with (draft / name).open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        draft.chmod(0o755)
        sync(draft)
        draft.rename(folder)  # replaces an empty folder, refuses any other
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sync(folder: Path) -> None:
    """Flush the entries of ``folder`` to the disk, so that a rename in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
