"""What is live: for each model one loaded version that answers by default, and a few others that were asked for."""

import asyncio
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from app.errors import ConflictError, CorruptError, SpecnormError, UnavailableError
from app.inference.aliases import Aliases
from app.inference.loads import Key, Loads
from app.inference.served import Response, Served
from app.inference.source import Source, State
from app.inference.statistics import Statistics
from app.registry.artifact import Artifact
from app.settings import Settings

__all__ = ["Artifact", "Catalog", "Response", "Served", "Source", "State"]

_DRAIN_POLL: Final = 0.01

log = logging.getLogger(__name__)


class Catalog:
    """Hands out versions. All methods but the constructor run on one event loop.

    Attributes:
        on_swap: called where another version of a model goes live, or none any more.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        self._source = source
        self._settings = settings
        self._live: dict[str, Served] = {}
        self._others: OrderedDict[Key, Served] = OrderedDict()
        self._loads = Loads(source, settings, self._loaded_one)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: set[str] = set()
        self._unloaded: set[str] = set()
        self._behind: dict[str, str] = {}
        self._started = False
        self.on_swap: Callable[[], None] = lambda: None
        self.aliases = Aliases(source.aliases, self._obtain)

    @property
    def ready(self) -> bool:
        """Whether every model that has a live version answers."""
        return self._started and self._wanted <= self._live.keys()

    async def start(self) -> None:
        """Load the live version of every model, or the one before; where neither can be, the model is not ready, and the others serve."""
        for model in await asyncio.to_thread(self._source.models):
            version = await asyncio.to_thread(self._source.live, model)
            if version is None:
                continue
            self._wanted.add(model)
            if not await self._serves(model, version):
                await self._stand_in(model, version)
        await self.aliases.follow(prepared=False)
        self._started = True

    async def _serves(self, model: str, version: str) -> bool:
        """Make a version live; return whether that was possible."""
        try:
            await self.go_live(model, version)
        except SpecnormError as error:
            log.error("%s version %s is not served: %s", model, version, error)
        except Exception:  # what goes wrong with one model must not keep the others from serving
            log.exception("%s version %s is not served", model, version)
        return self.live_version(model) == version

    async def _stand_in(self, model: str, version: str) -> None:
        """Serve what was live before ``version``, which cannot be served, until that can be or another one is promoted."""
        try:
            former = await asyncio.to_thread(self._source.previous, model)
        except SpecnormError:
            return
        if await self._serves(model, former):
            self._behind[model] = version
            log.error("%s version %s is served in its place", model, former)

    def problems(self) -> dict[str, str]:
        """Return, by model, why the version that answers is not the one that was promoted."""
        told: dict[str, str] = {}
        for model, version in self._behind.items():
            reason = self._loads.failures.get((model, version), "it is being loaded").rstrip(".")
            told[model] = f"version {version} is live and cannot be served: {reason}; version {self.live_version(model)} is in its place"
        return told

    async def prepare(self, model: str, version: str) -> None:
        """Load and warm a version without making it live; one that failed before is tried anew.

        Raises:
            NotFoundError: there is no such version.
            CorruptError: it cannot be served.
            UnavailableError: the device that the settings demand is not had.
        """
        self._loads.failures.pop((model, version), None)
        await self._obtain(model, version)

    async def go_live(self, model: str, version: str) -> None:
        """Make a version the one that answers by default. The one before stays loaded, and finishes what it has.

        Promotions of one model take effect in the order of these calls. Raises what :meth:`prepare` raises.
        """
        async with self._turns[model]:
            self._loads.failures.pop((model, version), None)
            self._swap(await self._obtain(model, version))

    async def reload(self, model: str) -> None:
        """Read the promoted version of ``model`` again and make it live. Raises what :meth:`prepare` raises."""
        async with self._turns[model]:
            version = await asyncio.to_thread(self._source.live, model)
            if version is None:
                await asyncio.to_thread(self._source.versions, model)  # an unknown model is another error
                raise UnavailableError(f"No version of the model {model!r} is live: promote one.")
            self._loads.failures.pop((model, version), None)
            with self._falling_behind(model, version):
                self._swap(await self._loads.load(model, version))

    async def catch_up(self, model: str) -> None:
        """Make the promoted version live, loaded if it is not yet; like :meth:`go_live`, but of what is promoted by now."""
        async with self._turns[model]:
            version = await asyncio.to_thread(self._source.live, model)
            if version is not None and (self.live_version(model) != version or model in self._behind):
                self._loads.failures.pop((model, version), None)
                with self._falling_behind(model, version):
                    self._swap(await self._obtain(model, version))

    async def unload(self, model: str) -> None:
        """Serve ``model`` no more, until it is loaded or a version of it goes live by a call. What it has it finishes.

        Raises:
            NotFoundError: there is no such model.
        """
        async with self._turns[model]:
            await asyncio.to_thread(self._source.versions, model)
            self._unloaded.add(model)
            self._wanted.discard(model)
            self._live.pop(model, None)
            self.on_swap()
            self._behind.pop(model, None)
            for key in [key for key in self._others if key[0] == model]:
                del self._others[key]

    @property
    def unloaded(self) -> frozenset[str]:
        """The models that :meth:`unload` took out of service."""
        return frozenset(self._unloaded)

    async def forget(self, model: str, version: str) -> None:
        """Drop a version that is being deleted.

        Raises:
            ConflictError: it is live.
        """
        await self._loads.finished(model, version)
        if self.live_version(model) == version:
            raise ConflictError(f"Version {version} of {model!r} is live: promote another one first.")
        self._others.pop((model, version), None)
        self._loads.forget(model, version)

    def live_version(self, model: str) -> str | None:
        """Return the version that answers by default, None where none is loaded."""
        live = self._live.get(model)
        return live.version if live else None

    def devices(self) -> dict[str, str]:
        """Return the device of every live version."""
        return {model: served.device for model, served in self._live.items()}

    def is_live(self, served: Served) -> bool:
        """Return whether ``served`` is what answers for its model by default."""
        return self._live.get(served.name) is served

    def at_hand(self, model: str, version: str | None = None) -> Served | None:
        """Return what :meth:`get` gives where that needs no waiting, otherwise None."""
        live = self._live.get(model)
        if live is not None and version in (None, live.version):
            return live
        if version is None or model in self._unloaded or (model, version) not in self._others:
            return None
        self._others.move_to_end((model, version))
        return self._others[model, version]

    async def get(self, model: str, version: str | None = None) -> Served:
        """Return the live version, or the one asked for by number or as ``model@alias``, which is loaded where it is not.

        Raises:
            NotFoundError: there is no such model, version or alias.
            UnavailableError: it exists and cannot be served now.
        """
        if "@" in model:
            model, version = await self.aliases.resolve(model, version)
        live = self._live.get(model)
        if live is not None and version in (None, live.version):
            return live
        if version is None or model in self._unloaded:
            return await self._missing(model)
        try:
            return await self._obtain(model, version)
        except CorruptError as error:
            raise UnavailableError(f"Version {version} of {model!r} cannot be served: {error}") from None

    async def versions(self, model: str) -> list[str]:
        """Return all versions of ``model``; NotFoundError where it is unknown."""
        return await asyncio.to_thread(self._source.versions, model)

    async def states(self) -> list[State]:
        """Return the state of every version of every model."""
        return [
            self._state(model, version)
            for model in await asyncio.to_thread(self._source.models)
            for version in await asyncio.to_thread(self._source.versions, model)
        ]

    def statistics(self) -> dict[Key, tuple[Statistics, str | None]]:
        """Return the statistics of every version that was ever loaded, with its device where it still is."""
        statistics = self._loads.statistics
        loaded = {key: self._loaded(*key) for key in statistics}
        return {key: (statistics[key], served.device if served else None) for key, served in loaded.items()}

    async def close(self) -> None:
        """Wait until every request has its answer, as long as the settings grant."""
        end = time.monotonic() + self._settings.drain_seconds
        while time.monotonic() < end and not all(served.idle for served in (*self._live.values(), *self._others.values())):
            await asyncio.sleep(_DRAIN_POLL)

    async def _missing(self, model: str) -> Served:
        await asyncio.to_thread(self._source.versions, model)  # raises where the model is unknown
        if model in self._unloaded:
            raise UnavailableError(f"The model {model!r} was unloaded: load it, or promote a version.")
        version = await asyncio.to_thread(self._source.live, model)
        if version is None:
            raise UnavailableError(f"No version of the model {model!r} is live: promote one.")
        reason = self._loads.failures.get((model, version), "it is being loaded")
        raise UnavailableError(f"The live version {version} of {model!r} cannot be served: {reason}")

    def _state(self, model: str, version: str) -> State:
        key = (model, version)
        if self._loaded(*key):
            return State(model, version, "READY")
        if self._loads.under_way(model, version):
            return State(model, version, "LOADING")
        if model in self._unloaded:
            return State(model, version, "UNAVAILABLE", "unloaded")
        return State(model, version, "UNAVAILABLE", self._loads.failures.get(key, "not loaded; the first request to this version loads it"))

    def _loaded(self, model: str, version: str) -> Served | None:
        live = self._live.get(model)
        return live if live and live.version == version else self._others.get((model, version))

    @contextmanager
    def _falling_behind(self, model: str, version: str) -> Iterator[None]:
        """Remember that ``version`` is promoted and could not take its place."""
        try:
            yield
        except SpecnormError:
            if self.live_version(model) not in {None, version}:
                self._behind[model] = version
            raise

    def _swap(self, served: Served) -> None:
        before = self._live.get(served.name)
        self._live[served.name] = served
        self.on_swap()
        self._behind.pop(served.name, None)
        self._wanted.add(served.name)
        self._unloaded.discard(served.name)
        self._others.pop((served.name, served.version), None)
        if before is not None and before.version != served.version:
            self._keep(before)

    def _keep(self, served: Served) -> None:
        """Hold a version that is not live; the one unused for longest makes room, and ends with its last request."""
        self._others[served.name, served.version] = served
        self._others.move_to_end((served.name, served.version))
        while len(self._others) > self._settings.loaded_versions:
            self._others.popitem(last=False)

    async def _obtain(self, model: str, version: str) -> Served:
        if (model, version) in self._others:
            self._others.move_to_end((model, version))
        return self._loaded(model, version) or await self._loads.load(model, version)

    def _loaded_one(self, served: Served) -> None:
        if served.name not in self._unloaded:
            self._keep(served)
