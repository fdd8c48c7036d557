"""Answers of the Open Inference Protocol, as bytes. What no request changes is written once."""

import time
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from app.inference.outputs import Joined, Outputs, Part, Texts
from app.inference.request import Request
from app.inference.tensors import Array, Shape, numbers, to_bytes, to_json
from export.bundle import Manifest, Tensor

_MOST_HEADS: Final = 64


class Encoded(NamedTuple):
    """An answer; ``json_bytes`` is the size of its JSON part, None where all of it is JSON."""

    body: bytes
    json_bytes: int | None = None


class Writer:
    """Writes answers of one version."""

    def __init__(self, model: str, version: str, manifest: Manifest) -> None:
        self._labels = manifest.signature.labels
        self._head = {"model_name": model, "model_version": version}
        bound, reason = manifest.lipschitz.bound, manifest.lipschitz.reason
        told = {"lipschitz_bound": bound} if bound is not None else {"lipschitz_reason": reason or "no bound was computed"}
        parameters = {"model_digest": manifest.model_digest, **told}
        self._parameters: dict[bool, dict[str, Any]] = {False: parameters, True: {**parameters, "input_out_of_range": True}}
        self._begin = {
            outside: orjson.dumps({**self._head, "parameters": parameters, "outputs": []})[:-2]
            for outside, parameters in self._parameters.items()
        }
        self._formats: dict[tuple[bool, tuple[Shape, ...]], bytes] = {}
        self._entries = [
            (tensor, (b"," if at else b"") + orjson.dumps({"name": tensor.name, "datatype": tensor.datatype, "shape": []})[:-2])
            for at, tensor in enumerate(manifest.signature.outputs)
        ]

    def encode(self, request: Request, outputs: Outputs) -> Encoded:
        """Return the answer to ``request``, whose results are ``outputs``, as it goes over HTTP.

        Raises:
            InvalidRequestError: an output is asked for as JSON, which cannot say its values.
        """
        if request.plain and type(outputs) is Part:
            text = self._text(outputs.joined, outputs.begin, outputs.end, outside=request.out_of_range)
            if text is not None:
                return Encoded(text if request.id is None else named(text, request.id))
        answer, blobs = self.write(request, outputs)
        text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Encoded(b"".join((text, *blobs)), len(text)) if blobs else Encoded(text)

    def _text(self, joined: Joined, begin: int, end: int, *, outside: bool) -> bytes | None:
        """Return what :meth:`encode` gives for some rows of a run where all is wanted as JSON, and there is no id.

        None where that cannot be had row by row.
        """
        if end - begin == 1:
            rows = self.rows(joined, outside)
            return None if rows is None else rows[begin]
        texts = self._texts(joined)
        if texts is None:
            return None
        parts = [self._begin[outside]]
        for (_, name), text in zip(self._entries, texts, strict=True):
            parts += (name, b'%d%s],"data":[%s]}' % (end - begin, _sizes(text.shape), b",".join(text.rows[begin:end])))
        return b"".join((*parts, b"]}"))

    def rows(self, joined: Joined, outside: bool) -> list[bytes] | None:
        """Return the answers to every single row of a run, which are written together; as :meth:`encode` writes those without id."""
        if outside in joined.rows:
            return joined.rows[outside]
        begun = time.perf_counter_ns()
        rows: list[bytes] | None = None
        texts = self._texts(joined)
        if texts is not None:
            if len(texts) == 1:
                around = self._around(outside, (texts[0].shape,))
                rows = [around % row for row in texts[0].rows]
            else:
                around = self._around(outside, tuple([text.shape for text in texts]))
                rows = [around % row for row in zip(*[text.rows for text in texts], strict=True)]
        joined.rows[outside] = rows
        joined.write_ns += time.perf_counter_ns() - begun
        return rows

    def _around(self, outside: bool, shapes: tuple[Shape, ...]) -> bytes:
        """Return the format of an answer of one row whose outputs have these shapes, for their elements."""
        known = self._formats.get((outside, shapes))
        if known is not None:
            return known
        parts = [self._begin[outside].replace(b"%", b"%%")]
        for (_, name), shape in zip(self._entries, shapes, strict=True):
            parts += (name.replace(b"%", b"%%"), b'1%s],"data":[%%s]}' % _sizes(shape))
        if len(self._formats) >= _MOST_HEADS:
            self._formats.clear()
        self._formats[outside, shapes] = b"".join((*parts, b"]}"))
        return self._formats[outside, shapes]

    def _texts(self, joined: Joined) -> list[Texts] | None:
        texts = [joined.texts(tensor.name, tensor.datatype) for tensor, _ in self._entries]
        found = [text for text in texts if text is not None]
        return found if len(found) == len(texts) else None

    def raw(self, request: Request, outputs: Outputs, heads: dict[object, bytes]) -> Encoded:
        """Return what :meth:`encode` gives where all that is wanted is binary, and of fixed size.

        Args:
            request: with or without an id.
            outputs: its results.
            heads: what was written for requests that want the same.
        """
        arrays = [outputs[tensor.name] for tensor, _, _ in request.wanted]
        key = (request.out_of_range, *[array.shape for array in arrays])
        head = heads.get(key)
        if head is None:
            answer, _ = self.write(request._replace(id=None), outputs)
            head = heads[key] = orjson.dumps(answer)
            if len(heads) > _MOST_HEADS:
                heads.clear()
        if request.id is not None:
            head = named(head, request.id)
        blobs = [to_bytes(array, wanted.tensor.datatype) for array, wanted in zip(arrays, request.wanted, strict=True)]
        return Encoded(b"".join((head, *blobs)), len(head))

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
        answer = {**self._head, "parameters": self._parameters[request.out_of_range], "outputs": tensors}
        if request.id is not None:
            answer["id"] = request.id
        return answer, blobs


def _sizes(shape: Shape) -> bytes:
    """Return what stands behind the number of rows in a shape."""
    return b"".join([b",%d" % size for size in shape])


def named(text: bytes, identity: str) -> bytes:
    """Return the JSON object ``text`` with an id as its last member."""
    return b'%s,"id":%s}' % (text[:-1], orjson.dumps(identity))


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
