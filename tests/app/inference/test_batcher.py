import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.errors import InvalidRequestError, QueueFullError, UnavailableError
from app.inference.batcher import Batcher
from app.inference.session import Session, Stop
from app.inference.statistics import Statistics
from app.inference.waiting import Awaited
from app.settings import Settings

FOREVER = 2**60


@pytest.fixture
def batcher(settings_with: Callable[..., Settings]) -> Callable[..., Batcher]:
    def make(artifact: Any, *, max_batch_rows: int = 256, queue_rows: int = 1000) -> Batcher:
        session = Session(artifact.model, artifact.manifest, settings_with())
        return Batcher(
            session,
            Statistics(model_bytes=0),
            together=artifact.manifest.signature.rows_independent,
            max_batch_rows=max_batch_rows,
            queue_rows=queue_rows,
        )

    return make


def rows(*numbers: float) -> np.ndarray:
    return np.array([[number] * 3 for number in numbers], np.float32).reshape(-1, 3)


def index(number: int) -> np.ndarray:
    return np.array([[number]], np.int64)


async def ask(batcher: Batcher, array: np.ndarray, *, seconds: float = 30.0) -> dict[str, np.ndarray]:
    deadline = asyncio.get_running_loop().time() + seconds
    return (await batcher.submit({"input": array}, array.shape[0], deadline)).outputs


async def test_requests_of_one_turn_share_a_run_and_each_gets_its_own_rows(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.affine(2.0))
    answers = await asyncio.gather(*(ask(own, rows(*range(size))) for size in (1, 3, 0, 2)))
    for size, answer in zip((1, 3, 0, 2), answers, strict=True):
        np.testing.assert_array_equal(answer["logits"], 2 * rows(*range(size)))
        assert answer["certified_radius"].shape == (size,)
    statistics = own._statistics
    assert (statistics.execution_count, statistics.inference_count) == (1, 6)


async def test_rows_that_depend_on_each_other_are_never_put_together(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.centred())
    answers = await asyncio.gather(*(ask(own, rows(number)) for number in range(5)))
    assert all((answer["output"] == 0).all() for answer in answers)
    assert own._statistics.execution_count == 5


async def test_a_run_has_at_most_the_rows_of_the_limit_unless_one_request_is_larger(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.affine(), max_batch_rows=4)
    await asyncio.gather(*(ask(own, rows(*range(size))) for size in (2, 2, 1, 9, 3)))
    assert {size: batches.infer.count for size, batches in own._statistics.batches.items()} == {4: 1, 1: 1, 9: 1, 3: 1}


async def test_requests_of_other_widths_do_not_share_a_run(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.identity("FP32", -1, -1))
    answers = await asyncio.gather(*(ask(own, np.ones((1, width), np.float32)) for width in (1, 2, 2, 1)))
    assert [answer["output"].shape for answer in answers] == [(1, 1), (1, 2), (1, 2), (1, 1)]
    assert own._statistics.execution_count == 3  # only the two neighbours of like width


async def test_a_request_that_the_graph_refuses_fails_alone(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.gather())
    answers = await asyncio.gather(*(ask(own, index(number)) for number in (1, 99, 3)), return_exceptions=True)
    assert isinstance(answers[1], InvalidRequestError)
    assert [answers[0]["output"].item(), answers[2]["output"].item()] == [1, 3]  # type: ignore[index]  # the others are answers


async def test_past_the_limit_of_the_queue_requests_are_refused_at_once_and_the_rest_answered(
    models: Any, batcher: Callable[..., Batcher]
) -> None:
    own = batcher(models.affine(), queue_rows=10)
    answers = await asyncio.gather(*(ask(own, rows(1, 2, 3)) for _ in range(5)), return_exceptions=True)
    assert [isinstance(answer, QueueFullError) for answer in answers] == [False, False, False, True, True]
    assert (await ask(own, rows(1)))["logits"].shape == (1, 3)


async def test_a_request_past_its_deadline_is_not_run(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.affine())
    with pytest.raises(UnavailableError, match="deadline"):
        await ask(own, rows(1), seconds=0.0)
    assert own._statistics.execution_count == 0


async def test_a_run_that_outlasts_its_deadline_is_stopped_and_the_next_request_answered(
    models: Any, batcher: Callable[..., Batcher]
) -> None:
    own = batcher(models.loop())
    endless = asyncio.create_task(ask(own, index(FOREVER), seconds=0.2))
    await asyncio.sleep(0)
    behind = asyncio.create_task(ask(own, index(7)))
    late = asyncio.create_task(ask(own, index(8), seconds=0.1))
    for task in (late, endless):
        with pytest.raises(UnavailableError):
            await task
    assert (await behind)["output"].item() == 7
    assert own.idle


async def test_a_request_behind_a_long_run_is_told_at_its_own_deadline(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.loop())
    endless = asyncio.create_task(ask(own, index(FOREVER)))
    await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError, match="deadline"):
        await ask(own, index(1), seconds=0.05)
    assert not endless.done()
    own._stop()
    with pytest.raises(InvalidRequestError):
        await endless


async def test_the_loop_stays_free_while_a_long_run_goes_on(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.loop())
    endless = asyncio.create_task(ask(own, index(FOREVER), seconds=0.2))
    turns = 0
    while not endless.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10
    assert isinstance(endless.exception(), UnavailableError)
    assert (await ask(own, index(1)))["output"].item() == 1


async def test_a_caller_that_has_gone_costs_no_run(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.affine())
    gone = asyncio.create_task(ask(own, rows(1)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await asyncio.sleep(0)
    assert own._statistics.execution_count == 0
    assert own.idle


async def test_a_caller_that_has_gone_frees_its_place_in_the_queue(models: Any, batcher: Callable[..., Batcher]) -> None:
    own = batcher(models.loop(), queue_rows=1)
    endless = asyncio.create_task(ask(own, index(FOREVER)))
    await asyncio.sleep(0.01)
    for _ in range(3):  # each waits behind the run, alone
        gone = asyncio.create_task(ask(own, index(1)))
        await asyncio.sleep(0)
        assert own.waiting == 1
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)


async def test_a_batch_that_was_ended_on_purpose_is_not_run_again(
    models: Any, batcher: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = batcher(models.affine())
    runs = 0
    run = own._session.run

    def counted(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        return run(*arguments)

    monkeypatch.setattr(own._session, "run", counted)  # the real run, counted
    stop = Stop()
    stop()
    loop = asyncio.get_running_loop()
    batch = [Awaited({"input": rows(number)}, 1, loop.time() + 30, loop.create_future()) for number in range(3)]
    ((ended, error),) = own._execute(batch, None, 0, stop)
    assert (list(ended), runs) == (batch, 1)
    assert isinstance(error, InvalidRequestError)
