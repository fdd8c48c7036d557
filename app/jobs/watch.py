"""The events of jobs as they happen, for any number of readers: one query per tick, whoever reads what."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from app.errors import SpecnormError
from app.jobs.store import Jobs

TICK_SECONDS = 0.25
SILENT_SECONDS = 15.0
MAX_BEHIND = 1000
"""Batches that may wait for a reader; one that is further behind is sent away, and may come back with the last id that it saw."""

log = logging.getLogger(__name__)


class News(NamedTuple):
    """Events of one job, oldest first, and whether it has ended so that no more will come."""

    events: list[dict[str, Any]]
    ended: bool


class _Reader:
    """Somebody who follows a job; ``seen`` is the number of the last event that was looked at for them."""

    def __init__(self, job: str, seen: int) -> None:
        self.job = job
        self.seen = seen
        self.inbox: asyncio.Queue[News] = asyncio.Queue()


class Watch:
    """Looks for new events while somebody follows a job, and only then."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._readers: set[_Reader] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Send everybody away: the service is to end, and whoever follows may go on where it starts again."""
        self._closed = True
        for reader in self._readers:
            reader.inbox.put_nowait(News([], ended=False))
        self._readers.clear()

    async def begin(self, job: str, after: str | None) -> tuple[int, News]:
        """Return what there is after the event ``after``, and the number to :meth:`follow` from.

        Raises:
            NotFoundError: there is no such job.
            InvalidRequestError: the job has no event ``after``.
        """
        number = await asyncio.to_thread(self._jobs.number_of, job, after)
        found, ended = await asyncio.to_thread(self._jobs.events_since, job, number)
        return max([number, *(seen for seen, _ in found)]), News([event for _, event in found], ended)

    async def follow(self, job: str, number: int) -> AsyncGenerator[News, None]:
        """Yield what happens after the event of that number, until the job has ended; empty news after a silence."""
        if self._closed:
            return
        reader = _Reader(job, number)
        self._readers.add(reader)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        try:
            while reader in self._readers or not reader.inbox.empty():
                try:
                    async with asyncio.timeout(SILENT_SECONDS):
                        news = await reader.inbox.get()
                except TimeoutError:
                    news = News([], ended=False)
                yield news
                if news.ended:
                    return
        finally:
            self._readers.discard(reader)

    async def _tick(self) -> None:
        while self._readers:
            try:
                await self._look()
            except SpecnormError:
                log.warning("events cannot be read at the moment", exc_info=True)
            await asyncio.sleep(TICK_SECONDS)

    async def _look(self) -> None:
        readers = set(self._readers)  # who comes meanwhile waits for the next look
        since = min(reader.seen for reader in readers)
        found = await asyncio.to_thread(self._jobs.news, {reader.job for reader in readers}, since)
        # Numbers become visible in their order, so below the highest one there is nothing that was not seen.
        latest = max([since, *(number for events, _ in found.values() for number, _ in events)])
        for reader in readers:
            events, ended = found.get(reader.job, ([], True))
            fresh = [event for number, event in events if number > reader.seen]
            reader.seen = max(reader.seen, latest)
            if fresh or ended:
                reader.inbox.put_nowait(News(fresh, ended))
            if ended or reader.inbox.qsize() > MAX_BEHIND:
                self._readers.discard(reader)
