"""Changes of what is live, one act per model at a time: the pointer in the database and what this process serves move together."""

import asyncio
from collections import defaultdict
from typing import Any

from app.errors import ConflictError
from app.inference.catalog import Catalog
from app.registry.registry import Registry


class Promotion:
    """Promotes, rolls back and deletes versions."""

    def __init__(self, registry: Registry, catalog: Catalog) -> None:
        self._registry = registry
        self._catalog = catalog
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def promote(self, name: str, version: str, *, who: str, why: str = "asked for") -> dict[str, Any]:
        """Make a version live; it is loaded beside the old one, so no request fails."""
        async with self._turns[name]:
            await self._catalog.prepare(name, version)
            previous = await asyncio.to_thread(self._registry.promote, name, version, why=why, who=who)
            await self._catalog.go_live(name, version)
        return {"name": name, "live_version": version, "previous_version": previous}

    async def rollback(self, name: str, *, who: str) -> dict[str, Any]:
        """Make the version live that was so before."""
        async with self._turns[name]:
            target = await asyncio.to_thread(self._registry.previous, name)
            await self._catalog.prepare(name, target)
            version, previous = await asyncio.to_thread(self._registry.rollback, name, who=who, expected=target)
            await self._catalog.go_live(name, version)
        return {"name": name, "live_version": version, "previous_version": previous}

    async def delete(self, name: str, version: str) -> dict[str, Any]:
        """Remove a version that is neither live nor the parent of another."""
        async with self._turns[name]:
            if self._catalog.live_version(name) == version:
                raise ConflictError(f"{name}:{version} is live: promote another version first")
            await asyncio.to_thread(self._registry.delete, name, version)
            await self._catalog.forget(name, version)
        return {"name": name, "version": version, "deleted": True}
