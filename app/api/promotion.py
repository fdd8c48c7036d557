"""Changes of what is live, one act per model at a time: the pointer in the database and what every process serves move together.

An act is answered once all processes of this service have done it; one that cannot is logged, and follows the database.
"""

import asyncio
from collections import defaultdict
from typing import Any

from app.errors import ConflictError
from app.inference.catalog import Catalog
from app.registry.registry import Registry
from app.siblings import Siblings


class Promotion:
    """Promotes, rolls back and deletes versions, loads and unloads models."""

    def __init__(self, registry: Registry, catalog: Catalog, siblings: Siblings) -> None:
        self._registry = registry
        self._catalog = catalog
        self._siblings = siblings
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def problems(self) -> dict[str, str]:
        """Return, by model, why the version that answers here is not the live one."""
        return self._catalog.problems()

    def devices(self) -> dict[str, str]:
        """Return, by model, where what answers here really runs."""
        return self._catalog.devices()

    async def promote(self, name: str, version: str, *, who: str, why: str = "asked for", key: str | None = None) -> dict[str, Any]:
        """Make a version live; it is loaded beside the old one, so no request fails."""
        async with self._turns[name]:
            await self._catalog.prepare(name, version)
            previous = await asyncio.to_thread(self._registry.promote, name, version, why=why, who=who, key=key)
            await self.catch_up(name)
        return {"name": name, "live_version": version, "previous_version": previous}

    async def rollback(self, name: str, *, who: str, key: str | None = None) -> dict[str, Any]:
        """Make the version live that was so before; under an idempotency key once."""
        async with self._turns[name]:
            known = await asyncio.to_thread(self._registry.rolled_back, name, key)
            if known is not None:
                return {"name": name, "live_version": known[0], "previous_version": known[1]}
            target = await asyncio.to_thread(self._registry.previous, name)
            await self._catalog.prepare(name, target)
            version, previous = await asyncio.to_thread(self._registry.rollback, name, who=who, expected=target, key=key)
            await self.catch_up(name)
        return {"name": name, "live_version": version, "previous_version": previous}

    async def load(self, name: str) -> None:
        """Read the promoted version of a model again."""
        await self._catalog.reload(name)
        await self._siblings.others("reload", model=name)

    async def unload(self, name: str) -> None:
        """Serve a model no more until it is loaded or a version of it is promoted."""
        await self._catalog.unload(name)
        await self._siblings.others("unload", model=name)

    async def delete(self, name: str, version: str) -> dict[str, Any]:
        """Remove a version that is neither live nor the parent of another."""
        async with self._turns[name]:
            if self._catalog.live_version(name) == version:
                raise ConflictError(f"{name}:{version} is live: promote another version first")
            await asyncio.to_thread(self._registry.delete, name, version)
            await self._catalog.forget(name, version)
            await self._siblings.others("forget", model=name, version=version)
        return {"name": name, "version": version, "deleted": True}

    async def name(self, name: str, alias: str, version: str, *, who: str) -> dict[str, Any]:
        """Point an alias at a version, which is loaded first, so no request waits or fails."""
        await self._catalog.prepare(name, version)
        previous = await asyncio.to_thread(self._registry.set_alias, name, alias, version, who=who)
        await self._follow_aliases()
        return {"name": name, "alias": alias, "version": version, "previous_version": previous}

    async def unname(self, name: str, alias: str) -> dict[str, Any]:
        """Forget an alias."""
        version = await asyncio.to_thread(self._registry.remove_alias, name, alias)
        await self._follow_aliases()
        return {"name": name, "alias": alias, "version": version, "deleted": True}

    async def _follow_aliases(self) -> None:
        await self._catalog.aliases.follow()
        await self._siblings.others("follow_aliases")

    async def catch_up(self, name: str) -> None:
        """Have every process serve what the database says is live. It is read again: another may have promoted meanwhile."""
        await self._catalog.catch_up(name)
        await self._siblings.others("catch_up", model=name)
