"""`digits@stable`: one version behind a name, moved in one step, kept while it is named."""

import threading

import pytest

from app.errors import ConflictError, InvalidRequestError, NotFoundError
from app.registry.registry import Registry


def test_an_alias_is_set_moved_and_removed(published: Registry) -> None:
    assert published.set_alias("digits", "stable", "1", who="anna") is None
    assert published.set_alias("digits", "canary", "3", who="anna") is None
    assert published.set_alias("digits", "stable", "2", who="bela") == "1"
    assert published.aliases() == {"digits": {"canary": "3", "stable": "2"}}
    assert published.remove_alias("digits", "canary") == "3"
    assert published.aliases() == {"digits": {"stable": "2"}}


def test_a_name_is_resolved_by_alias_version_or_what_is_live(published: Registry) -> None:
    published.set_alias("digits", "stable", "2", who="anna")
    assert published.resolve("digits@stable") == ("digits", "2")
    assert published.resolve("digits:3") == ("digits", "3")
    assert published.resolve("digits") == ("digits", None)
    published.promote("digits", "1", why="", who="anna")
    assert published.resolve("digits") == ("digits", "1")


@pytest.mark.parametrize("name", ["digits@gone", "gone@stable", "digits:9", "digits:", "digits@", "gone", "digits@stable@stable"])
def test_what_names_nothing_is_not_found(published: Registry, name: str) -> None:
    published.set_alias("digits", "stable", "2", who="anna")
    with pytest.raises(NotFoundError):
        published.resolve(name)


@pytest.mark.parametrize("alias", ["", "3", "3a", "-x", "a b", "a/b", "a@b", "a" * 65, "ä", "a\n"])
def test_an_alias_that_could_be_taken_for_a_version_or_a_path_is_refused(published: Registry, alias: str) -> None:
    with pytest.raises(InvalidRequestError):
        published.set_alias("digits", alias, "1", who="anna")


def test_only_a_version_that_exists_gets_an_alias(published: Registry) -> None:
    for model, version in (("digits", "4"), ("gone", "1")):
        with pytest.raises(NotFoundError):
            published.set_alias(model, "stable", version, who="anna")
    with pytest.raises(NotFoundError):
        published.remove_alias("digits", "stable")
    assert published.aliases() == {}


def test_an_aliased_version_is_not_deleted_until_its_alias_moves(published: Registry) -> None:
    published.set_alias("digits", "stable", "2", who="anna")
    with pytest.raises(ConflictError, match="digits@stable"):
        published.delete("digits", "2")
    published.set_alias("digits", "stable", "3", who="anna")
    published.delete("digits", "2")
    assert published.versions("digits") == ["1", "3"]


def test_whoever_looks_while_an_alias_moves_finds_one_of_its_versions(published: Registry) -> None:
    published.set_alias("digits", "stable", "1", who="anna")
    found: set[str | None] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            found.add(published.resolve("digits@stable")[1])

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    before = [published.set_alias("digits", "stable", version, who="anna") for version in ("2", "3", "2", "3", "1")]
    over.set()
    for thread in looking:
        thread.join()
    assert before == ["1", "2", "3", "2", "3"]
    assert found <= {"1", "2", "3"}
