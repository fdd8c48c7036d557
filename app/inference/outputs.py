"""What a run gave, and each request's part of it. Numbers are written as JSON once for all requests that shared the run."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import orjson

from app.inference.tensors import WITHOUT_JSON, Array, Shape

Outputs = Mapping[str, Array]


class Texts(NamedTuple):
    """One output as JSON: the shape of a row, and the elements of each row."""

    shape: Shape
    rows: list[bytes]


class Joined:
    """Outputs of one run by name.

    Attributes:
        arrays: all rows.
        divisible: whether every output has one row for each row of the input.
        begun_ns: when reading its requests began.
        read_ns: how long that took.
        run_ns: how long the model took.
        rows: whole answers to every single row, written when the first is asked for; by whether the row is out of range.
        write_ns: how long that took.
    """

    __slots__ = ("_texts", "arrays", "begun_ns", "divisible", "read_ns", "rows", "run_ns", "write_ns")

    def __init__(self, arrays: Mapping[str, Array], *, divisible: bool, begun_ns: int = 0, read_ns: int = 0, run_ns: int = 0) -> None:
        self.arrays = arrays
        self.divisible = divisible
        self.begun_ns = begun_ns
        self.read_ns = read_ns
        self.run_ns = run_ns
        self.rows: dict[bool, list[bytes] | None] = {}
        self.write_ns = 0
        self._texts: dict[str, Texts | None] = {}

    def part(self, begin: int, end: int) -> Outputs:
        """Return the outputs of one request; all of them where they cannot be parted."""
        return Part(self, begin, end) if self.divisible else self.arrays

    def texts(self, name: str, datatype: str) -> Texts | None:
        """Return an output as JSON, None where it cannot be had row by row."""
        if name not in self._texts:
            self._texts[name] = _texts(self.arrays[name], datatype) if self.divisible else None
        return self._texts[name]


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


def _texts(array: Array, datatype: str) -> Texts | None:
    if datatype == "BYTES" or datatype in WITHOUT_JSON or not array.size:
        return None
    flat = array if array.ndim == 2 and array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape[0], -1)
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # what is not finite
        return None
    return Texts(array.shape[1:], text[2:-2].split(b"],["))
