"""Requests that are asked without a coroutine."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import InvalidRequestError, QueueFullError, UnavailableError
from app.inference.served import Asked, Served
from app.inference.statistics import Statistics
from app.settings import Settings


class Caller:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def answer(self, body: bytes, json_bytes: int | None, /) -> None:
        self.told.append(json.loads(body[:json_bytes]))

    def refuse(self, error: Exception, /) -> None:
        self.told.append(error)


@pytest.fixture
def served(models: Any, settings_with: Callable[..., Settings]) -> Served:
    return Served("affine", "1", models.affine(), settings_with(), Statistics(model_bytes=0))


def body(*numbers: Any, **more: Any) -> bytes:
    data = {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": list(numbers)}
    return json.dumps({**more, "inputs": [data]}).encode()


def rows(count: int, first: int) -> bytes:
    data = {"name": "input", "shape": [count, 3], "datatype": "FP32", "data": list(range(first, first + 3 * count))}
    return json.dumps({"inputs": [data]}).encode()


async def ask(served: Served, *bodies: bytes, late: float = 0.0) -> tuple[list[Asked], list[Caller]]:
    loop = asyncio.get_running_loop()
    callers = [Caller() for _ in bodies]
    asked = [served.ask(loop, loop.time() - late, caller, body) for caller, body in zip(callers, bodies, strict=True)]
    assert all(one.inputs is None for one in asked)  # unread
    return asked, callers


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_that_are_read_together_each_get_their_own(served: Served) -> None:
    served.codec.decode(body(1, 2, 3))
    _, callers = await ask(served, body(1, 0, 0), body(2, 0, 0, id="two"), body(3, 0, 0))
    await settled()
    told = [(answer["outputs"][0]["data"], answer.get("id")) for caller in callers for answer in caller.told]
    assert told == [([1, 0, 0], None), ([2, 0, 0], "two"), ([3, 0, 0], None)]
    assert (served.statistics.execution_count, served.statistics.success.count) == (1, 3)


async def test_requests_of_any_number_of_rows_in_one_turn_each_get_their_own(served: Served) -> None:
    sizes = [1, 2, 1, 3, 2, 1, 1]
    bodies = [rows(size, 10 * number) for number, size in enumerate(sizes)]
    for known in (rows(1, 0), rows(2, 0), rows(3, 0)):
        served.codec.decode(known)
    for _ in range(2):
        _, callers = await ask(served, *bodies)
        await settled()
        told = [caller.told[0]["outputs"][0]["data"] for caller in callers]
        assert told == [list(range(10 * number, 10 * number + 3 * size)) for number, size in enumerate(sizes)]
    assert served.statistics.execution_count == 2


async def test_one_that_cannot_be_read_is_refused_alone(served: Served) -> None:
    served.codec.decode(body(1, 2, 3))
    _, callers = await ask(served, body(1, 0, 0), body(1, 0), body(1, 0, 0, 4), body(5, None, 0), body(6, 0, 0))
    await settled()
    told = [caller.told[0] for caller in callers]
    assert [isinstance(one, InvalidRequestError) for one in told] == [False, True, True, True, False]
    assert [told[at]["outputs"][0]["data"][0] for at in (0, 4)] == [1, 6]
    assert (served.statistics.success.count, served.statistics.fail.count) == (2, 3)


async def test_one_whose_caller_has_gone_costs_no_row_and_is_told_nothing(served: Served) -> None:
    served.codec.decode(body(1, 2, 3))
    asked, callers = await ask(served, body(1, 0, 0), body(2, 0, 0), body(3, 0, 0))
    asked[1].drop()
    await settled()
    assert [len(caller.told) for caller in callers] == [1, 0, 1]
    assert [callers[at].told[0]["outputs"][0]["data"][0] for at in (0, 2)] == [1, 3]
    assert (served.statistics.inference_count, served.statistics.fail.count) == (2, 1)


async def test_one_that_is_late_is_told_so_once(served: Served) -> None:
    served.codec.decode(body(1, 2, 3))
    asked, callers = await ask(served, body(1, 0, 0), late=10_000.0)
    await settled()
    asked[0].drop()
    (told,) = callers[0].told
    assert isinstance(told, UnavailableError)
    assert served.statistics.inference_count == 0


async def test_one_that_is_dropped_frees_its_place_and_ends_a_run_that_nobody_waits_for(
    models: Any, settings_with: Callable[..., Settings]
) -> None:
    served = Served("loop", "1", models.loop(), settings_with(queue_rows=1), Statistics(model_bytes=0))
    loop = asyncio.get_running_loop()
    callers = [Caller() for _ in range(3)]

    def turns(count: int) -> bytes:
        return json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [count]}]}).encode()

    endless = served.ask(loop, loop.time(), callers[0], turns(2**60))
    await asyncio.sleep(0.01)
    behind = served.ask(loop, loop.time(), callers[1], turns(1))
    with pytest.raises(QueueFullError):
        served.ask(loop, loop.time(), callers[2], turns(1))
    behind.drop()
    assert served.waiting == 0
    served.ask(loop, loop.time(), callers[2], turns(1))
    endless.drop()
    while not callers[2].told:
        await asyncio.sleep(0.001)
    assert (callers[0].told, callers[1].told, callers[2].told[0]["outputs"][0]["data"]) == ([], [], [1])
