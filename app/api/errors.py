"""Exception → status and body: the one table, and the two shapes a body has.

Under ``/v1`` an error is OpenAI's object, everywhere else the Open Inference Protocol's ``{"error": "text"}``. The
content type is exactly ``application/json``, since stock clients drop the message of anything else.
"""

import errno
import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import (
    ConflictError,
    CorruptError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    QuotaError,
    SpecnormError,
    StorageFullError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedMediaError,
)

STATUS: dict[type[SpecnormError], int] = {
    SpecnormError: 500,
    InvalidRequestError: 400,
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    UnsupportedMediaError: 415,
    QueueFullError: 429,
    UnavailableError: 503,
    CorruptError: 503,
    StorageFullError: 507,
    QuotaError: 507,
}

HEADERS: dict[int, dict[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    415: {"Accept-Encoding": "gzip, deflate"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
    507: {"Retry-After": "60"},
}

OPENAI_TYPES: dict[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

BUG = "The server made a mistake; its log has the details under this request's x-request-id."

_FULL = {errno.ENOSPC, errno.EDQUOT}

log = logging.getLogger("app.api")


def status_of(error: SpecnormError, path: str = "") -> int:
    """Return the HTTP status of ``error``, that of its nearest listed class.

    Under ``/v1`` a conflict is 400: the stock OpenAI client would send a 409 again.
    """
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return 400 if status == 409 and is_openai(path) else status


def is_openai(path: str) -> bool:
    """Return whether errors of ``path`` have OpenAI's shape."""
    return path == "/v1" or path.startswith("/v1/")


def body(path: str, status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error in the shape that clients of ``path`` read."""
    if not is_openai(path):
        return {"error": message}
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(
    path: str,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response for an error; one that may be tried again later says when."""
    # ASCII escapes: a message may echo a lone surrogate, which UTF-8 cannot carry.
    content = json.dumps(body(path, status, message, param=param, code=code)).encode("ascii")
    return Response(content, status, headers={**HEADERS.get(status, {}), **(headers or {})}, media_type="application/json")


def response_of(error: Exception, path: str) -> Response:
    """Return the response for any exception; one that nobody foresaw is logged and answered with a fixed sentence."""
    cause = error.__cause__ if isinstance(error, HTTPException) else error  # what FastAPI met while it read a form
    if isinstance(cause, OSError) and cause.errno in _FULL:
        error = StorageFullError()
    if isinstance(error, SpecnormError):
        return respond(path, status_of(error, path), str(error), param=error.param, code=error.code)
    if isinstance(error, HTTPException):
        return _of_http(error, path)
    if isinstance(error, RequestValidationError):
        message, param = sentence(error)
        return respond(path, 400, message, param=param, code=InvalidRequestError.code)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return respond(path, 500, BUG, code=SpecnormError.code)


def _of_http(error: HTTPException, path: str) -> Response:
    """Keep status and headers (``Allow``) of what the framework itself refuses."""
    message = str(error.detail)
    if message == HTTPStatus(error.status_code).phrase:
        message = {404: "There is no such route.", 405: "This route does not take that method."}.get(error.status_code, f"{message}.")
    code = {404: NotFoundError.code, 405: "method_not_allowed"}.get(error.status_code, InvalidRequestError.code)
    return respond(path, error.status_code, message, code=code, headers=error.headers)


def sentence(error: RequestValidationError) -> tuple[str, str | None]:
    """Return what is wrong with a request as one sentence without its values, and the parameter it is about."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"][1:] if not str(part).startswith("function-"))
    if problem["type"] == "json_invalid":
        return "The body is not valid JSON.", None
    if type(error.body) is bytes and error.body:  # it was not read
        return "The body is read where its Content-Type is application/json.", None
    reason = str(problem["msg"]).removeprefix("Value error, ")
    return (f"{where}: {reason}" if where else reason), where or None


def install(api: FastAPI) -> None:
    """Give ``api`` one handler for each kind of exception, all with the same bodies."""

    async def answer(request: Request, error: Exception) -> Response:
        return response_of(error, request.url.path)

    for kind in (SpecnormError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, answer)
