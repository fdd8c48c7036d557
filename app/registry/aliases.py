"""Names for versions that callers can follow, as in `digits@stable`; each points at one version, and keeps it from being deleted."""

import re
import time
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from app.db import aliases
from app.errors import InvalidRequestError, NotFoundError
from app.registry import live

# Never a number, so that nobody takes one for a version.
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


def everywhere(connection: Connection) -> dict[str, dict[str, str]]:
    """Return the version of every alias by model."""
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute(select(aliases).order_by(aliases.c.model, aliases.c.alias)):
        found.setdefault(row.model, {})[row.alias] = str(row.version)
    return found


def names_of(connection: Connection, model: str, version: int) -> list[str]:
    """Return the aliases that point at a version."""
    query = select(aliases.c.alias).where(aliases.c.model == model, aliases.c.version == version).order_by(aliases.c.alias)
    return list(connection.scalars(query))


def point(connection: Connection, model: str, alias: str, version: str, *, who: str) -> str | None:
    """Point ``model@alias`` at ``version`` and return the version that it pointed at before; see ``Registry.set_alias``."""
    if not ALIAS.fullmatch(alias):
        raise InvalidRequestError(
            f"{alias[:80]!r} is no alias: up to 64 letters, digits, '.', '_' and '-', the first a letter", param="alias"
        )
    row = live.find(connection, model, version)
    before = _find(connection, model, alias)
    values = {"version": row.version, "at": int(time.time()), "who": who}
    if before is None:
        connection.execute(insert(aliases).values(model=model, alias=alias, **values))
        return None
    connection.execute(update(aliases).where(aliases.c.model == model, aliases.c.alias == alias).values(values))
    return str(before.version)


def remove(connection: Connection, model: str, alias: str) -> str:
    """Forget ``model@alias`` and return the version that it pointed at; see ``Registry.remove_alias``."""
    version = version_of(connection, model, alias)
    connection.execute(delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
    return version


def version_of(connection: Connection, model: str, alias: str) -> str:
    """Return the version that ``model@alias`` points at, or raise NotFoundError."""
    live.known(connection, model)
    row = _find(connection, model, alias)
    if row is None:
        raise NotFoundError(f"model {model!r} has no alias {alias[:80]!r}")
    return str(row.version)


def resolve(connection: Connection, name: str) -> tuple[str, str | None]:
    """Return the model and version that ``name`` means; see ``Contents.resolve``."""
    model, at, alias = name.partition("@")
    if at:
        return model, version_of(connection, model, alias)
    model, colon, version = name.partition(":")
    if colon:
        return model, str(live.find(connection, model, version).version)
    return model, live.text(live.known(connection, model).live)


def _find(connection: Connection, model: str, alias: str) -> Row[Any] | None:
    return connection.execute(select(aliases).where(aliases.c.model == model, aliases.c.alias == alias)).first()
