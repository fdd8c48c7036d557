"""Between messages and the objects that the core knows, which are those of the protocol's HTTP side."""

from collections.abc import Mapping
from typing import Any, Final

from app.api.grpc.messages import CLASSES
from app.errors import InvalidRequestError

_CONTENTS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def request(message: Any) -> tuple[dict[str, Any], memoryview | None]:
    """Return the request in ``message`` as an object, and the binary data of its inputs where they come as such.

    Raises:
        InvalidRequestError: there is not one piece of binary data for each input, or there is more than one kind of data.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(f"expected raw_input_contents for each of the {len(message.inputs)} inputs, got {len(raw)}")
    inputs = []
    for at, tensor in enumerate(message.inputs):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        given = _parameters(tensor.parameters)
        if raw:
            if tensor.HasField("contents"):
                raise InvalidRequestError(f"input {tensor.name[:64]!r} has both contents and raw_input_contents; send one")
            given["binary_data_size"] = len(raw[at])
        else:
            entry["data"] = _data(tensor)
        inputs.append({**entry, "parameters": given})
    document = {
        "inputs": inputs,
        "outputs": [{"name": output.name, "parameters": _parameters(output.parameters)} for output in message.outputs],
        "parameters": {**_parameters(message.parameters), "binary_data_output": True},
        **({"id": message.id} if message.id else {}),
    }
    return document, memoryview(b"".join(raw)) if raw else None


def response(answer: Mapping[str, Any], blobs: list[bytes]) -> Any:
    """Return the message of an answer, all outputs of which are binary."""
    message = CLASSES["ModelInferResponse"](
        model_name=answer["model_name"], model_version=answer["model_version"], id=answer.get("id", ""), raw_output_contents=blobs
    )
    for name, value in answer["parameters"].items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param"}.get(type(value), "string_param")
        setattr(message.parameters[name], kind, value)
    for output in answer["outputs"]:
        message.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
    return message


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    # Every output is binary here, whatever a client says that was written for HTTP.
    return {name: getattr(given[name], kind) for name, kind in chosen.items() if kind and name != "binary_data"}


def load_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a repository request."""
    return _parameters(given)


def _data(tensor: Any) -> list[Any]:
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    expected = _CONTENTS.get(tensor.datatype)
    if expected is None:
        raise InvalidRequestError(f"input {tensor.name[:64]!r}: {tensor.datatype[:16]} has no typed contents; use raw_input_contents")
    if filled not in ([], [expected]):
        raise InvalidRequestError(f"input {tensor.name[:64]!r}: {tensor.datatype} data belongs in {expected}, got {filled}")
    values = list(getattr(tensor.contents, expected))
    try:
        return [value.decode() for value in values] if tensor.datatype == "BYTES" else values
    except UnicodeDecodeError:
        raise InvalidRequestError(f"input {tensor.name[:64]!r}: an element of BYTES data is not UTF-8") from None
