"""A line between two processes: either end asks, the other answers. Messages are JSON behind their length."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, Final

import orjson

from app.errors import SpecnormError, UnavailableError

Answer = Callable[..., Awaitable[Any]]

_LENGTH_BYTES: Final = 4

log = logging.getLogger(__name__)


class Link:
    """One end.

    Args:
        reader: what the other end sends.
        writer: what goes there.
        answers: what is answered to each question; called with its words.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Mapping[str, Answer]) -> None:
        self._reader = reader
        self._writer = writer
        self._answers = answers
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, end: socket.socket, answers: Mapping[str, Answer]) -> "Link":
        """Return this end of a pair of connected sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end), answers)

    async def ask(self, what: str, seconds: float, /, **words: Any) -> Any:
        """Return what the other end answers.

        Raises:
            UnavailableError: it does not within so many seconds, or says that something went wrong.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._send({"number": number, "ask": what, "words": words})
            async with asyncio.timeout(seconds):
                return await answer
        except (TimeoutError, OSError) as error:
            raise UnavailableError(f"Another process of this service did not answer within {seconds:g} s.") from error
        finally:
            del self._asked[number]

    async def listen(self) -> None:
        """Answer what is asked until the other end is closed."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
                message = orjson.loads(await self._reader.readexactly(length))
                if "ask" in message:
                    task = asyncio.create_task(self._answer(message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                else:
                    self._take(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(UnavailableError("Another process of this service has ended."))
            self._writer.close()

    async def _answer(self, message: dict[str, Any]) -> None:
        said: dict[str, Any] = {"number": message["number"]}
        try:
            said["answer"] = await self._answers[message["ask"]](**message["words"])
        except SpecnormError as error:
            said["error"] = str(error)
        except Exception as error:
            log.exception("the question %s of another process failed", message["ask"])
            said["error"] = repr(error)
        self._send(said)

    def _take(self, message: dict[str, Any]) -> None:
        asked = self._asked.get(message["number"])
        if asked is None or asked.done():  # it came too late
            return
        if "error" in message:
            asked.set_exception(UnavailableError(message["error"]))
        else:
            asked.set_result(message["answer"])

    def _send(self, message: dict[str, Any]) -> None:
        text = orjson.dumps(message)
        self._writer.write(len(text).to_bytes(_LENGTH_BYTES) + text)
