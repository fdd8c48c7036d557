"""Which version of a model is live, and how it came to be: one pointer and its history, moved within a transaction."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from app.db import history, models, versions
from app.errors import ConflictError, NotFoundError


def known(connection: Connection, model: str) -> Row[Any]:
    """Return the row of a model, or raise NotFoundError."""
    row = connection.execute(select(models).where(models.c.name == model)).first()
    if row is None:
        raise NotFoundError(f"there is no model {model[:80]!r}")
    return row


def find(connection: Connection, model: str, version: str) -> Row[Any]:
    """Return the row of a version, or raise NotFoundError."""
    known(connection, model)
    row = None
    if version.isascii() and version.isdecimal() and len(version) < 10 and not version.startswith("0"):
        row = connection.execute(select(versions).where(versions.c.model == model, versions.c.version == int(version))).first()
    if row is None:
        raise NotFoundError(f"model {model!r} has no version {version[:80]!r}")
    return row


def text(version: int | None) -> str | None:
    """Return a version number as callers know it."""
    return None if version is None else str(version)


def promote(connection: Connection, model: str, version: str, *, why: str, who: str) -> str | None:
    """Make ``version`` live within a transaction of the caller's; see ``Registry.promote``."""
    row = find(connection, model, version)
    live = text(known(connection, model).live)
    if live != str(row.version):
        move(connection, model, version, what="promote", why=why, who=who)
    return live


def previous(connection: Connection, model: str) -> str:
    """Return the version that was live before, or raise ConflictError; see ``Registry.rollback``."""
    live = text(known(connection, model).live)
    steps = [(row.what, str(row.after)) for row in moves(connection, model)]
    kept = {str(version) for version in connection.scalars(select(versions.c.version).where(versions.c.model == model))}
    for version in undo(steps):
        if version in kept and version != live:
            return version
    raise ConflictError(f"model {model!r} has no version that was live before")


def moves(connection: Connection, model: str, *, after: int = 0, limit: int | None = None) -> Sequence[Row[Any]]:
    """Return the rows of the history of a model, oldest first: up to ``limit`` of those numbered above ``after``."""
    query = select(history).where(history.c.model == model, history.c.number > after)
    return connection.execute(query.order_by(history.c.number).limit(limit)).all()


def undo(steps: Sequence[tuple[str, str]]) -> list[str]:
    """Return the versions that one could go back to, the last one first, after ``steps`` of (what, version).

    >>> undo([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2")])
    ['1']
    """
    stack: list[str] = []
    for what, version in steps:
        if what == "rollback":
            while stack and stack[-1] != version:
                stack.pop()
        else:
            stack.append(version)
    return stack[-2::-1]


def move(connection: Connection, model: str, version: str, *, what: str, why: str, who: str) -> None:
    """Point ``model`` at ``version`` and add the line to its history."""
    before = known(connection, model).live
    connection.execute(update(models).where(models.c.name == model).values(live=int(version)))
    last = connection.scalar(select(func.max(history.c.at)).where(history.c.model == model))
    at = max(int(time.time()), last or 0)  # the clock may have been set back
    row = {"model": model, "at": at, "what": what, "who": who, "why": why, "before": before, "after": int(version)}
    connection.execute(insert(history).values(row))
