"""The parameters of a repository load: a configuration, and the files of a model in base64."""

import base64
import binascii
import re
from typing import Any, Final

import orjson

from app.errors import InvalidRequestError
from app.inference.describe import BACKEND, PLATFORM
from export.bundle import MODEL

_FILE: Final = re.compile(rf"file:[0-9]{{1,9}}/{re.escape(MODEL)}")


def model_file(parameters: Any) -> bytes | None:
    """Return the ONNX file that the parameters of a load hold, None where the load is of what is there already.

    A configuration is read and, since what is served follows from the model itself, must not say otherwise.

    Raises:
        InvalidRequestError: something else is asked for.
    """
    if type(parameters) is not dict:
        raise InvalidRequestError("expected parameters to be an object")
    files = {name: value for name, value in parameters.items() if name.startswith("file:")}
    unknown = sorted(parameters.keys() - files.keys() - {"config"})
    if unknown:
        raise InvalidRequestError(f"unknown parameter {unknown[0][:64]!r}: a load takes config and files")
    if "config" in parameters:
        _check_config(parameters["config"])
    if not files:
        return None
    name, value = next(iter(files.items()))
    if len(files) > 1 or not _FILE.fullmatch(name):
        raise InvalidRequestError(f"a load takes one file, named file:<version>/{MODEL}")
    if type(value) is bytes and value:
        return value  # as gRPC has it
    try:
        content = base64.b64decode(value, validate=True) if type(value) is str else b""
    except (binascii.Error, ValueError):
        content = b""
    if not content:
        raise InvalidRequestError(f"expected file:<version>/{MODEL} to be base64 of a file that is not empty")
    return content


def _check_config(text: Any) -> None:
    try:
        config = orjson.loads(text) if type(text) is str else None
    except orjson.JSONDecodeError:
        config = None
    if type(config) is not dict:
        raise InvalidRequestError("expected config to be a JSON object as a string")
    for name, own in (("platform", PLATFORM), ("backend", BACKEND)):
        if config.get(name, own) not in (own, ""):
            raise InvalidRequestError(f"the {name} of every model here is {own}")
