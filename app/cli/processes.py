"""Several serving processes on one port: a parent that starts them, starts again what dies, and passes on what they ask each other.

The parent answers no request. It keeps the last numbers that it saw of every process, so that no counter that was ever
shown goes back when one dies.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from app.errors import SpecnormError, UnavailableError
from app.link import Answer, Link
from app.siblings import OTHERS_SECONDS
from app.totals import Tree, merge

if TYPE_CHECKING:
    from app.settings import Settings

COMMAND: Final = (sys.executable, "-m", "app.cli.process")
LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 2.0
SHORT_LIFE_SECONDS: Final = 10.0
PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 5.0)
RESTARTS: Final = "specnorm_process_restarts_total"
RESTARTS_TEXT: Final = "Serving processes that died and were started again; absent where there is only one."
KILL_SECONDS: Final = 10.0  # after the time to drain

log = logging.getLogger("app.processes")


class Child:
    """One serving process, and the line to it.

    Attributes:
        here: whether it answers questions.
        serving: whether it takes requests.
        last: what it said last of its numbers.
    """

    def __init__(self, process: asyncio.subprocess.Process, link: Link) -> None:
        self.process = process
        self.link = link
        self.here = False
        self.serving = False
        self.last: Tree = {}

    async def look(self) -> None:
        """Ask for its numbers."""
        if self.here:
            try:
                self.last = await self.link.ask("totals", ANSWER_SECONDS)
            except SpecnormError as error:
                log.warning("serving process %d: %s", self.process.pid, error)


class Processes:
    """All of them.

    Args:
        settings: of the whole service, with the port that was reserved.
        started: called once all take requests.
    """

    def __init__(self, settings: "Settings", started: Callable[[], None]) -> None:
        self._settings = settings
        self._started = started
        self._children: dict[int, Child] = {}
        self._departed: Tree = {}
        self._restarts = 0
        self._complete = False
        self._stopping = False
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Serve until a signal asks to stop, and every process has ended; a second signal ends them at once.

        Raises:
            UnavailableError: one of them did not start.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        looking = asyncio.create_task(self._look())
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._settings.processes):
                    group.create_task(self._keep(index))
        except* UnavailableError as errors:
            raise UnavailableError(str(errors.exceptions[0])) from None
        finally:
            looking.cancel()

    async def _keep(self, index: int) -> None:
        """Have one process serve, another when it has died."""
        short = 0
        while not self._stopping:
            begun = asyncio.get_running_loop().time()
            child, listening = await self._start(index)
            try:
                await child.process.wait()
            finally:
                await self._end(index, child)
                listening.cancel()
            if self._stopping:
                return
            if not self._complete:
                raise UnavailableError("The service did not start; the lines above say why.")
            short = min(short + 1, len(PAUSES) - 1) if asyncio.get_running_loop().time() - begun < SHORT_LIFE_SECONDS else 0
            self._restarts += 1
            log.error("serving process %d ended with %d: it is started again", child.process.pid, child.process.returncode or 0)
            await asyncio.sleep(PAUSES[short])

    async def _start(self, index: int) -> tuple[Child, asyncio.Task[None]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=_environment(self._settings, index),
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent, which passes it on in its own way
            )
        answers: dict[str, Answer] = {}
        child = Child(process, await Link.over(ours, answers))
        answers |= self._answers(index, child)
        self._children[index] = child
        if self._stopping:
            process.terminate()
        return child, asyncio.create_task(child.link.listen())

    async def _end(self, index: int, child: Child) -> None:
        """See to it that it has ended, and keep what it had counted."""
        if child.process.returncode is None:
            child.process.terminate()
            try:
                async with asyncio.timeout(self._settings.drain_seconds + KILL_SECONDS):
                    await child.process.wait()
            except TimeoutError:
                child.process.kill()
                await child.process.wait()
        del self._children[index]
        self._departed = merge((self._departed, {"kept": child.last.get("kept", {})}))

    def _answers(self, index: int, child: Child) -> dict[str, Answer]:
        """Return what the parent does when a child asks."""

        async def here() -> None:
            child.here = True

        async def serving() -> None:
            child.serving = True
            if not self._complete and sum(one.serving for one in self._children.values()) == self._settings.processes:
                self._complete = True
                self._started()

        async def others(what: str, words: dict[str, Any]) -> dict[str, Any]:
            asked = [one for one in self._children.values() if one is not child and one.here]
            said = await asyncio.gather(*(one.link.ask(what, OTHERS_SECONDS, **words) for one in asked), return_exceptions=True)
            errors = [str(answer) for answer in said if isinstance(answer, BaseException)]
            return {"answers": [answer for answer in said if not isinstance(answer, BaseException)], "errors": errors}

        return {"here": here, "serving": serving, "others": others, "totals": self.totals}

    async def totals(self) -> Tree:
        """Return the numbers of all, those that have ended among them. One at a time, so that nothing older is shown later."""
        async with self._turn:
            await asyncio.gather(*(child.look() for child in list(self._children.values())))
            return merge((self._own(), self._departed, *(child.last for child in self._children.values())))

    def _own(self) -> Tree:
        restarts = {"kind": "counter", "text": RESTARTS_TEXT, "samples": {"": self._restarts}}
        return {"kept": {"families": {RESTARTS: restarts}}, "now": {}}

    async def _look(self) -> None:
        """Look at the numbers now and then: a process that is killed takes no more than the last second of its own with it."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.totals()

    def _stop(self) -> None:
        for child in self._children.values():
            if child.process.returncode is None:
                child.process.send_signal(signal.SIGKILL if self._stopping else signal.SIGTERM)
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(self._settings.drain_seconds + KILL_SECONDS, self._stop)


def _environment(settings: "Settings", index: int) -> dict[str, str]:
    """Return the environment of a process: the settings as they are here. Only the first runs jobs."""
    own = settings.model_copy(update={} if index == 0 else {"worker": "none"}).model_dump(mode="json", exclude_none=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECNORM_")}
    return clean | {f"SPECNORM_{name.upper()}": value if isinstance(value, str) else json.dumps(value) for name, value in own.items()}
