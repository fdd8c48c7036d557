"""What a run gave, and each request's part of it. Numbers are written as JSON once for all requests that shared the run."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import orjson

from app.inference.tensors import FLOATS, WITHOUT_JSON, Array

Outputs = Mapping[str, Array]


class Joined:
    """Outputs of one run by name."""

    __slots__ = ("_texts", "arrays")

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays
        self._texts: dict[str, Texts | None] = {}

    def texts(self, name: str, datatype: str) -> "Texts | None":
        """Return an output as JSON, None where it cannot be had row by row."""
        if name not in self._texts:
            self._texts[name] = _texts(self.arrays[name], datatype)
        return self._texts[name]


class Texts(NamedTuple):
    """One output as JSON: the sizes of a row, the elements of each row, and what stands before those of a single row."""

    sizes: bytes
    rows: list[bytes]
    single: bytes


class Part(Outputs):
    """The rows of one request in a shared run."""

    __slots__ = ("begin", "end", "joined")

    def __init__(self, joined: Joined, begin: int, end: int) -> None:
        self.joined = joined
        self.begin = begin
        self.end = end

    def __getitem__(self, name: str) -> Array:
        return self.joined.arrays[name][self.begin : self.end]

    def __iter__(self) -> Iterator[str]:
        return iter(self.joined.arrays)

    def __len__(self) -> int:
        return len(self.joined.arrays)

    def text(self, name: str, datatype: str) -> bytes | None:
        """Return the rest of an output's JSON object from its shape's elements on, None where it cannot be had so."""
        texts = self.joined.texts(name, datatype)
        if texts is None:
            return None
        rows = self.end - self.begin
        if rows == 1:
            return b"%s%s]}" % (texts.single, texts.rows[self.begin])
        return b'%d%s],"data":[%s]}' % (rows, texts.sizes, b",".join(texts.rows[self.begin : self.end]))


def _texts(array: Array, datatype: str) -> Texts | None:
    if datatype == "BYTES" or datatype in WITHOUT_JSON or not array.size or (datatype in FLOATS and not _finite(array.ravel())):
        return None
    sizes = b"".join(b",%d" % size for size in array.shape[1:])
    flat = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    rows = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
    return Texts(sizes, rows, b'1%s],"data":[' % sizes)


def _finite(flat: Array) -> bool:
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())  # the sum of squares is faster, and may overflow
