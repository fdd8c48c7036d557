"""A backup that is taken under load holds one moment, whole; it is restored anywhere."""

import io
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.db import blobs, connect
from app.db.copy import read, transfer
from app.errors import ConflictError, CorruptError, InvalidRequestError
from app.registry.backup import backup, restore
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from app.registry.shelf import Shelf
from tests import postgres


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Registry]:
    """An empty workspace on SQLite, whatever the first one is on."""
    engine = connect(tmp_path / "fresh")
    yield Registry(engine, Blobs(tmp_path / "fresh" / "blobs"))
    engine.dispose()


def whole(registry: Registry) -> list[tuple[str, str]]:
    """Every version, each of whose files is what its manifest says; raises otherwise."""
    found = [(model, version) for model in registry.models() for version in registry.versions(model)]
    for model, version in found:
        registry.files(model, version)
    return found


def rows(engine: Engine) -> list[Any]:
    return [line for line in read(engine) if line[0] != "blobs"]


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_a_backup_is_restored_with_every_row_and_file(published: Registry, fresh: Registry, tmp_path: Path, name: str) -> None:
    published.promote("digits", "2", why="better", who="anna")
    published.set_alias("digits", "stable", "1", who="anna")
    Files(published.database, published.blobs, max_bytes=100).create(io.BytesIO(b"a,target\n"), "data.csv", "fine-tune", key="k")
    published.blobs.put(b"nobody names this")
    made = backup(published, tmp_path / name)
    assert restore(fresh, tmp_path / name) == made
    assert made.files == 4
    assert rows(fresh.database) == rows(published.database)
    assert whole(fresh) == [("digits", "1"), ("digits", "2"), ("digits", "3")]
    assert (fresh.live("digits"), fresh.aliases()) == ("2", {"digits": {"stable": "1"}})


def test_a_backup_under_load_is_of_one_moment_and_every_version_in_it_verifies(
    registry: Registry, fresh: Registry, tmp_path: Path, make: Callable[..., Any]
) -> None:
    registry.publish("digits", *make(b"first"))
    over = threading.Event()
    problems: list[BaseException] = []

    def work(name: str) -> None:
        number = 0
        try:
            while not over.is_set():
                number += 1
                version = registry.publish(name, *make(f"{name} {number}".encode()))
                registry.promote(name, version, why="", who="load")
                if number > 2:
                    registry.delete(name, str(number - 2))
                registry.blobs.sweep(older_than=60)
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for number in range(3):
        backup(registry, tmp_path / f"{number}.tar")
    over.set()
    for worker in workers:
        worker.join()
    assert problems == []
    restore(fresh, tmp_path / "2.tar")
    assert ("digits", "1") in whole(fresh)
    for model in fresh.models():
        assert fresh.live(model) is None or fresh.live(model) == fresh.history(model)[-1]["to"]


def test_a_sweep_leaves_alone_what_a_backup_is_about_to_copy(
    published: Registry, fresh: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with published.database.begin() as connection:
        connection.execute(blobs.update().values(touched=0))  # put long ago
    get = Shelf.get

    def after_others_were_at_work(self: Shelf, digest: str) -> bytes:
        for version in published.versions("digits"):
            published.delete("digits", version)
        published.blobs.sweep(older_than=3600)
        return get(self, digest)

    monkeypatch.setattr(Shelf, "get", after_others_were_at_work)
    backup(published, tmp_path / "backup")
    monkeypatch.undo()
    restore(fresh, tmp_path / "backup")
    assert whole(fresh) == [("digits", "1"), ("digits", "2"), ("digits", "3")]


def test_numbers_go_on_where_they_stood(published: Registry, fresh: Registry, tmp_path: Path, make: Callable[..., Any]) -> None:
    backup(published, tmp_path / "backup")
    restore(fresh, tmp_path / "backup")
    assert fresh.publish("digits", *make(b"new")) == "4"


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_a_backup_that_was_changed_or_cut_is_refused_and_nothing_is_restored(
    published: Registry, fresh: Registry, tmp_path: Path, name: str
) -> None:
    backup(published, tmp_path / name)
    changed = tmp_path / "changed"
    if name.endswith(".tar"):
        content = (tmp_path / name).read_bytes()
        changed.write_bytes(content.replace(b"graph 1", b"graph X"))
    else:
        shutil.copytree(tmp_path / name, changed)
        for path in changed.iterdir():
            path.write_bytes(path.read_bytes().replace(b"graph 1", b"graph X"))
    with pytest.raises(CorruptError, match="not what was written"):
        restore(fresh, changed)
    assert fresh.models() == []


def test_what_is_no_backup_is_refused(published: Registry, fresh: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_bytes(b"no archive")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("something"))
    for name in ("empty", "text.tar", "other.tar"):
        with pytest.raises(InvalidRequestError):
            restore(fresh, tmp_path / name)


def test_nothing_is_written_over(published: Registry, fresh: Registry, tmp_path: Path) -> None:
    backup(published, tmp_path / "backup")
    with pytest.raises(ConflictError, match="already"):
        backup(published, tmp_path / "backup")
    restore(fresh, tmp_path / "backup")
    with pytest.raises(ConflictError, match="empty database"):
        restore(fresh, tmp_path / "backup")


def test_a_backup_that_fails_leaves_nothing(published: Registry, tmp_path: Path) -> None:
    for path in (tmp_path / "blobs" / "sha256").iterdir():
        path.unlink()
    with pytest.raises(CorruptError):
        backup(published, tmp_path / "backup")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("backup")]


if postgres.found():

    def test_sqlite_is_copied_to_postgresql_with_every_row_and_goes_on_there(
        tmp_path: Path, postgres_server: postgres.Server, make: Callable[..., Any]
    ) -> None:
        old = connect(tmp_path)
        registry = Registry(old, Blobs(tmp_path / "blobs"))
        files = Files(old, registry.blobs, max_bytes=100)
        for number in range(3):
            registry.publish("digits", *make(b"graph %d" % number))
            files.create(io.BytesIO(b"%d" % number), "data.csv", "fine-tune")
        registry.promote("digits", "2", why="", who="anna")
        new = connect(tmp_path, postgres_server.database())
        assert transfer(old, new) == len(list(read(old)))
        assert list(read(new)) == list(read(old))
        moved = Registry(new, Blobs(tmp_path / "blobs"))
        assert whole(moved) == whole(registry)
        moved.promote("digits", "3", why="", who="anna")
        Files(new, moved.blobs, max_bytes=100).create(io.BytesIO(b"more"), "data.csv", "fine-tune")
        assert [line["to"] for line in moved.history("digits")] == ["2", "3"]
        with pytest.raises(ConflictError):
            transfer(old, new)
        old.dispose()
        new.dispose()
