"""Loading of versions: each once however many ask, and what came of it."""

import asyncio
from collections.abc import Callable

from app.errors import CorruptError, UnavailableError
from app.inference.served import Served
from app.inference.source import Source
from app.inference.statistics import Statistics
from app.settings import Settings

Key = tuple[str, str]


class Loads:
    """Loads the versions of a catalog; for one event loop.

    Attributes:
        failures: why a version could not be loaded.
        statistics: of every version that was ever loaded.
    """

    def __init__(self, source: Source, settings: Settings, loaded: Callable[[Served], None]) -> None:
        """Args: ``loaded`` takes what was loaded, before those that asked for it go on."""
        self._source = source
        self._settings = settings
        self._loaded = loaded
        self._tasks: dict[Key, asyncio.Task[Served]] = {}
        self.failures: dict[Key, str] = {}
        self.statistics: dict[Key, Statistics] = {}

    def under_way(self, model: str, version: str) -> bool:
        """Return whether a version is being loaded."""
        return (model, version) in self._tasks

    async def finished(self, model: str, version: str) -> None:
        """Wait until a version is not being loaded any more, whatever came of it."""
        task = self._tasks.get((model, version))
        if task is not None:
            await asyncio.wait([task])

    async def load(self, model: str, version: str) -> Served:
        """Load a version; the load goes on when one that asked for it is cancelled.

        Raises:
            NotFoundError: there is no such version.
            CorruptError: it cannot be served, or could not be before.
            UnavailableError: the device that the settings demand is not had.
        """
        key = (model, version)
        if key in self.failures:
            raise CorruptError(self.failures[key])
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(asyncio.to_thread(self._build, model, version))
            task.add_done_callback(lambda done: self._settle(key, done))
        return await asyncio.shield(task)

    def forget(self, model: str, version: str) -> None:
        """Know nothing of a version any more."""
        self.failures.pop((model, version), None)
        self.statistics.pop((model, version), None)

    def _settle(self, key: Key, done: asyncio.Task[Served]) -> None:
        self._tasks.pop(key, None)
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self.statistics[key] = done.result().statistics
            self._loaded(done.result())
        elif isinstance(error, CorruptError | UnavailableError):
            self.failures[key] = str(error)

    def _build(self, model: str, version: str) -> Served:
        artifact = self._source.artifact(model, version)
        statistics = self.statistics.get((model, version)) or Statistics(model_bytes=len(artifact.model))
        return Served(model, version, artifact, self._settings, statistics)
