"""Idempotency keys: the same request under the same key makes one thing, however often it is sent."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, insert, select

from app.db import idempotency
from app.errors import ConflictError, InvalidRequestError


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
    if not 0 < len(key) <= 255:
        raise InvalidRequestError("an Idempotency-Key has 1 to 255 characters")
    fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    known = connection.execute(select(idempotency).where(idempotency.c.scope == scope, idempotency.c.key == key)).first()
    if known is not None:
        if known.fingerprint != fingerprint:
            raise ConflictError("this Idempotency-Key was used for another request: take a new key")
        return str(known.resource)
    name = make()
    connection.execute(insert(idempotency).values(scope=scope, key=key, fingerprint=fingerprint, resource=name))
    return name
