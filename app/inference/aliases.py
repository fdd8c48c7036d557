"""Names for versions, as in `digits@stable`: held in memory, so that asking by one costs no query, and moved in one step."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from app.errors import InvalidRequestError, NotFoundError, SpecnormError

Named = Mapping[str, Mapping[str, str]]

log = logging.getLogger(__name__)


class Aliases:
    """What every alias points at.

    Args:
        read: returns the version of every alias by model; blocks, and is called on a thread.
        prepare: loads a version.
    """

    def __init__(self, read: Callable[[], Named], prepare: Callable[[str, str], Awaitable[object]]) -> None:
        self._read = read
        self._prepare = prepare
        self._known: Named = {}
        self._turn = asyncio.Lock()

    def of(self, model: str, version: str) -> list[str]:
        """Return the aliases of a version."""
        return [alias for alias, other in self._known.get(model, {}).items() if other == version]

    async def resolve(self, name: str, version: str | None) -> tuple[str, str]:
        """Return the model and the version that ``model@alias`` means.

        Raises:
            NotFoundError: there is no such alias.
            InvalidRequestError: a version is named beside it.
        """
        model, _, alias = name.partition("@")
        if version is not None:
            raise InvalidRequestError(f"{name[:160]!r} means a version already: leave /versions/{version[:20]} out")
        if alias not in self._known.get(model, {}):
            await self.follow()  # it may be newer than the last look
        found = self._known.get(model, {}).get(alias)
        if found is None:
            raise NotFoundError(f"There is no alias {alias[:80]!r} of a model {model[:80]!r}.")
        return model, found

    async def follow(self, *, prepared: bool = True) -> None:
        """Move every alias to where it points by now; where it points is loaded first, so no request waits for that."""
        async with self._turn:
            found = await asyncio.to_thread(self._read)
            moved = [(model, *move) for model, named in found.items() for move in named.items() - self._known.get(model, {}).items()]
            for model, alias, version in moved if prepared else ():
                try:
                    await self._prepare(model, version)
                except SpecnormError as error:
                    log.error("%s@%s is version %s, which cannot be served: %s", model, alias, version, error)
            self._known = found
