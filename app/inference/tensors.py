"""Tensors on the wire: JSON arrays and raw bytes to numpy and back, exactly or not at all."""

import math
import struct
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidRequestError

Array = NDArray[Any]
Shape = tuple[int, ...]

# BF16 is held as its bits, since numpy has no such type.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
WITHOUT_JSON: Final = frozenset({"FP16", "BF16"})

_NUMBERS: Final = frozenset({int, float})
_ELEMENTS: Final[dict[str, frozenset[type]]] = {
    **dict.fromkeys(DTYPES, frozenset({int})),
    **dict.fromkeys(FLOATS, _NUMBERS),
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
}
_KINDS: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def numbers(array: Array, datatype: str) -> Array:
    """Return ``array`` as numbers to compute with: where it holds the bits of BF16, the FP32 numbers that they stand for."""
    return (array.astype(np.uint32) << 16).view(np.float32) if datatype == "BF16" else array


def kind(value: Any) -> str:
    """Return what a JSON value is, with its article."""
    return _KINDS[type(value)]


def from_json(data: Any, datatype: str, shape: Shape, *, name: str) -> Array:
    """Return the JSON array ``data``, flat or nested as ``shape``, as an array of ``shape``.

    Raises:
        InvalidRequestError: the count, the nesting, the kind or the size of an element is not that of ``datatype`` and ``shape``.
    """
    if datatype in WITHOUT_JSON:
        raise InvalidRequestError(f"input {name!r}: {datatype} has no JSON form; use binary data")
    flat = _flatten(data, shape, name)
    wrong = set(map(type, flat)) - _ELEMENTS[datatype]
    if wrong:
        expected = "a number" if datatype in FLOATS else _KINDS[next(iter(_ELEMENTS[datatype]))]
        raise InvalidRequestError(f"input {name!r}: every element of {datatype} data is {expected}, not {_KINDS[wrong.pop()]}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=DTYPES[datatype]).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise InvalidRequestError(f"input {name!r}: an element lies outside the range of {datatype}") from None


def _flatten(data: Any, shape: Shape, name: str) -> list[Any]:
    if type(data) is not list:
        raise InvalidRequestError(f"input {name!r}: expected data to be an array, got {kind(data)}")
    count = math.prod(shape)
    if not (data and type(data[0]) is list):
        if len(data) != count:
            raise InvalidRequestError(f"input {name!r}: shape {list(shape)} holds {count} elements, data has {len(data)}")
        return data
    level: list[Any] = [data]
    for length in shape:
        for part in level:
            if type(part) is not list or len(part) != length:
                got = f"one of {len(part)}" if type(part) is list else kind(part)
                raise InvalidRequestError(f"input {name!r}: data nested as shape {list(shape)} has an array of {length} where {got} is")
        level = list(chain.from_iterable(level))
    return level


def from_bytes(raw: memoryview, datatype: str, shape: Shape, *, name: str) -> Array:
    """Return little-endian row-major bytes as an array of ``shape``, without a copy where there are no strings.

    Raises:
        InvalidRequestError: the size is not that of ``shape``, or the bytes are no values of ``datatype``.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return np.array(_strings(raw, count, name), dtype=object).reshape(shape)
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidRequestError(
            f"input {name!r}: shape {list(shape)} of {datatype} takes {count * dtype.itemsize} bytes, binary data has {len(raw)}"
        )
    if datatype == "BOOL" and count and np.frombuffer(raw, np.uint8).max() > 1:
        raise InvalidRequestError(f"input {name!r}: every byte of BOOL data is 0 or 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def _strings(raw: memoryview, count: int, name: str) -> list[str]:
    strings: list[str] = []
    at = 0
    while at < len(raw):
        end = at + 4
        if end <= len(raw):
            end += int(struct.unpack_from("<I", raw, at)[0])
        if end > len(raw) or end < at + 4:
            raise InvalidRequestError(f"input {name!r}: an element of BYTES data is cut short")
        try:
            strings.append(str(raw[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidRequestError(f"input {name!r}: element {len(strings)} of BYTES data is not UTF-8") from None
        at = end
    if len(strings) != count:
        raise InvalidRequestError(f"input {name!r}: the shape holds {count} elements, binary data has {len(strings)}")
    return strings


def to_bytes(array: Array, datatype: str) -> bytes:
    """Return ``array`` as the protocol's little-endian row-major bytes."""
    if datatype != "BYTES":
        return array.astype(DTYPES[datatype], copy=False).tobytes()
    encoded = [str(text).encode() for text in array.ravel()]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))


def to_json(array: Array, datatype: str, *, name: str) -> Array | list[str]:
    """Return ``array`` flat, as orjson writes it: shortest digits that read back to the same bits.

    Raises:
        InvalidRequestError: JSON cannot say it.
    """
    if datatype in WITHOUT_JSON:
        raise InvalidRequestError(f"output {name!r}: {datatype} has no JSON form; ask for binary data")
    if datatype == "BYTES":
        return [str(text) for text in array.ravel()]
    if datatype in FLOATS and not np.isfinite(array).all():
        raise InvalidRequestError(f"output {name!r} has NaN or infinite values, which JSON cannot say; ask for binary data")
    return np.ascontiguousarray(array).ravel()
