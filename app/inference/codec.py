"""Requests and answers of the Open Inference Protocol, checked against the signature of one version.

A request is JSON, or JSON followed by the raw bytes of its tensors; the caller says how long the JSON part is where
there is one. Whatever is wrong is refused with what was expected and what came.
"""

import math
import struct
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from app.errors import InvalidRequestError
from app.inference.flat import Forms
from app.inference.outputs import Outputs, Part
from app.inference.parameters import binary_size, classes, flag, quote, read_parameters, timeout
from app.inference.tensors import DTYPES, Array, Shape, from_bytes, from_json, kind, numbers, to_bytes, to_json
from export.bundle import Manifest, Signature, Tensor

_LARGEST_DIMENSION: Final = 2**31 - 1
_SQUARE_OF_FP32: Final = float(np.finfo(np.float32).max) ** 2
_MOST_BRACKETS: Final = 2**20  # an empty array takes two bytes here and sixty in memory


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


class Form(NamedTuple):
    """What requests of one input have in common that differ in their numbers alone."""

    tensor: Tensor
    shape: Shape
    size: int
    rows: int
    wanted: tuple[Wanted, ...]
    timeout: float | None


class Encoded(NamedTuple):
    """An answer; ``json_bytes`` is the size of its JSON part, None where all of it is JSON."""

    body: bytes
    json_bytes: int | None = None


class Codec:
    """Reads requests to, and writes answers of, one version."""

    def __init__(self, model: str, version: str, manifest: Manifest, *, max_rows: int) -> None:
        signature = manifest.signature
        self._inputs = {tensor.name: tensor for tensor in signature.inputs}
        self._outputs = {tensor.name: tensor for tensor in signature.outputs}
        self._labels = signature.labels
        self._all = {binary: tuple(Wanted(tensor, binary) for tensor in signature.outputs) for binary in (False, True)}
        self._forms: Forms[Form] | None = Forms() if [tensor.datatype for tensor in signature.inputs] == ["FP32"] else None
        self._max_rows = max_rows
        self._batched = shares_runs(signature)
        self._domain = manifest.input
        self._bounded = (manifest.input.minimum, manifest.input.maximum) != (None, None)
        self._certified = manifest.lipschitz.bound is not None
        self._head = {"model_name": model, "model_version": version}
        self._parameters: dict[str, Any] = {"model_digest": manifest.model_digest}
        if manifest.lipschitz.bound is not None:
            self._parameters["lipschitz_bound"] = manifest.lipschitz.bound
        else:
            self._parameters["lipschitz_reason"] = manifest.lipschitz.reason or "no bound was computed"
        self._flagged = {**self._parameters, "input_out_of_range": True}
        # The parts of a JSON answer that no request changes, as :meth:`_joined` puts them together.
        self._begin = {
            flagged: orjson.dumps({**self._head, "parameters": parameters, "outputs": []})[:-2]
            for flagged, parameters in ((False, self._parameters), (True, self._flagged))
        }
        self._entries = [
            (tensor, (b"," if at else b"") + orjson.dumps({"name": tensor.name, "datatype": tensor.datatype, "shape": []})[:-2])
            for at, tensor in enumerate(signature.outputs)
        ]

    def decode(self, body: bytes, json_bytes: int | None = None) -> Request:
        """Return the request that ``body`` holds.

        Args:
            body: all of it, inflated.
            json_bytes: size of its JSON part where tensors follow; 0 where the body is one raw tensor; None where all is JSON.

        Raises:
            InvalidRequestError: it is not a request to this version.
        """
        if json_bytes == 0:
            return self._raw(memoryview(body))
        if json_bytes is not None and json_bytes > len(body):
            raise InvalidRequestError(f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes")
        if json_bytes is not None:
            return self.read(_parse(memoryview(body)[:json_bytes]), memoryview(body)[json_bytes:])
        return (self._again(self._forms, body) or self._first(self._forms, body)) if self._forms else self.read(_parse(body), None)

    def _again(self, forms: Forms[Form], body: bytes) -> Request | None:
        """Return a request that differs in its numbers alone from one that was read before, None where there is doubt."""
        found = forms.read(body)
        if found is None:
            return None
        form, values = found
        # The sum of squares bounds every single one, so that all are finite as FP32.
        if values.size != form.size or not values.dot(values) <= _SQUARE_OF_FP32:
            return None
        array = values.astype(np.float32).reshape(form.shape)
        outside = self._bounded and self._out_of_range(array, form.tensor)
        return Request({form.tensor.name: array}, form.rows, form.wanted, None, form.timeout, outside)

    def _first(self, forms: Forms[Form], body: bytes) -> Request:
        """Return a request that is read in full, and keep what it has in common with the next ones."""
        request = self.read(_parse(body), None)
        ((name, array),) = request.inputs.items()
        if request.id is None and array.size:
            forms.learn(body, Form(self._inputs[name], array.shape, array.size, request.rows, request.wanted, request.timeout))
        return request

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
            outside = self._out_of_range(array, self._inputs[name]) or outside
        return Request(inputs, self._rows(inputs), wanted, identity, timeout, outside)

    def _out_of_range(self, array: Array, tensor: Tensor) -> bool:
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

    def _raw(self, raw: memoryview) -> Request:
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
        return self._checked({tensor.name: array}, self._all[True], None, None)

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
        if type(entry) is not dict:
            raise InvalidRequestError(f"expected every input to be an object, got {kind(entry)}")
        name = entry.get("name")
        tensor = self._inputs.get(name) if type(name) is str else None
        if tensor is None:
            raise InvalidRequestError(f"expected an input of {sorted(self._inputs)}, got {quote(name)}")
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
            return self._all[binary]
        if type(entries) is not list:
            raise InvalidRequestError(f"expected outputs to be an array, got {kind(entries)}")
        wanted: dict[str, Wanted] = {}
        for entry in entries:
            if type(entry) is not dict:
                raise InvalidRequestError(f"expected every output to be an object, got {kind(entry)}")
            name = entry.get("name")
            tensor = self._outputs.get(name) if type(name) is str else None
            if tensor is None:
                raise InvalidRequestError(f"expected an output of {sorted(self._outputs)}, got {quote(name)}")
            if tensor.name in wanted:
                raise InvalidRequestError(f"output {tensor.name!r} is asked for twice")
            own = read_parameters(entry, f"output {tensor.name!r}")
            wanted[tensor.name] = Wanted(tensor, flag(own, "binary_data", default=binary), classes(own, tensor))
        return tuple(wanted.values())

    def encode(self, request: Request, outputs: Outputs) -> Encoded:
        """Return the answer to ``request``, whose results are ``outputs``, as it goes over HTTP.

        Raises:
            InvalidRequestError: an output is asked for as JSON, which cannot say its values.
        """
        if request.wanted is self._all[False] and type(outputs) is Part and (text := self._joined(request, outputs)):
            return Encoded(text)
        answer, blobs = self.write(request, outputs)
        text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Encoded(b"".join((text, *blobs)), len(text)) if blobs else Encoded(text)

    def _joined(self, request: Request, outputs: Part) -> bytes | None:
        """Return what :meth:`encode` gives where all outputs are wanted as JSON, put together from texts that all of a run share."""
        text = [self._begin[request.out_of_range]]
        for tensor, begin in self._entries:
            data = outputs.text(tensor.name, tensor.datatype)
            if data is None:
                return None
            text += (begin, data)
        text.append(b"]}" if request.id is None else b'],"id":%s}' % orjson.dumps(request.id))
        return b"".join(text)

    def write(self, request: Request, outputs: Outputs) -> tuple[dict[str, Any], list[bytes]]:
        """Return the answer as a JSON object and the binary data of its outputs. Raises what :meth:`encode` raises."""
        tensors: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for tensor, binary, best in request.wanted:
            array, datatype = outputs[tensor.name], tensor.datatype
            if best:
                array, datatype = _classify(array, tensor, best, self._labels), "BYTES"
            entry: dict[str, Any] = {"name": tensor.name, "datatype": datatype, "shape": array.shape}
            if binary:
                blobs.append(to_bytes(array, datatype))
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = to_json(array, datatype, name=tensor.name)
            tensors.append(entry)
        answer = {**self._head, "parameters": self._flagged if request.out_of_range else self._parameters, "outputs": tensors}
        if request.id is not None:
            answer["id"] = request.id
        return answer, blobs


def _parse(text: bytes | memoryview) -> dict[str, Any]:
    if not text:
        raise InvalidRequestError("expected a JSON object, got an empty body")
    if len(text) > _MOST_BRACKETS:
        text = bytes(text)
        if text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
            raise InvalidRequestError(f"the body has more than {_MOST_BRACKETS} brackets: send the data flat, or as binary")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidRequestError(f"expected a JSON object, got {kind(document)}")
    return document


def _classify(array: Array, tensor: Tensor, count: int, labels: tuple[str, ...]) -> Array:
    """Return ``value:index[:label]`` of the largest scores of each row, best first."""
    rows = array.shape[0] if tensor.shape and tensor.shape[0] == -1 else 1
    scores = numbers(array, tensor.datatype).reshape(rows, array.size // rows if rows else 0)
    named = len(labels) == scores.shape[1]
    # Backwards twice: of equals the first comes first, and no number is negated, which unsigned ones do not bear.
    order = scores.shape[1] - 1 - np.argsort(scores[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    text = [
        [f"{row[index]!s}:{index}:{labels[index]}" if named else f"{row[index]!s}:{index}" for index in best.tolist()]
        for row, best in zip(scores, order, strict=True)
    ]
    return np.array(text, dtype=object).reshape(order.shape)
