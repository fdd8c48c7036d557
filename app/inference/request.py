"""Requests of the Open Inference Protocol, checked against the signature of one version.

Whatever is wrong is refused with what was expected and what came.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from app.errors import InvalidRequestError
from app.inference.parameters import binary_size, classes, flag, quote, read_parameters, timeout
from app.inference.tensors import DTYPES, Array, Shape, from_bytes, from_json, kind, numbers
from export.bundle import Manifest, Signature, Tensor

_LARGEST_DIMENSION: Final = 2**31 - 1


def named(entry: Any, tensors: Mapping[str, Tensor], what: str) -> Tensor:
    """Return the tensor that an entry of ``inputs`` or ``outputs`` names.

    Raises:
        InvalidRequestError: the entry is no object, or names none of ``tensors``.
    """
    if type(entry) is not dict:
        raise InvalidRequestError(f"expected every {what} to be an object, got {kind(entry)}")
    name = entry.get("name")
    tensor = tensors.get(name) if type(name) is str else None
    if tensor is None:
        raise InvalidRequestError(f"expected an {what} of {sorted(tensors)}, got {quote(name)}")
    return tensor


def shares_runs(signature: Signature) -> bool:
    """Return whether requests may be put together: every tensor has rows, and it is proved that none looks at another."""
    return signature.rows_independent and all(tensor.shape[:1] == (-1,) for tensor in (*signature.inputs, *signature.outputs))


class Wanted(NamedTuple):
    """One output that the caller wants, and how."""

    tensor: Tensor
    binary: bool = False
    classes: int = 0


class Request(NamedTuple):
    """One inference request that has passed every check.

    ``rows`` is the size of the leading dimension where requests share runs, else 1; ``timeout`` is in seconds.
    """

    inputs: dict[str, Array]
    rows: int
    wanted: tuple[Wanted, ...]
    id: str | None = None
    timeout: float | None = None
    out_of_range: bool = False
    plain: bool = False  # all outputs are wanted as JSON


class Reader:
    """Reads requests to one version.

    Attributes:
        all: every output, as JSON and as binary data.
    """

    def __init__(self, manifest: Manifest, *, max_rows: int) -> None:
        signature = manifest.signature
        self._inputs = {tensor.name: tensor for tensor in signature.inputs}
        self._outputs = {tensor.name: tensor for tensor in signature.outputs}
        self.all = {binary: tuple(Wanted(tensor, binary) for tensor in signature.outputs) for binary in (False, True)}
        self._max_rows = max_rows
        self._batched = shares_runs(signature)
        self._domain = manifest.input
        self._certified = manifest.lipschitz.bound is not None

    def read(self, document: dict[str, Any], raw: memoryview | None) -> Request:
        """Return the request that the JSON object ``document`` is, the binary data of its inputs being ``raw``.

        Raises:
            InvalidRequestError: it is not a request to this version.
        """
        identity = document.get("id")
        if identity is not None and type(identity) is not str:
            raise InvalidRequestError(f"expected id to be a string, got {kind(identity)}")
        parameters = read_parameters(document, "the request")
        inputs = self._read_inputs(document, raw)
        return self._checked(inputs, self._read_wanted(document, parameters), identity, timeout(parameters))

    def _checked(self, inputs: dict[str, Array], wanted: tuple[Wanted, ...], identity: str | None, timeout: float | None) -> Request:
        """Finish a request: look at the numbers, count the rows."""
        outside = False
        for name, array in inputs.items():
            outside = self.out_of_range(array, self._inputs[name]) or outside
        return Request(inputs, self._rows(inputs), wanted, identity, timeout, outside, wanted is self.all[False])

    def out_of_range(self, array: Array, tensor: Tensor) -> bool:
        """Return whether a number lies outside the range that the model was certified for. Raises InvalidRequestError: one is none."""
        if array.dtype == object or not array.size:
            return False
        array = numbers(array, tensor.datatype)
        low, high = self._domain.minimum, self._domain.maximum
        # Two extremes find everything: NaN is either, and so is infinity. Their places are found faster than their values.
        flat = array.reshape(-1)
        least, most = float(flat[flat.argmin()]), float(flat[flat.argmax()])
        if not (math.isfinite(least) and math.isfinite(most)):
            if self._certified:
                raise InvalidRequestError(
                    f"input {tensor.name!r} has NaN or infinite values; the Lipschitz bound of this model holds for finite ones only"
                )
            return low is not None or high is not None
        return (low is not None and least < low) or (high is not None and most > high)

    def _rows(self, inputs: dict[str, Array]) -> int:
        if not self._batched:
            return 1
        sizes = {int(array.shape[0]) for array in inputs.values()}
        if len(sizes) > 1:
            raise InvalidRequestError(f"expected all inputs to have the same number of rows, got {sorted(sizes)}")
        return sizes.pop()

    def raw(self, raw: memoryview) -> Request:
        """Read a body that is nothing but the one tensor: one row of it where there are rows, one element where it is BYTES."""
        if len(self._inputs) != 1:
            raise InvalidRequestError(f"a raw binary request is for models of one input; this one has {sorted(self._inputs)}")
        (tensor,) = self._inputs.values()
        shape = list(tensor.shape)
        if shape[:1] == [-1] and (self._batched or shape.count(-1) > 1):
            shape[0] = 1
        if tensor.datatype == "BYTES":
            shape = [abs(size) for size in shape]
            raw = memoryview(struct.pack("<I", len(raw)) + raw)
        if shape.count(-1) > 1 or (tensor.datatype == "BYTES" and math.prod(shape) != 1):
            raise InvalidRequestError(f"{tensor.datatype} {list(tensor.shape)} of input {tensor.name!r} cannot be read from a raw body")
        if -1 in shape:
            row = DTYPES[tensor.datatype].itemsize * math.prod(size for size in shape if size != -1)
            shape[shape.index(-1)] = len(raw) // row if row else 0
        array = from_bytes(raw, tensor.datatype, tuple(shape), name=tensor.name)
        return self._checked({tensor.name: array}, self.all[True], None, None)

    def _read_inputs(self, document: dict[str, Any], raw: memoryview | None) -> dict[str, Array]:
        entries = document.get("inputs")
        if type(entries) is not list:
            got = "none" if "inputs" not in document else kind(entries)
            raise InvalidRequestError(f"expected inputs to be an array of tensors, got {got}")
        arrays: dict[str, Array] = {}
        at = 0
        for entry in entries:
            tensor, shape = self._header(entry)
            if tensor.name in arrays:
                raise InvalidRequestError(f"input {tensor.name!r} is given twice")
            size = binary_size(entry, read_parameters(entry, f"input {tensor.name!r}"), tensor.name, raw)
            if size is None:
                arrays[tensor.name] = from_json(entry.get("data"), tensor.datatype, shape, name=tensor.name)
            elif raw is not None:
                if at + size > len(raw):
                    raise InvalidRequestError(f"input {tensor.name!r}: binary_data_size is {size}, but {len(raw) - at} bytes are left")
                arrays[tensor.name] = from_bytes(raw[at : at + size], tensor.datatype, shape, name=tensor.name)
                at += size
        if raw is not None and at != len(raw):
            raise InvalidRequestError(f"the inputs take {at} bytes of binary data, the body has {len(raw)}")
        missing = sorted(self._inputs.keys() - arrays.keys())
        if missing:
            raise InvalidRequestError(f"expected inputs {sorted(self._inputs)}; missing: {missing}")
        return arrays

    def _header(self, entry: Any) -> tuple[Tensor, Shape]:
        """Check name, datatype and shape of one input."""
        tensor = named(entry, self._inputs, "input")
        if entry.get("datatype") != tensor.datatype:
            raise InvalidRequestError(f"input {tensor.name!r}: expected datatype {tensor.datatype}, got {quote(entry.get('datatype'))}")
        shape = entry.get("shape")
        if type(shape) is not list or any(type(size) is not int or not 0 <= size <= _LARGEST_DIMENSION for size in shape):
            raise InvalidRequestError(f"input {tensor.name!r}: expected shape to be an array of integers from 0 to {_LARGEST_DIMENSION}")
        if len(shape) != len(tensor.shape) or any(want not in (-1, got) for want, got in zip(tensor.shape, shape, strict=True)):
            got = str(shape) if len(shape) <= 16 else f"{len(shape)} dimensions"
            raise InvalidRequestError(f"input {tensor.name!r}: expected shape {list(tensor.shape)} (-1 is free), got {got}")
        if self._batched and shape[0] > self._max_rows:
            raise InvalidRequestError(f"a request holds at most {self._max_rows} rows, got {shape[0]}: split it")
        return tensor, tuple(shape)

    def _read_wanted(self, document: dict[str, Any], parameters: dict[str, Any]) -> tuple[Wanted, ...]:
        binary = flag(parameters, "binary_data_output", default=False)
        entries = document.get("outputs")
        if entries is None or entries == []:
            return self.all[binary]
        if type(entries) is not list:
            raise InvalidRequestError(f"expected outputs to be an array, got {kind(entries)}")
        wanted: dict[str, Wanted] = {}
        for entry in entries:
            tensor = named(entry, self._outputs, "output")
            if tensor.name in wanted:
                raise InvalidRequestError(f"output {tensor.name!r} is asked for twice")
            own = read_parameters(entry, f"output {tensor.name!r}")
            wanted[tensor.name] = Wanted(tensor, flag(own, "binary_data", default=binary), classes(own, tensor))
        return tuple(wanted.values())
