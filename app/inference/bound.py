"""Runs of one shape in and out of memory that is bound to the session once: passing arrays is half of what a small run costs."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from app.inference.tensors import Array, Shape
from export.bundle import Signature

_MOST_BYTES: Final = 2**16  # of the arrays of one shape; what is larger gains nothing
_MOST_SHAPES: Final = 128

Shapes = tuple[Shape, ...]


class Bound:
    """The memory of one shape, on the device of the session. Not for two threads."""

    def __init__(self, session: Any, device: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Bind memory for arrays like those of a run that was made."""
        self._session = session
        self._binding = session.io_binding()
        self._inputs: list[tuple[str, np.dtype[Any], Any]] = []
        self._outputs: list[tuple[str, Any]] = []
        for name, array in inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).copy(), device, 0)
            self._binding.bind_ortvalue_input(name, value)
            self._inputs.append((name, array.dtype, value))
        for name, array in outputs.items():
            value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, device, 0)
            self._binding.bind_ortvalue_output(name, value)
            self._outputs.append((name, value))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, in memory of its own. Raises RuntimeError where the run fails, whatever the reason."""
        for name, dtype, value in self._inputs:
            array = inputs[name]
            if array.dtype is not dtype and array.dtype != dtype:  # bytes are copied whatever they mean
                raise RuntimeError(f"the input {name!r} is {array.dtype}, and {dtype} was bound")
            value.update_inplace(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding)
        return {name: value.numpy().copy() for name, value in self._outputs}


class Bindings:
    """Those of one session, by the shapes of the inputs."""

    def __init__(self, session: Any, device: str, signature: Signature) -> None:
        """Bind nothing yet."""
        self._session = session
        self._device = device
        self._names = [tensor.name for tensor in signature.inputs]
        # Only where the shapes of the outputs follow from those of the inputs, whatever the numbers are.
        self._fit = signature.rows_independent and all(
            tensor.datatype not in {"BYTES", "BF16"} and tensor.shape[:1] == (-1,) and -1 not in tensor.shape[1:]
            for tensor in (*signature.inputs, *signature.outputs)
        )
        self._bound: dict[Shapes, Bound] = {}

    def find(self, inputs: Mapping[str, Array]) -> Bound | None:
        """Return what was bound for inputs of these shapes."""
        return self._bound.get(self._shapes(inputs)) if self._bound else None

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Bind memory for runs like the one that took ``inputs`` and gave ``outputs``, where that is worth it."""
        arrays = (*inputs.values(), *outputs.values())
        if not self._fit or not all(array.size for array in arrays) or sum(array.nbytes for array in arrays) > _MOST_BYTES:
            return
        if len(self._bound) >= _MOST_SHAPES:
            self._bound.clear()
        self._bound[self._shapes(inputs)] = Bound(self._session, self._device, inputs, outputs)

    def _shapes(self, inputs: Mapping[str, Array]) -> Shapes:
        return tuple([inputs[name].shape for name in self._names])
