"""Idempotency keys: the same request under the same key makes one thing, however often it is sent."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select

from app.db import idempotency
from app.errors import ConflictError, InvalidRequestError

Answer = dict[str, Any]
KEPT_SECONDS = 24 * 3600.0
"""How long a key is known, at the least: whoever sends a request again does so within minutes."""


def once(connection: Connection, scope: str, key: str | None, request: Any, make: Callable[[], str]) -> str:
    """Return what ``make`` returned for this ``key`` the first time, or call it now.

    Args:
        connection: a transaction, in which ``make`` works too.
        scope: the kind of thing that is made.
        key: the client's key; without one ``make`` is always called.
        request: what is asked for, as a JSON value.
        make: makes the thing and returns its id.

    Raises:
        ConflictError: the key was used for another request.
        InvalidRequestError: the key is empty or longer than 255 characters.
    """
    if key is None:
        return make()
    known = _known(connection, scope, key, request)
    if known is not None:
        return str(known.resource)
    name = make()
    _keep(connection, scope, key, request, resource=name)
    return name


def answered(connection: Connection, scope: str, key: str | None, request: Any, act: Callable[[], Answer]) -> Answer:
    """Return the answer of the first time, or ``act`` now; like :func:`once`, for what changes a thing and makes none."""
    known = recall(connection, scope, key, request)
    if known is not None:
        return known
    answer = act()
    if key is not None:
        _keep(connection, scope, key, request, resource="", answer=answer)
    return answer


def recall(connection: Connection, scope: str, key: str | None, request: Any) -> Answer | None:
    """Return the answer that :func:`answered` gave under this key, or None."""
    known = None if key is None else _known(connection, scope, key, request)
    return None if known is None else dict(known.answer)


def forget(database: Engine, *, older_than: float = KEPT_SECONDS) -> int:
    """Forget the keys that were first used so many seconds ago, and return how many; sent again, they make another thing."""
    with database.begin() as connection:
        return connection.execute(delete(idempotency).where(idempotency.c.at <= int(time.time() - older_than))).rowcount


def _known(connection: Connection, scope: str, key: str, request: Any) -> Row[Any] | None:
    """Return what was kept; transactions that write come one after another, so nobody else is between this look and its use."""
    if not 0 < len(key) <= 255:
        raise InvalidRequestError("an Idempotency-Key has 1 to 255 characters")
    known = connection.execute(select(idempotency).where(idempotency.c.scope == scope, idempotency.c.key == key)).first()
    if known is not None and known.fingerprint != _fingerprint(request):
        raise ConflictError("this Idempotency-Key was used for another request: take a new key")
    return known


def _keep(connection: Connection, scope: str, key: str, request: Any, *, resource: str, answer: Answer | None = None) -> None:
    row = {"scope": scope, "key": key, "fingerprint": _fingerprint(request), "resource": resource, "answer": answer, "at": int(time.time())}
    connection.execute(insert(idempotency).values(row))


def _fingerprint(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
