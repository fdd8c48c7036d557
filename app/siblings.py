"""The other processes of the same service, as one of them sees them: through a line to the parent of all, who passes things on."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from app.errors import UnavailableError
from app.link import Answer, Link
from app.totals import Tree

OTHERS_SECONDS: Final = 10.0
TOTALS_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class Siblings:
    """What one process has to do with the others; without a line it is the only one.

    Args:
        end: this end of the line to the parent.
        lost: called when the parent has gone: this process has to end too.
    """

    def __init__(self, end: socket.socket | None = None, lost: Callable[[], None] = lambda: None) -> None:
        self._end = end
        self._lost = lost
        self._link: Link | None = None
        self._own: Callable[[], Awaitable[Tree]] | None = None

    @asynccontextmanager
    async def joined(self, own: Callable[[], Awaitable[Tree]], answers: Mapping[str, Answer]) -> AsyncIterator[None]:
        """Be one of them meanwhile.

        Args:
            own: the numbers of this process.
            answers: what this process does when another asks.
        """
        self._own = own
        if self._end is None:
            yield
            return
        self._link = await Link.over(self._end, {"totals": own, **answers})
        listening = asyncio.create_task(self._listen(self._link))
        try:
            await self._link.ask("here", OTHERS_SECONDS)
            yield
        finally:
            listening.cancel()
            self._link = None

    async def serving(self) -> None:
        """Tell the parent that requests are taken."""
        if self._link is not None:
            await self._link.ask("serving", OTHERS_SECONDS)

    async def totals(self) -> Tree:
        """Return the numbers of the whole service, those of processes that have ended among them."""
        if self._link is not None:
            tree: Tree = await self._link.ask("totals", TOTALS_SECONDS)
            return tree
        if self._own is None:
            raise UnavailableError("The service is starting, or has ended.")
        return await self._own()

    async def others(self, what: str, **words: Any) -> list[Any]:
        """Have all others do something, and return what they answer; one that cannot is logged, and finds its own way."""
        if self._link is None:
            return []
        try:
            told = await self._link.ask("others", OTHERS_SECONDS + 1, what=what, words=words)
        except UnavailableError as error:
            told = {"answers": [], "errors": [str(error)]}
        for sentence in told["errors"]:
            log.warning("%s %s: %s", what, words, sentence)
        answers: list[Any] = told["answers"]
        return answers

    async def _listen(self, link: Link) -> None:
        await link.listen()
        self._lost()
