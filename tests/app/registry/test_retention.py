"""Old versions go; whatever somebody depends on stays."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from app.db import versions
from app.registry.registry import Registry
from app.registry.retention import Retention


@pytest.fixture
def eight(registry: Registry, make: Callable[..., Any]) -> Registry:
    for number in range(1, 9):
        registry.publish("digits", *make(b"graph %d" % number))
    return registry


def test_the_newest_versions_are_kept(eight: Registry) -> None:
    assert Retention(versions=3).apply(eight) == [("digits", version) for version in ("5", "4", "3", "2", "1")]
    assert eight.versions("digits") == ["6", "7", "8"]
    assert Retention(versions=3).apply(eight) == []


def test_without_a_limit_nothing_goes(eight: Registry) -> None:
    assert Retention().apply(eight, now=1e12) == []
    assert len(eight.versions("digits")) == 8


def test_what_is_live_aliased_a_parent_or_the_target_of_a_rollback_stays(eight: Registry, make: Callable[..., Any]) -> None:
    eight.publish("other", *make(), parent="digits:4")
    for version in ("1", "2", "3"):
        eight.promote("digits", version, why="", who="anna")
    eight.set_alias("digits", "stable", "5", who="anna")
    Retention(versions=1).apply(eight)
    assert eight.versions("digits") == ["2", "3", "4", "5", "8"]  # rollback, live, parent, alias, newest
    assert eight.rollback("digits", who="anna") == ("2", "3")


def test_a_chain_of_parents_goes_from_its_end(registry: Registry, make: Callable[..., Any]) -> None:
    for number in range(1, 6):
        registry.publish("digits", *make(), parent=None if number == 1 else str(number - 1))
    Retention(versions=2).apply(registry)
    assert registry.versions("digits") == ["1", "2", "3", "4", "5"]  # all are origins of what is kept
    registry.publish("digits", *make())
    Retention(versions=1).apply(registry)
    assert registry.versions("digits") == ["6"]


def test_a_version_goes_when_it_is_old_enough(eight: Registry) -> None:
    with eight.database.begin() as connection:
        connection.execute(update(versions).where(versions.c.version <= 3).values(created=1000))
        connection.execute(update(versions).where(versions.c.version > 3).values(created=5000))
    assert Retention(seconds=3000).apply(eight, now=4000.5) == [("digits", version) for version in ("3", "2", "1")]
    assert Retention(seconds=3000).apply(eight, now=5000) == []
