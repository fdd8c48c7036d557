import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.errors import NotFoundError, UnavailableError
from app.link import Link


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """On a loop of its own."""

    @functools.wraps(test)
    def inner() -> None:
        asyncio.run(test())

    return inner


@asynccontextmanager
async def pair(**answers: Any) -> AsyncIterator[tuple[Link, Link]]:
    """Both ends; the second answers."""
    one, other = socket.socketpair()
    asking, answering = await Link.over(one, {}), await Link.over(other, answers)
    tasks = [asyncio.create_task(link.listen()) for link in (asking, answering)]
    try:
        yield asking, answering
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@run
async def test_answers_find_their_questions_whatever_their_order() -> None:
    async def after(seconds: float, word: str) -> dict[str, str]:
        await asyncio.sleep(seconds)
        return {word: "x" * 100_000}

    async with pair(after=after) as (asking, _):
        said = await asyncio.gather(*(asking.ask("after", 30, seconds=(9 - n) / 100, word=str(n)) for n in range(10)))
    assert [list(one) for one in said] == [[str(n)] for n in range(10)]


@run
async def test_what_goes_wrong_at_the_other_end_is_said_here_and_ends_nothing() -> None:
    async def missing() -> None:
        raise NotFoundError("there is no such model")

    async def fine() -> int:
        return 1

    async with pair(missing=missing, fine=fine) as (asking, _):
        with pytest.raises(UnavailableError, match="no such model"):
            await asking.ask("missing", 30)
        assert await asking.ask("fine", 30) == 1


@run
async def test_who_does_not_answer_is_not_waited_for_and_its_late_answer_harms_nothing() -> None:
    free = asyncio.Event()

    async def slow() -> None:
        await free.wait()

    async def fine() -> int:
        return 1

    async with pair(slow=slow, fine=fine) as (asking, _):
        with pytest.raises(UnavailableError, match="did not answer"):
            await asking.ask("slow", 0.01)
        free.set()
        assert await asking.ask("fine", 30) == 1


@run
async def test_a_question_fails_when_the_other_end_is_closed() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    one, other = socket.socketpair()
    asking = await Link.over(one, {})
    listening = asyncio.create_task(asking.listen())
    asked = asyncio.create_task(asking.ask("never", 30))
    await asyncio.sleep(0)
    other.close()
    with pytest.raises(UnavailableError, match="has ended"):
        await asked
    await listening
