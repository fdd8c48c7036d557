"""One ONNX Runtime session: where it runs, how long a run takes, and that its graph is the one the manifest tells of."""

import ctypes
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from app.errors import CorruptError, InvalidRequestError, UnavailableError
from app.inference.bound import Bindings
from app.inference.tensors import DTYPES, Array, Shape
from app.settings import Settings
from export.bundle import InputDomain, Manifest, Tensor

PROVIDERS: Final[dict[str, tuple[str, ...]]] = {
    "auto": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
OPTIONS: Final[dict[str, dict[str, str]]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # the proved error bound is that of float32
DEVICES: Final[dict[str, str]] = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}

_TYPES: Final[dict[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
QUICK_SECONDS: Final = 1e-3
_BF16: Final = 16  # of TensorProto.DataType

_FEW, _MANY = 1, 64
_WARM_RUNS: Final = 3

log = logging.getLogger(__name__)


class Stop:
    """Ends the run that it was given to."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.called = False

    def __call__(self) -> None:
        """End the run at its next node."""
        self.called = True
        self.options.terminate = True


class Session:
    """A loaded and warmed model.

    Attributes:
        device: where it really runs, ``cpu`` or ``cuda``.
        device_reason: why it does not run on CUDA, where the settings would have let it.
    """

    def __init__(self, model: bytes, manifest: Manifest, settings: Settings) -> None:
        """Load ``model`` and run it a few times.

        Raises:
            CorruptError: it is no model, not the one that ``manifest`` tells of, or does not run.
            UnavailableError: the device that the settings demand is not had.
        """
        self._session = _open(model, settings)
        provider = str(self._session.get_providers()[0])
        self.device = DEVICES.get(provider, provider)
        self.device_reason = None if settings.device == "cpu" or self.device == "cuda" else _why_not_cuda()
        if settings.device == "cuda" and self.device_reason is not None:
            raise UnavailableError(f"The setting device is cuda, but {self.device_reason}.")
        signature = manifest.signature
        _compare("input", self._session.get_inputs(), signature.inputs)
        _compare("output", self._session.get_outputs(), signature.outputs)
        self._outputs = signature.outputs
        self._names = [tensor.name for tensor in signature.outputs]
        self._bits = {tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.datatype == "BF16"}
        if self._bits and any(tensor.datatype == "BYTES" for tensor in (*signature.inputs, *signature.outputs)):
            raise CorruptError("A model of both strings and BF16 is not served.")
        self._run = self._run_on_bits if self._bits else self._session.run
        self._bindings = Bindings(self._session, self.device, signature)
        self._fixed, self._per_row = self._measure(signature.inputs, manifest.input)

    def run(self, inputs: Mapping[str, Array], stop: Stop | None = None) -> dict[str, Array]:
        """Return every output by name.

        Args:
            inputs: arrays by name.
            stop: a way to end the run early from another thread. Without one, all runs are made by one thread.

        Raises:
            InvalidRequestError: the graph cannot be run on these inputs.
        """
        bound = self._bindings.find(inputs) if stop is None else None
        if bound is not None:
            try:
                return bound.run(inputs)
            except RuntimeError:  # of any kind; a run of the ordinary kind says which
                pass
        try:
            outputs = dict(zip(self._names, self._run(self._names, inputs, stop and stop.options), strict=True))
            if stop is None:
                self._bindings.bind(inputs, outputs)
            return outputs
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):  # its classes share no base of their own
                raise
            if stop is None or not stop.called:
                log.warning("a run failed: %s", error)
            shapes = {name: list(array.shape) for name, array in inputs.items()}
            raise InvalidRequestError(f"the model cannot be run on inputs of shapes {shapes}") from None

    def _run_on_bits(self, names: list[str], inputs: Mapping[str, Array], options: Any) -> list[Array]:
        """Run on tensors that numpy has no type for, which go in and come out as their bits."""
        feed = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BF16)
            if name in self._bits
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in inputs.items()
        }
        values = self._session.run_with_ort_values(names, feed, options)
        return [_bits(value) if name in self._bits else value.numpy() for name, value in zip(names, values, strict=True)]

    def quick(self, rows: int) -> bool:
        """Return whether a run of ``rows`` rows is short enough for the event loop, by what the warm-up took."""
        return self._fixed + self._per_row * rows <= QUICK_SECONDS

    def _measure(self, inputs: tuple[Tensor, ...], domain: InputDomain) -> tuple[float, float]:
        """Warm up, and return the seconds of a run as a constant and a part for each row."""
        if any(size == -1 for tensor in inputs for size in tensor.shape[1:]):
            return math.inf, 0.0  # no size that is sure to run, and none that bounds the cost
        try:
            few = self._timed({tensor.name: _sample(tensor, _FEW, domain) for tensor in inputs})
        except InvalidRequestError as error:
            raise CorruptError(f"The model does not run: {error}.") from None
        if few > QUICK_SECONDS:
            return few, 0.0
        try:
            many = self._timed({tensor.name: _sample(tensor, _MANY, domain) for tensor in inputs})
        except InvalidRequestError:
            return math.inf, 0.0
        per_row = max(0.0, (many - few) / (_MANY - _FEW))
        return few - per_row, per_row

    def _timed(self, feed: Mapping[str, Array]) -> float:
        self._check(self.run(feed))
        times: list[float] = []
        for _ in range(_WARM_RUNS):
            start = time.perf_counter()
            self.run(feed)
            times.append(time.perf_counter() - start)
        return min(times)

    def _check(self, outputs: Mapping[str, Array]) -> None:
        """Refuse outputs of other shapes than the manifest gives, which the graph itself need not tell."""
        for tensor in self._outputs:
            shape = outputs[tensor.name].shape
            if len(shape) != len(tensor.shape) or any(want not in (-1, got) for want, got in zip(tensor.shape, shape, strict=True)):
                raise CorruptError(f"The manifest says {list(tensor.shape)} of output {tensor.name!r}, a run gave {list(shape)}.")


def _open(model: bytes, settings: Settings) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or max(1, available_cpus() // settings.processes)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # or activations at quantised weights get 8 bits
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn the worker's cores
    options.log_severity_level = 4  # what goes wrong is raised, and logged by whoever catches it
    have = ort.get_available_providers()
    try:
        return ort.InferenceSession(
            model, options, providers=[(name, OPTIONS.get(name, {})) for name in PROVIDERS[settings.device] if name in have]
        )
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here, some only RuntimeError
        raise CorruptError(f"ONNX Runtime cannot load the model: {str(error)[:500]}") from None


def _why_not_cuda() -> str:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        return "ONNX Runtime got no CUDA device here"
    return "this build of ONNX Runtime has no CUDA: the extra gpu brings one that has"


def _bits(value: Any) -> Array:
    """Return a copy of the elements of a BF16 value of ONNX Runtime."""
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, DTYPES["BF16"]).reshape(value.shape())


def _compare(role: str, found: Iterable[Any], expected: tuple[Tensor, ...]) -> None:
    """Refuse a graph whose inputs or outputs are not those of the manifest."""
    graph = {node.name: node for node in found}
    names = [tensor.name for tensor in expected]
    if sorted(graph) != sorted(names):
        raise CorruptError(f"The manifest names the {role}s {sorted(names)}, the graph has {sorted(graph)}.")
    for tensor in expected:
        if tensor.datatype not in DTYPES:
            raise CorruptError(f"The {role} {tensor.name!r} is {tensor.datatype}, which is not served.")
        node = graph[tensor.name]
        datatype = _TYPES.get(node.type, node.type)
        shape = tuple(size if isinstance(size, int) else -1 for size in node.shape or ())
        if datatype != tensor.datatype or not _fits(role, shape, tensor.shape):
            raise CorruptError(
                f"The manifest says {tensor.datatype} {list(tensor.shape)} of {role} {tensor.name!r}, the graph {datatype} {list(shape)}."
            )


def _fits(role: str, graph: Shape, manifest: Shape) -> bool:
    if role == "input":
        return graph == manifest
    # Shape inference may know less of an output than its maker did, and nothing at all of its rank.
    return not graph or (len(graph) == len(manifest) and all(size in (-1, want) for size, want in zip(graph, manifest, strict=True)))


def _sample(tensor: Tensor, rows: int, domain: InputDomain) -> Array:
    """Return ``rows`` rows of the value of the input's domain that is closest to zero."""
    shape = tuple(rows if size == -1 else size for size in tensor.shape)
    if tensor.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    least, most = domain.minimum, domain.maximum
    value = max(0.0, least if least is not None else 0.0)
    return np.full(shape, min(value, most) if most is not None else value).astype(DTYPES[tensor.datatype])


def available_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process may use: the affinity mask, less where the control group allows less."""
    allowed = len(os.sched_getaffinity(0))
    for quota, period in ((root / "cpu.max", None), (root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us")):
        try:
            words = [*quota.read_text().split(), *(period.read_text().split() if period else ())]
            if words[0] not in {"max", "-1"}:
                return max(1, min(allowed, math.ceil(int(words[0]) / int(words[1]))))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return max(1, allowed)
