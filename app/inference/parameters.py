"""The protocol's parameters: scalars under names that anyone may add to, of which a few mean something here."""

from typing import Any, Final

from app.errors import InvalidRequestError
from app.inference.tensors import kind
from export.bundle import Tensor

_SCALARS: Final = frozenset({str, int, float, bool})


def quote(value: Any) -> str:
    """Return a value for a message: short, and never what another tensor's data may hold."""
    return repr(value if len(value) <= 64 else f"{value[:64]}…") if type(value) is str else kind(value)


def _show(value: Any) -> str:
    """Return a scalar with its kind, for a message."""
    return f"{kind(value)}, {str(value)[:64]}"


def read_parameters(entry: dict[str, Any], owner: str) -> dict[str, Any]:
    """Return the parameters of ``entry``, none where it has none; ``owner`` is what an error calls it.

    Raises:
        InvalidRequestError: one is no scalar, or asks for shared memory.
    """
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidRequestError(f"{owner}: expected parameters to be an object, got {kind(parameters)}")
    for name, value in parameters.items():
        if type(value) not in _SCALARS:
            raise InvalidRequestError(f"{owner}: expected parameter {quote(name)} to be a string, number or boolean, got {kind(value)}")
        if name.startswith("shared_memory_"):
            raise InvalidRequestError(f"{owner}: shared memory is not served; send the data")
    return parameters


def flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    """Return a parameter that is a boolean; InvalidRequestError where it is something else."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidRequestError(f"expected parameter {name} to be a boolean, got {kind(value)}")
    return value


def classes(parameters: dict[str, Any], tensor: Tensor) -> int:
    """Return how many classes an output is to be cut down to, 0 for the plain output; InvalidRequestError where that has no sense."""
    value = parameters.get("classification", 0)
    if type(value) is not int or value < 0:
        raise InvalidRequestError(f"output {tensor.name!r}: expected classification to be a count of classes, got {_show(value)}")
    if value and tensor.datatype in {"BOOL", "BYTES"}:
        raise InvalidRequestError(f"output {tensor.name!r}: classification is for outputs of numbers, not {tensor.datatype}")
    return value


def timeout(parameters: dict[str, Any]) -> float | None:
    """Return the caller's limit in seconds; 0 leaves it to the server."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise InvalidRequestError(f"expected parameter timeout to be a count of microseconds, got {_show(value)}")
    return value / 1e6 if value else None


def binary_size(entry: dict[str, Any], parameters: dict[str, Any], name: str, raw: memoryview | None) -> int | None:
    """Return the size of an input's binary data, None where its data is JSON.

    Raises:
        InvalidRequestError: it is no size, there is JSON data as well, or the body has no binary part (``raw`` is None).
    """
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InvalidRequestError(f"input {name!r}: expected binary_data_size to be a count of bytes, got {_show(size)}")
    if entry.get("data") is not None:
        raise InvalidRequestError(f"input {name!r} has both data and binary_data_size; send one")
    if raw is None:
        raise InvalidRequestError(f"input {name!r} has binary_data_size, but the header Inference-Header-Content-Length is missing")
    return size
