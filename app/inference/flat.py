"""Requests that differ from an earlier one in nothing but their numbers, whose text around those need not be read again.

A text is cut around its last array: ``before [ numbers ] after``. Where the general way has read such a text, and the array
proved to be the ``data`` of its one input, any flat array of numbers in its place makes a request that differs in those
alone: that is how JSON is built up. simdjson reads the numbers straight into a buffer, and only numbers: whatever else
stands there, and every text whose surroundings are new, is left to the general way, which alone knows errors.
"""

import secrets
from typing import Any, Final, Generic, TypeVar

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

FormT = TypeVar("FormT")

_LARGEST_FORM: Final = 1024
_MOST_FORMS: Final = 256


class Forms(Generic[FormT]):
    """What is known of the texts around the numbers; for one thread."""

    def __init__(self) -> None:
        self._parser: Any = simdjson.Parser()
        self._known: dict[tuple[bytes, bytes], FormT] = {}

    def read(self, body: bytes) -> tuple[FormT, NDArray[np.float64]] | None:
        """Return what was learnt of the text around the numbers of ``body``, and those; None where it is new or they are none."""
        begin = body.rfind(b"[") + 1
        end = body.find(b"]", begin)
        form = self._known.get((body[:begin], body[end:]))
        if form is None:
            return None
        try:
            # A name for the array would keep the parser from being used again where an exception holds on to it.
            return form, np.frombuffer(self._parser.parse(body[begin - 1 : end + 1]).as_buffer(of_type="d"), np.float64)
        except (ValueError, TypeError, RuntimeError):
            return None

    def learn(self, body: bytes, form: FormT) -> None:
        """Remember ``form`` for the text around the numbers of ``body``, a request of one input that was read and found right."""
        begin = body.rfind(b"[") + 1
        end = body.find(b"]", begin)
        if not 0 < begin <= end or begin + len(body) - end > _LARGEST_FORM:
            return
        mark = secrets.token_hex(16)
        try:
            document, marked = orjson.loads(body), orjson.loads(body[:begin] + orjson.dumps(mark) + body[end:])
        except orjson.JSONDecodeError:
            return  # the last bracket was not one of JSON's own, but in a string
        held = marked["inputs"][0].get("data")
        document["inputs"][0]["data"] = held
        if document == marked and held in ([mark], [[mark]]):
            if len(self._known) >= _MOST_FORMS:
                self._known.clear()
            self._known[body[:begin], body[end:]] = form
