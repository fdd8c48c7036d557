"""Requests that differ from an earlier one in nothing but their numbers, whose text around those need not be read again.

A JSON text is cut around its last array: ``before [ numbers ] after``. Where the general way has read such a text, and the
array proved to be the ``data`` of its one input, any flat array of numbers in its place makes a request that differs in
those alone: that is how JSON is built up. simdjson reads the numbers straight into a buffer, and only numbers: whatever else
stands there, and every text whose surroundings are new, is left to the general way, which alone knows errors.

The same goes for binary data behind a JSON part that was read before. An ``id`` that is the first or the last member of the
object is cut out first, since it differs from request to request.
"""

import math
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from app.inference.request import Request
from app.inference.tensors import Array, Shape
from export.bundle import Tensor

_LARGEST_FORM: Final = 1024
_MOST_FORMS: Final = 256
_SQUARE_OF_FP32: Final = float(np.finfo(np.float32).max) ** 2
_FIRST_ID: Final = re.compile(rb'\{ ?"id" ?: ?"([A-Za-z0-9 ._:/-]{0,128})" ?, ?')
_LAST_ID: Final = re.compile(rb', ?"id" ?: ?"([A-Za-z0-9 ._:/-]{0,128})" ?\}\Z')
_ID: Final = b'"id"'
_FENCE: Final = b"1e300"


class Form:
    """What requests of one FP32 input have in common that differ in their numbers alone.

    Attributes:
        tensor: the input.
        shape: of one request's.
        size: its elements.
        rows: how much of a batch it takes.
        key: what has to be alike in a batch.
        wanted: which outputs.
        plain: whether that is all of them, as JSON.
        timeout: in seconds.
        binary: whether they come as bytes.
        raw: whether all that is wanted is binary, and of fixed size.
        heads: of such answers.
    """

    __slots__ = ("binary", "heads", "key", "plain", "raw", "rows", "shape", "size", "tensor", "timeout", "wanted")

    def __init__(self, tensor: Tensor, request: Request, *, binary: bool) -> None:
        self.tensor = tensor
        self.binary = binary
        self.shape: Shape = request.inputs[tensor.name].shape
        self.size = math.prod(self.shape)
        self.rows = request.rows
        self.key = (self.shape[1:],)
        self.wanted = request.wanted
        self.plain = request.plain
        self.timeout = request.timeout
        self.raw = all(as_bytes and not best and asked.datatype != "BYTES" for asked, as_bytes, best in request.wanted)
        self.heads: dict[object, bytes] = {}


class Unread(Protocol):
    """A request of a known form whose numbers are not read yet: what stands between brackets, or bytes."""

    @property
    def form(self) -> Form:
        """What it has in common with others."""
        ...

    @property
    def numbers(self) -> bytes:
        """What is its own."""
        ...


class Found(NamedTuple):
    """An unread request."""

    form: Form
    numbers: bytes
    id: str | None


class Forms:
    """The forms that are known of one version; for one thread."""

    def __init__(self) -> None:
        self._parser: Any = simdjson.Parser()
        self._texts: dict[tuple[bytes, bytes], Form] = {}
        self._heads: dict[bytes, Form] = {}

    def find(self, data: bytes, begin: int, json_bytes: int | None) -> tuple[Form, bytes, str | None] | None:
        """Return form, numbers and id of the request that ``data`` holds from ``begin`` on, None where its form is new.

        Args:
            data: all that was received.
            begin: where the body begins.
            json_bytes: size of its JSON part where binary data follow.
        """
        if json_bytes is None:
            start = data.rfind(b"[", begin) + 1
            stop = data.find(b"]", start)
            before, after = data[begin:start], data[stop:]
            form = self._texts.get((before, after))
            if form is not None:
                return form, data[start:stop], None
            before, after, identity = _without_id(before, after)
            form = self._texts.get((before, after)) if identity is not None else None
            return (form, data[start:stop], identity) if form else None
        end = begin + json_bytes
        head, identity = data[begin:end], None
        form = self._heads.get(head)
        if form is None:
            head, _, identity = _without_id(head, b"")
            form = self._heads.get(head) if identity is not None else None
        return (form, data[end:], identity) if form and len(data) - end == 4 * form.size else None

    def read(self, unread: Sequence[Unread]) -> Array | None:
        """Return the numbers of requests whose inputs are of like rows, one behind the other; None where there is doubt."""
        first = unread[0].form
        if len(unread) == 1:
            return self._read_one(first, unread[0].numbers)
        alike = not [one for one in unread if one.form is not first]
        if not (alike or all(one.form.binary is first.binary for one in unread)):
            return None
        shape = (-1, *first.shape[1:])
        numbers = [one.numbers for one in unread]
        if first.binary:
            return np.frombuffer(b"".join(numbers), "<f4").reshape(shape)
        if alike:
            return self._read_alike(numbers, first.size, shape)
        # Each text has one number more than commas, or fewer, if it has numbers at all: where the sum is right, all are.
        if any(one.numbers.count(b",") != one.form.size - 1 for one in unread):
            return None
        values = self._values(b"[%s]" % b",".join(numbers))
        good = values is not None and values.size == sum(one.form.size for one in unread) and values.dot(values) <= _SQUARE_OF_FP32
        return values.astype(np.float32).reshape(shape) if values is not None and good else None

    def _read_one(self, form: Form, numbers: bytes) -> Array | None:
        if form.binary:
            return np.frombuffer(numbers, "<f4").reshape(form.shape)
        values = self._values(b"[%s]" % numbers)
        # The sum of squares bounds every single one, so that all are finite as FP32.
        if values is None or values.size != form.size or not values.dot(values) <= _SQUARE_OF_FP32:
            return None
        return values.astype(np.float32).reshape(form.shape)

    def _read_alike(self, numbers: list[bytes], size: int, shape: Shape) -> Array | None:
        """Read texts of ``size`` numbers each.

        A number that FP32 cannot hold is put behind each. Where none of those is among the others, and the sum is right, each
        is where it has to be: so every text has its ``size`` numbers.
        """
        values = self._values(b"[%s,%s]" % ((b",%s," % _FENCE).join(numbers), _FENCE))
        if values is None or values.size != len(numbers) * (size + 1):
            return None
        with np.errstate(over="ignore"):  # what is out of range becomes infinite, as those do
            array = values.reshape(-1, size + 1)[:, :size].astype(np.float32)
            flat = array.reshape(-1)
            finite = flat.dot(flat) < np.inf or np.isfinite(flat).all()  # the sum of squares is faster, and may overflow
        return array.reshape(shape) if finite else None

    def _values(self, text: bytes) -> NDArray[np.float64] | None:
        """Return the numbers of the JSON array ``text``; None where it is none, or holds something else."""
        try:
            # A name for the document would keep the parser from being used again where an exception holds on to it.
            return np.frombuffer(self._parser.parse(text).as_buffer(of_type="d"), np.float64)
        except (ValueError, TypeError, RuntimeError):
            return None

    def learn_text(self, body: bytes, form: Form) -> None:
        """Remember ``form`` for the text around the numbers of ``body``, a request that was read and found right."""
        start = body.rfind(b"[") + 1
        stop = body.find(b"]", start)
        if not 0 < start <= stop or start + len(body) - stop > _LARGEST_FORM:
            return
        before, after, _ = _without_id(body[:start], body[stop:])
        mark = secrets.token_hex(16)
        try:
            document = orjson.loads(before + body[start:stop] + after)
            marked = orjson.loads(before + orjson.dumps(mark) + after)
        except orjson.JSONDecodeError:
            return  # the last bracket was not one of JSON's own, but in a string
        held = marked["inputs"][0].get("data")
        document["inputs"][0]["data"] = held
        if document == marked and held in ([mark], [[mark]]) and "id" not in document:
            _keep(self._texts, (before, after), form)

    def learn_head(self, head: bytes, form: Form) -> None:
        """Remember ``form`` for the JSON part of a request that was read and found right, and whose input is binary."""
        if len(head) > _LARGEST_FORM:
            return
        head, _, _ = _without_id(head, b"")
        if "id" not in orjson.loads(head):
            _keep(self._heads, head, form)


def _keep(forms: dict[Any, Form], key: object, form: Form) -> None:
    if len(forms) >= _MOST_FORMS:
        forms.clear()
    forms[key] = form


def _without_id(before: bytes, after: bytes) -> tuple[bytes, bytes, str | None]:
    """Return a text in two parts without its ``id``, where that is its first or its last member and has no escapes.

    What is left is the same object without the member, if it is an object at all.
    """
    match = _FIRST_ID.match(before)
    if match:
        return b"{" + before[match.end() :], after, match[1].decode()
    last = after or before
    match = _LAST_ID.search(last) if _ID in last else None
    if match is None:
        return before, after, None
    rest = last[: match.start()] + b"}"
    return (before, rest, match[1].decode()) if after else (rest, after, match[1].decode())
