import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import InvalidRequestError, NotFoundError
from app.inference.catalog import Catalog


@pytest.fixture
def catalog(folder: Any, models: Any, settings_with: Callable[..., Any]) -> Catalog:
    """Versions 1, 2 and 3 of `m`; 1 is live, `stable` is 2."""
    for version in (1, 2, 3):
        folder.add("m", str(version), models.affine(float(version)), live=version == 1)
    folder.named = {"m": {"stable": "2"}}
    return Catalog(folder, settings_with())


async def test_an_alias_is_the_version_that_it_points_at(catalog: Catalog) -> None:
    await catalog.start()
    assert ((await catalog.get("m")).version, (await catalog.get("m@stable")).version) == ("1", "2")
    assert (catalog.aliases.of("m", "2"), catalog.aliases.of("m", "1")) == (["stable"], [])


async def test_what_an_alias_is_moved_to_is_loaded_before_it_answers(catalog: Catalog, folder: Any) -> None:
    await catalog.start()
    folder.named = {"m": {"stable": "3"}}
    seen: list[tuple[str, bool]] = []

    async def ask() -> None:
        while not seen or seen[-1][0] != "3":
            loaded = catalog.at_hand("m", "3") is not None
            seen.append(((await catalog.get("m@stable")).version, loaded))
            await asyncio.sleep(0)

    await asyncio.gather(ask(), catalog.aliases.follow())
    assert {version for version, _ in seen} == {"2", "3"}
    assert seen[-1] == ("3", True)


async def test_a_new_alias_is_known_when_it_is_asked_for_and_one_taken_away_is_not(catalog: Catalog, folder: Any) -> None:
    await catalog.start()
    folder.named = {"m": {"fresh": "3"}}
    assert (await catalog.get("m@fresh")).version == "3"
    with pytest.raises(NotFoundError, match="no alias 'stable'"):
        await catalog.get("m@stable")


async def test_asking_by_a_known_alias_reads_nothing(catalog: Catalog, folder: Any) -> None:
    await catalog.start()
    await catalog.get("m@stable")

    def read() -> Any:
        raise AssertionError

    folder.aliases = read
    assert (await catalog.get("m@stable")).version == "2"


@pytest.mark.parametrize("name", ["m@", "m@no", "@stable", "other@stable", "m@stable@stable"])
async def test_an_alias_that_is_none_is_not_found(catalog: Catalog, name: str) -> None:
    await catalog.start()
    with pytest.raises(NotFoundError):
        await catalog.get(name)


async def test_an_alias_beside_a_version_is_refused(catalog: Catalog) -> None:
    await catalog.start()
    with pytest.raises(InvalidRequestError, match="a version already"):
        await catalog.get("m@stable", "1")


async def test_an_alias_of_a_version_that_cannot_be_served_moves_and_keeps_no_other_from_moving(catalog: Catalog, folder: Any) -> None:
    await catalog.start()
    folder.damage("m", "3")
    folder.named = {"m": {"broken": "3", "stable": "1"}}
    await catalog.aliases.follow()
    assert (await catalog.get("m@stable")).version == "1"
    with pytest.raises(Exception, match="cannot be served"):
        await catalog.get("m@broken")
