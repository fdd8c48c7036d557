"""Which versions are kept: the newest ones, for so long, and whatever somebody depends on, for ever."""

import time
from typing import NamedTuple

from sqlalchemy import Connection, select

from app.db import reading, versions
from app.errors import ConflictError, NotFoundError
from app.registry import live
from app.registry.registry import Registry


class Retention(NamedTuple):
    """How many versions of a model are kept, and how many seconds; 0 sets no limit.

    A version goes when it is past either limit and nothing depends on it: not what is live, nor what a rollback would
    go back to, nor one with an alias, nor the parent of a version or of a job that has not ended.
    """

    versions: int = 0
    seconds: float = 0.0

    def apply(self, registry: Registry, *, now: float | None = None) -> list[tuple[str, str]]:
        """Delete what is past the limits, and return each as model and version."""
        if not self.versions and not self.seconds:
            return []
        now = time.time() if now is None else now
        gone = []
        for model in registry.models():
            for version in self._past(registry, model, now):
                try:
                    registry.delete(model, version, unless=_rollback_target)
                except (ConflictError, NotFoundError):
                    continue
                gone.append((model, version))
        return gone

    def _past(self, registry: Registry, model: str, now: float) -> list[str]:
        """Return the versions past a limit, the newest first: a chain of parents goes from its end."""
        query = select(versions.c.version, versions.c.created).where(versions.c.model == model).order_by(versions.c.version.desc())
        with reading(registry.database) as connection:
            rows = connection.execute(query).all()
        return [
            str(row.version)
            for rank, row in enumerate(rows)
            if (self.versions and rank >= self.versions) or (self.seconds and now - row.created > self.seconds)
        ]


def _rollback_target(connection: Connection, model: str, version: str) -> None:
    """Raise ConflictError where a rollback would make ``version`` live."""
    try:
        target = live.previous(connection, model)
    except ConflictError:
        return
    if target == version:
        raise ConflictError(f"{model}:{version} is what a rollback would make live")
