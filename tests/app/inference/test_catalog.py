import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from app.inference.catalog import Catalog
from app.settings import Settings


@pytest.fixture
def catalog(folder: Any, settings_with: Callable[..., Settings]) -> Callable[..., Catalog]:
    return lambda **values: Catalog(folder, settings_with(**values))


def body(number: float = 1.0) -> bytes:
    return json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [number, 0, 0]}]}).encode()


async def ask(catalog: Catalog, model: str, version: str | None = None) -> tuple[str, float]:
    encoded, _ = await (await catalog.get(model, version)).answer(body())
    answer = json.loads(encoded.body)
    return answer["model_version"], answer["outputs"][0]["data"][0]


@pytest.fixture
def three(folder: Any, models: Any) -> Any:
    """Versions 1, 2 and 3 of `m`, which multiply by their number; 2 is live."""
    for version in (1, 2, 3):
        folder.add("m", str(version), models.affine(float(version)), live=version == 2)
    return folder


async def test_the_live_version_answers_by_default_not_the_highest(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    assert not own.ready
    await own.start()
    assert own.ready
    assert own.live_version("m") == "2"
    assert await ask(own, "m") == ("2", 2.0)


async def test_other_versions_load_on_first_use_and_once(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    answers = await asyncio.gather(*(ask(own, "m", "3") for _ in range(20)))
    assert set(answers) == {("3", 3.0)}
    assert three.reads.count(("m", "3")) == 1
    assert own.live_version("m") == "2"


async def test_the_version_unused_for_longest_makes_room(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog(loaded_versions=1)
    await own.start()
    for version in ("1", "3", "1", "1"):
        assert await ask(own, "m", version) == (version, float(version))
    assert three.reads.count(("m", "1")) == 2
    assert [state.state for state in await own.states()] == ["READY", "READY", "UNAVAILABLE"]


async def test_promotion_swaps_and_the_version_before_finishes_what_it_has(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog(loaded_versions=0)
    await own.start()
    before = await own.get("m")
    await own.prepare("m", "3")
    assert own.live_version("m") == "2"
    await own.go_live("m", "3")
    assert await ask(own, "m") == ("3", 3.0)
    assert json.loads((await before.answer(body()))[0].body)["model_version"] == "2"


async def test_going_live_twice_changes_nothing(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    await own.go_live("m", "2")
    assert three.reads.count(("m", "2")) == 1
    assert own.live_version("m") == "2"


async def test_promotions_take_effect_in_the_order_of_the_calls(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    await own.prepare("m", "3")  # the later one is loaded already, and must still come last
    await asyncio.gather(own.go_live("m", "1"), own.go_live("m", "3"))
    assert own.live_version("m") == "3"


async def test_every_answer_under_promotions_is_of_the_version_it_names(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    seen: set[str] = set()

    async def promote() -> None:
        for _ in range(20):
            for version in ("1", "3"):
                await own.go_live("m", version)
                await asyncio.sleep(0.001)

    promoting = asyncio.create_task(promote())

    async def client() -> None:
        while not promoting.done():
            version, number = await ask(own, "m")
            assert number == float(version)
            seen.add(version)

    await asyncio.gather(promoting, *(client() for _ in range(8)))
    assert {"1", "3"} <= seen


async def test_a_promotion_that_fails_leaves_the_live_version(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    three.damage("m", "3")
    with pytest.raises(CorruptError, match="sha256"):
        await own.go_live("m", "3")
    assert await ask(own, "m") == ("2", 2.0)
    with pytest.raises(UnavailableError):
        await own.get("m", "3")
    assert three.reads.count(("m", "3")) == 1  # it is not read again for every request
    assert [(state.version, state.state) for state in await own.states()] == [("1", "UNAVAILABLE"), ("2", "READY"), ("3", "UNAVAILABLE")]


async def test_a_version_that_failed_is_read_again_where_it_is_prepared_again(
    three: Any, models: Any, catalog: Callable[..., Catalog]
) -> None:
    own = catalog()
    await own.start()
    three.damage("m", "3")
    for _ in range(2):
        with pytest.raises(CorruptError, match="sha256"):
            await own.prepare("m", "3")
    assert three.reads.count(("m", "3")) == 2
    three.remove("m", "3")
    three.add("m", "3", models.affine(5.0))
    await own.prepare("m", "3")
    assert own.live_version("m") == "2"
    assert (await own.get("m", "3")).version == "3"


async def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_serving(
    three: Any, models: Any, catalog: Callable[..., Catalog]
) -> None:
    three.add("broken", "1", models.affine(), live=True)
    three.damage("broken", "1")
    three.add("idle", "1", models.affine())
    own = catalog()
    await own.start()
    assert not own.ready
    assert await ask(own, "m") == ("2", 2.0)
    with pytest.raises(UnavailableError, match="sha256"):
        await own.get("broken")
    with pytest.raises(UnavailableError, match="promote one"):
        await own.get("idle")
    three.remove("broken", "1")
    three.add("broken", "1", models.affine(5.0))
    await own.reload("broken")
    assert own.ready
    assert await ask(own, "broken") == ("1", 5.0)


async def test_where_the_live_version_is_corrupt_at_the_start_the_one_before_serves_and_the_problem_is_told(
    three: Any, catalog: Callable[..., Catalog]
) -> None:
    three.damage("m", "2")
    own = catalog()
    await own.start()
    assert own.ready
    assert await ask(own, "m") == ("1", 1.0)
    assert list(own.problems()) == ["m"]
    assert own.problems()["m"].startswith("version 2 is live and cannot be served: model.onnx has sha256")
    await own.go_live("m", "3")
    assert own.problems() == {}


async def test_what_does_not_exist_is_not_found(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    for model, version in (("n", None), ("n", "1"), ("m", "4"), ("m", "../m/1")):
        with pytest.raises(NotFoundError):
            await own.get(model, version)
    with pytest.raises(NotFoundError):
        await own.reload("n")


async def test_a_forgotten_version_is_gone_and_a_live_one_is_not_forgotten(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    loading = asyncio.create_task(own.get("m", "1"))
    await asyncio.sleep(0)
    await own.forget("m", "1")  # while it is being loaded
    await loading
    three.remove("m", "1")
    with pytest.raises(NotFoundError):
        await own.get("m", "1")
    with pytest.raises(ConflictError, match="is live"):
        await own.forget("m", "2")


async def test_a_load_goes_on_when_one_that_asked_is_cancelled(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    first, second = (asyncio.create_task(own.get("m", "1")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).version == "1"
    assert three.reads.count(("m", "1")) == 1


async def test_statistics_outlive_a_reload(three: Any, catalog: Callable[..., Catalog]) -> None:
    own = catalog()
    await own.start()
    await ask(own, "m")
    three.promoted["m"] = "2"
    await own.reload("m")
    await ask(own, "m")
    with pytest.raises(Exception, match="not JSON"):
        await (await own.get("m")).answer(b"{")
    statistics, device = own.statistics()["m", "2"]
    assert device == "cpu"
    assert (statistics.success.count, statistics.fail.count, statistics.inference_count) == (2, 1, 2)


async def test_closing_waits_for_what_is_running(folder: Any, models: Any, catalog: Callable[..., Catalog]) -> None:
    folder.add("slow", "1", models.loop(), live=True)
    own = catalog(request_timeout=0.2)
    await own.start()
    text = {"inputs": [{"name": "input", "shape": [1, 1], "datatype": "INT64", "data": [2**60]}]}
    running = asyncio.create_task((await own.get("slow")).answer(json.dumps(text).encode()))
    await asyncio.sleep(0)
    await own.close()
    await asyncio.sleep(0)
    assert running.done()
    assert isinstance(running.exception(), UnavailableError)


async def test_a_model_of_fixed_rows_is_never_batched(folder: Any, models: Any, catalog: Callable[..., Catalog]) -> None:
    folder.add("fixed", "1", models.identity("FP32", 1, 3, rows_independent=True), live=True)
    own = catalog()
    await own.start()
    assert await asyncio.gather(*(ask(own, "fixed") for _ in range(3))) == [("1", 1.0)] * 3
    assert own.statistics()["fixed", "1"][0].execution_count == 3
    assert not (await own.get("fixed")).batched
