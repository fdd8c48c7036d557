import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from app.errors import UnavailableError
from app.jobs import watch as watching
from app.jobs.attempt import Attempt
from app.jobs.store import Jobs
from app.jobs.watch import Watch


class Counted(Jobs):
    """Jobs that count the looks at them, and can be out of order."""

    looks = 0
    broken = False

    def news(self, names: Any, number: int) -> Any:
        self.looks += 1
        if self.broken:
            raise UnavailableError
        return super().news(names, number)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TICK_SECONDS", 0.01)


@pytest.fixture
def jobs(workspace: Any) -> Counted:
    return Counted(workspace.registry.database)


def claimed(workspace: Any) -> Attempt:
    claim = workspace.jobs.claim("me")
    assert claim is not None
    return Attempt(workspace.registry.database, claim)


async def told(watch: Watch, job: str, after: str | None = None) -> list[str]:
    number, first = await watch.begin(job, after)
    found = [event["message"] for event in first.events]
    if not first.ended:
        async for news in watch.follow(job, number):
            found += [event["message"] for event in news.events]
    return found


async def met(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_every_reader_is_told_all_of_its_own_job_once_in_order_and_to_the_end(workspace: Any, jobs: Counted) -> None:
    names = [workspace.create()["id"] for _ in range(2)]
    attempts = [claimed(workspace) for _ in names]

    async def scene() -> list[list[str]]:
        watch = Watch(jobs)
        readers = [asyncio.create_task(told(watch, names[n % 2])) for n in range(20)]
        await met(lambda: len(watch._readers) == 20)
        for n in range(5):
            for attempt in attempts:
                attempt.event(f"{attempt.claim.job} {n}")
            await asyncio.sleep(0.02)
        attempts[0].fail("x", "y")
        attempts[1].release("again")
        workspace.jobs.cancel(names[1])
        found = await asyncio.gather(*readers)
        await met(lambda: watch._ticking is not None and watch._ticking.done())
        return found

    for n, found in enumerate(asyncio.run(scene())):
        job = names[n % 2]
        assert found == [event["message"] for event in workspace.jobs.events(job, limit=100).items[::-1]]
        assert [line for line in found if line.startswith(job)] == [f"{job} {n}" for n in range(5)]


def test_many_readers_cost_one_look_per_tick_and_none_costs_none(workspace: Any, jobs: Counted) -> None:
    job = workspace.create()["id"]

    async def looks(readers: int) -> int:
        watch = Watch(jobs)
        tasks = [asyncio.create_task(told(watch, job)) for _ in range(readers)]
        await met(lambda: len(watch._readers) == readers)
        ticks = 0
        before, look = jobs.looks, watch._look

        async def counted() -> None:
            nonlocal ticks
            ticks += 1
            await look()

        watch._look = counted  # type: ignore[method-assign]  # to know when a tick was
        await met(lambda: ticks >= 5)
        spent = jobs.looks - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not watch._readers
        await met(lambda: watch._ticking is not None and watch._ticking.done())
        at_rest = jobs.looks
        await asyncio.sleep(0.05)
        assert jobs.looks == at_rest
        return spent - ticks

    assert asyncio.run(looks(50)) <= 1


def test_a_reader_goes_on_after_the_event_that_it_names(workspace: Any, jobs: Counted) -> None:
    job = workspace.create()["id"]
    attempt = claimed(workspace)
    for n in range(3):
        attempt.event(f"event {n}")
    ids = [event["id"] for event in workspace.jobs.events(job).items[::-1]]
    workspace.jobs.cancel(job)
    assert asyncio.run(told(Watch(jobs), job, after=ids[2])) == ["event 2", "The job was cancelled."]
    assert asyncio.run(told(Watch(jobs), job, after=workspace.jobs.events(job).items[0]["id"])) == []


def test_a_database_that_is_away_for_a_while_costs_no_event(workspace: Any, jobs: Counted) -> None:
    job = workspace.create()["id"]

    async def scene() -> list[str]:
        watch = Watch(jobs)
        reader = asyncio.create_task(told(watch, job))
        await met(lambda: len(watch._readers) == 1)
        jobs.broken = True
        before = jobs.looks
        workspace.jobs.pause(job)
        await met(lambda: jobs.looks > before + 2)
        jobs.broken = False
        workspace.jobs.cancel(job)
        return await reader

    assert asyncio.run(scene())[1:] == ["The job was paused.", "The job was cancelled."]


def test_a_reader_that_takes_nothing_is_sent_away_and_may_come_back(workspace: Any, jobs: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_BEHIND", 2)
    job = workspace.create()["id"]
    attempt = claimed(workspace)

    async def scene() -> list[str]:
        watch = Watch(jobs)
        number, first = await watch.begin(job, None)
        found = list(first.events)
        async with aclosing(watch.follow(job, number)) as coming:
            attempt.event("first")
            found += (await anext(coming)).events
            for n in range(4):
                attempt.event(f"event {n}")
                await met(lambda n=n: not watch._readers or next(iter(watch._readers)).inbox.qsize() > n)
            assert not watch._readers
            async for news in coming:  # what it was sent before
                found += news.events
        workspace.jobs.cancel(job)
        return [event["message"] for event in found] + await told(watch, job, after=found[-1]["id"])

    assert asyncio.run(scene()) == [event["message"] for event in workspace.jobs.events(job, limit=100).items[::-1]]


def test_a_silence_is_told_as_empty_news(workspace: Any, jobs: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENT_SECONDS", 0.02)
    job = workspace.create()["id"]

    async def scene() -> Any:
        watch = Watch(jobs)
        number, _ = await watch.begin(job, None)
        async with aclosing(watch.follow(job, number)) as coming:
            return await anext(coming)

    assert asyncio.run(scene()) == ([], False)


def test_whoever_follows_is_sent_away_when_the_service_is_to_end(workspace: Any, jobs: Counted) -> None:
    job = workspace.create()["id"]

    async def scene() -> None:
        watch = Watch(jobs)
        readers = [asyncio.create_task(told(watch, job)) for _ in range(3)]
        await met(lambda: len(watch._readers) == 3)
        watch.close()
        async with asyncio.timeout(60):  # or it would wait for ever
            for found in [*await asyncio.gather(*readers), await told(watch, job)]:
                assert len(found) == 1

    asyncio.run(scene())
