"""Requests and answers of one version, from and to bytes.

A request is JSON, or JSON followed by the raw bytes of its tensors; the caller says how long the JSON part is where
there is one.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

import orjson

from app.errors import InvalidRequestError
from app.inference.answer import Writer
from app.inference.flat import Form, Forms, Found, Unread
from app.inference.request import Reader, Request
from app.inference.tensors import Array, kind
from export.bundle import Manifest

_MOST_BRACKETS: Final = 2**20  # an empty array takes two bytes here and sixty in memory


class Codec:
    """Reads requests to, and writes answers of, one version.

    Attributes:
        read: :meth:`Reader.read`.
        write: :meth:`Writer.write`.
        encode: :meth:`Writer.encode`.
        rows: :meth:`Writer.rows`.
        raw: :meth:`Writer.raw`.
        find: :meth:`Forms.find`.
    """

    def __init__(self, model: str, version: str, manifest: Manifest, *, max_rows: int) -> None:
        (first, *others) = manifest.signature.inputs
        self._reader = Reader(manifest, max_rows=max_rows)
        self._only = first
        self._forms = None if others or first.datatype != "FP32" else Forms()
        least, most = manifest.input.minimum, manifest.input.maximum
        self._bounded = (least, most) != (None, None)
        # All that is finite, at most.
        self._low = -sys.float_info.max if least is None else max(least, -sys.float_info.max)
        self._high = sys.float_info.max if most is None else min(most, sys.float_info.max)
        self._certified = manifest.lipschitz.bound is not None
        writer = Writer(model, version, manifest)
        self.read = self._reader.read
        self.write, self.encode, self.rows, self.raw = writer.write, writer.encode, writer.rows, writer.raw
        self.find = self._forms.find if self._forms is not None else _find_nothing

    def decode(self, body: bytes, json_bytes: int | None = None) -> Request:
        """Return the request that ``body`` holds.

        Args:
            body: all of it, inflated.
            json_bytes: size of its JSON part where tensors follow; 0 where the body is one raw tensor; None where all is JSON.

        Raises:
            InvalidRequestError: it is not a request to this version.
        """
        if json_bytes == 0:
            return self._reader.raw(memoryview(body))
        if json_bytes is not None and json_bytes > len(body):
            raise InvalidRequestError(f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes")
        found = self.find(body, 0, json_bytes)
        together = found and self.together([Found(*found)])
        if found and together:
            (array, flags), form, identity = together, found[0], found[2]
            return Request({form.tensor.name: array}, form.rows, form.wanted, identity, form.timeout, flags[0], form.plain)
        if json_bytes is None:
            request = self.read(_parse(body), None)
        else:
            request = self.read(_parse(memoryview(body)[:json_bytes]), memoryview(body)[json_bytes:])
        self._learn(body, json_bytes, request)
        return request

    def together(self, unread: Sequence[Unread]) -> tuple[Array, list[bool]] | None:
        """Return the numbers of requests whose inputs are of like rows, one behind the other, and which are out of range.

        None where there is anything wrong with one of them: :meth:`decode` knows what.
        """
        array = None if self._forms is None else self._forms.read(unread)
        if array is None:
            return None
        flags = [False] * len(unread)
        if not (self._bounded or (self._certified and unread[0].form.binary)) or self._within(array.reshape(-1)):
            return array, flags
        at = 0
        for number, one in enumerate(unread):
            end = at + one.form.size
            try:
                flags[number] = self._reader.out_of_range(array.reshape(-1)[at:end], self._only)
            except InvalidRequestError:
                return None
            at = end
        return array, flags

    def _within(self, flat: Array) -> bool:
        """Return whether all are finite and in the range; two extremes find everything, NaN too, which is either."""
        least: float = flat.item(flat.argmin())
        most: float = flat.item(flat.argmax())
        return self._low <= least and most <= self._high

    def _learn(self, body: bytes, json_bytes: int | None, request: Request) -> None:
        """Keep what a request that was read in full has in common with the next ones."""
        array = request.inputs.get(self._only.name)
        if self._forms is None or array is None or not array.size:
            return
        form = Form(self._only, request, binary=json_bytes is not None)
        if json_bytes is None:
            self._forms.learn_text(body, form)
        elif len(body) - json_bytes == 4 * form.size:
            self._forms.learn_head(body[:json_bytes], form)


def _find_nothing(data: bytes, begin: int, json_bytes: int | None) -> tuple[Form, bytes, str | None] | None:
    """Return None: no form is known of these requests."""


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
