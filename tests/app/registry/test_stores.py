"""A folder and a bucket, held to the same: whole or absent, checked when read, healed when put again."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine

from app.db import connect
from app.errors import CorruptError, InvalidRequestError, NotFoundError, QuotaError, UnavailableError
from app.registry.backup import backup, restore
from app.registry.blobs import Blobs
from app.registry.bucket import Bucket
from app.registry.registry import Registry
from app.registry.shelf import Shelf
from app.registry.store import Store
from app.registry.workspace import open_registry, open_store
from app.settings import Settings
from export.bundle import digest
from tests import s3


class Place(NamedTuple):
    store: Store
    settings: Settings
    change: Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Server]:
    server = s3.Server()
    yield server
    server.close()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        settings = Settings(workspace=tmp_path)
        return Place(open_store(settings), settings, lambda name, content: (tmp_path / "blobs/sha256" / name).write_bytes(content))
    server: s3.Server = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = server.bucket()
    settings = Settings(workspace=tmp_path, blobs_url=url)
    return Place(open_store(settings), settings, lambda name, content: server.change(url, name, content))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def shelf(database: Engine, place: Place) -> Shelf:
    return Shelf(database, place.store)


@pytest.mark.parametrize("size", [0, 1, 5 << 20, (8 << 20) + 1])
def test_what_is_put_comes_back(shelf: Shelf, size: int) -> None:
    content = os.urandom(size)
    stored = shelf.put(content)
    assert (stored.digest, stored.size) == (digest(content), size)
    assert shelf.get(stored.digest) == content
    assert shelf.put(content) == stored


def test_a_draft_is_not_seen_before_it_is_settled_nor_after_it_was_given_up(place: Place) -> None:
    with place.store.draft([b"one", b"two"]) as draft:
        assert list(place.store.all()) == []
    with pytest.raises(NotFoundError):
        place.store.get(draft.digest)
    with place.store.draft([b"one", b"two"]) as draft:
        place.store.settle(draft)
    assert list(place.store.all()) == [(digest(b"onetwo"), 6)]


def test_an_upload_that_breaks_off_leaves_nothing(shelf: Shelf, place: Place) -> None:
    def chunks() -> Any:
        yield b"one"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        shelf.put(chunks())
    assert list(place.store.all()) == []
    assert shelf.used() == 0


def test_changed_bytes_are_told_and_healed_by_the_same_bytes(shelf: Shelf, place: Place) -> None:
    stored = shelf.put(b"content")
    place.change(stored.digest, b"Content")
    with pytest.raises(CorruptError):
        shelf.get(stored.digest)
    shelf.put(b"content")
    assert shelf.get(stored.digest) == b"content"


def test_what_nobody_names_is_swept_and_a_stray_is_taken_in_first(shelf: Shelf, place: Place) -> None:
    stored = shelf.put(b"content")
    place.change(digest(b"stray"), b"stray")
    assert shelf.sweep() == []
    assert shelf.used() == 12
    assert sorted(shelf.sweep(older_than=0)) == sorted([stored.digest, digest(b"stray")])
    assert list(place.store.all()) == []
    place.store.delete(stored.digest)  # what is gone may be removed again
    with pytest.raises(NotFoundError):
        shelf.get(stored.digest)


def test_a_quota_holds(database: Engine, place: Place) -> None:
    shelf = Shelf(database, place.store, quota=10)
    shelf.put(b"x" * 6)
    with pytest.raises(QuotaError):
        shelf.put(b"y" * 5)
    assert shelf.used() == 6


def test_only_a_sha256_names_a_stored_file(place: Place) -> None:
    for name in ("../../etc/passwd", "", "A" * 64, "0" * 63):
        for act in (place.store.get, place.store.open, place.store.delete):
            with pytest.raises(NotFoundError):
                act(name)


def test_a_large_upload_takes_little_memory(place: Place) -> None:
    chunk = os.urandom(1 << 20)
    tracemalloc.start()
    with place.store.draft(chunk for _ in range(40)) as draft:
        place.store.settle(draft)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert draft.size == 40 << 20
    assert peak < 8 << 20


def test_a_large_file_is_read_in_little_memory_and_to_its_end_though_it_is_removed_meanwhile(place: Place) -> None:
    chunk = os.urandom(1 << 20)
    with place.store.draft(chunk for _ in range(40)) as draft:
        place.store.settle(draft)
    tracemalloc.start()
    with place.store.open(draft.digest) as stream:
        place.store.delete(draft.digest)
        assert all(stream.read(1 << 20) == chunk for _ in range(40))
        assert stream.read() == b""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    with pytest.raises(NotFoundError):
        place.store.open(draft.digest)


def test_changed_bytes_are_told_before_the_first_of_them_is_read(shelf: Shelf, place: Place) -> None:
    stored = shelf.put(b"content")
    place.change(stored.digest, b"Content")
    with pytest.raises(CorruptError):
        shelf.open(stored.digest)


def test_a_registry_publishes_backs_up_and_restores_there(place: Place, tmp_path: Path, make: Callable[..., Any]) -> None:
    registry = open_registry(place.settings)
    registry.publish("digits", *make(b"graph"))
    assert registry.artifact("digits", "1").model == b"graph"
    assert (tmp_path / "blobs").exists() is isinstance(place.store, Blobs)
    backup(registry, tmp_path / "backup.tar")
    registry.database.dispose()
    engine = connect(tmp_path / "fresh")
    fresh = Registry(engine, Blobs(tmp_path / "fresh" / "blobs"))
    restore(fresh, tmp_path / "backup.tar")
    assert fresh.artifact("digits", "1").model == b"graph"
    engine.dispose()


def test_a_bucket_that_is_not_there_is_told_in_one_sentence(server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match="bucket cannot be used") as told, Bucket("s3://no-such-bucket").draft([b"x"]):
        pass
    assert "\n" not in str(told.value)


def test_a_url_of_another_kind_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="one of: s3"):
        open_store(Settings(workspace=tmp_path, blobs_url="ftp://somewhere"))
