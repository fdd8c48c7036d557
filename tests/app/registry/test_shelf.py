"""What is stored and named stays, what nobody names goes: with writers at work, with clocks that jump, within a quota."""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.db import blobs, connect, reading
from app.errors import CorruptError, NotFoundError, QuotaError, StorageFullError, UnavailableError
from app.jobs.admissions import Admissions
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from app.registry.shelf import Shelf, hold
from export.bundle import digest


def test_what_no_row_names_is_removed_once_it_is_old_and_the_rest_stays(published: Registry) -> None:
    orphan = published.blobs.put(b"a crash came before the row")
    assert published.blobs.sweep() == []  # too young: its row may be about to be committed
    assert published.blobs.sweep(older_than=0) == [orphan.digest]
    assert [published.artifact("digits", version).model for version in ("1", "2", "3")] == [b"graph 1", b"graph 2", b"graph 3"]
    with pytest.raises(NotFoundError):
        published.blobs.get(orphan.digest)


def test_an_upload_and_a_model_that_waits_to_be_judged_stay(registry: Registry) -> None:
    file = Files(registry.database, registry.blobs, max_bytes=100)
    made = file.create(io.BytesIO(b"a,target\n"), "data.csv", "fine-tune")["id"]
    waiting = registry.blobs.put(b"from elsewhere")
    admissions = Admissions(registry.database)
    name = admissions.create("m", {"m.onnx": waiting})["id"]
    assert registry.blobs.sweep(older_than=0) == []
    admissions.withdraw(name, "nobody came")
    file.delete(made)
    assert sorted(registry.blobs.sweep(older_than=0)) == sorted([waiting.digest, digest(b"a,target\n")])


def test_bytes_without_a_row_are_taken_in_and_then_go_like_any_other(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256" / digest(b"stray")).write_bytes(b"stray")
    assert registry.blobs.sweep() == []
    assert registry.blobs.used() == 5
    assert registry.blobs.sweep(older_than=0) == [digest(b"stray")]
    assert registry.blobs.used() == 0


def test_a_writer_who_slept_through_a_sweep_is_refused(registry: Registry, make: Callable[..., Any]) -> None:
    late = registry.blobs.put(b"graph")
    registry.blobs.sweep(older_than=-3600)  # as after a jump of the clock
    with pytest.raises(UnavailableError, match="send it again"), registry.database.begin() as connection:
        hold(connection, late)
    registry.publish("digits", *make(b"graph"))  # the same bytes come again, under another mark
    with pytest.raises(UnavailableError), registry.database.begin() as connection:
        hold(connection, late)
    assert registry.artifact("digits", "1").model == b"graph"


def test_a_publication_that_a_sweep_overtakes_is_refused_whole(
    registry: Registry, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Blobs.settle

    def overtaken(self: Blobs, draft: Any) -> None:
        settle(self, draft)
        registry.blobs.sweep(older_than=-3600)

    monkeypatch.setattr(Blobs, "settle", overtaken)
    with pytest.raises(UnavailableError):
        registry.publish("digits", *make(b"graph"))
    assert registry.models() == []


def test_nothing_that_is_named_is_ever_missing_while_sweeps_and_publications_race(
    tmp_path: Path, database_url: str | None, make: Callable[..., Any]
) -> None:
    """A sweep without grace in a process of its own, against threads that publish, delete and upload the same few contents."""
    engine = connect(tmp_path, database_url)
    registry = Registry(engine, Blobs(tmp_path / "blobs"))
    files = Files(engine, registry.blobs, max_bytes=100)
    sweep = (
        "import sys; from pathlib import Path; from app.db import connect; from app.registry.blobs import Blobs;"
        "from app.registry.shelf import Shelf; folder = Path(sys.argv[1]);"
        "shelf = Shelf(connect(folder, *sys.argv[2:]), Blobs(folder / 'blobs'))\n"
        "print('ready', flush=True)\n"
        "while not (folder / 'over').exists(): shelf.sweep(older_than=-60)"
    )
    arguments = [str(tmp_path), *([] if database_url is None else [database_url])]
    sweeper = subprocess.Popen([sys.executable, "-c", sweep, *arguments], stdout=subprocess.PIPE)
    assert sweeper.stdout is not None
    sweeper.stdout.readline()
    outcomes: list[str] = []
    problems: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(12):
                try:
                    version = registry.publish(f"m{number}", *make(b"graph %d" % (turn % 3)))
                except UnavailableError:
                    outcomes.append("refused")
                    continue
                assert registry.artifact(f"m{number}", version).model == b"graph %d" % (turn % 3)
                outcomes.append("published")
                registry.delete(f"m{number}", version)
                try:
                    name = files.create(io.BytesIO(b"graph %d" % (turn % 3)), "data.csv", "fine-tune")["id"]
                except UnavailableError:
                    continue
                with files.open(name) as content:
                    assert content.read() == b"graph %d" % (turn % 3)
                files.delete(name)
        except BaseException as error:
            problems.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (tmp_path / "over").touch()
    assert sweeper.wait() == 0
    sweeper.stdout.close()
    assert problems == []
    assert outcomes.count("published") > 0
    engine.dispose()


def test_a_quota_refuses_what_goes_past_it_and_keeps_nothing_of_it(database: Any, tmp_path: Path) -> None:
    shelf = Shelf(database, Blobs(tmp_path / "blobs"), quota=100)
    first = shelf.put(b"x" * 60)
    for content in (b"y" * 41, iter([b"y" * 20, b"y" * 30])):
        with pytest.raises(QuotaError, match="quota of 100 bytes"):
            shelf.put(content)
    assert shelf.put(b"z" * 40).size == 40
    assert shelf.used() == 100
    assert os.listdir(tmp_path / "blobs" / "tmp") == []
    assert len(os.listdir(tmp_path / "blobs" / "sha256")) == 2
    with database.begin() as connection:
        hold(connection, first)
    shelf.sweep(older_than=0)
    assert shelf.put(b"w" * 100).size == 100
    assert issubclass(QuotaError, StorageFullError)


def test_writers_at_once_do_not_pass_the_quota_together(database: Any, tmp_path: Path) -> None:
    shelf = Shelf(database, Blobs(tmp_path / "blobs"), quota=100)
    refused: list[int] = []

    def put(number: int) -> None:
        try:
            shelf.put(bytes([number]) * 30)
        except QuotaError:
            refused.append(number)

    writers = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (len(refused), shelf.used()) == (5, 90)


def test_a_file_put_again_is_young_again_and_keeps_its_mark(registry: Registry) -> None:
    first = registry.blobs.put(b"content")
    with registry.database.begin() as connection:
        connection.execute(blobs.update().values(touched=0))
    assert registry.blobs.put(b"content") == first
    assert registry.blobs.sweep(older_than=3600) == []
    with reading(registry.database) as connection:
        assert time.time() - (connection.scalar(select(blobs.c.touched)) or 0) < 3600


def test_a_draft_left_by_a_crash_is_removed_and_one_being_written_is_not(registry: Registry, tmp_path: Path) -> None:
    drafts = tmp_path / "blobs" / "tmp"
    (drafts / "left").write_bytes(b"half")
    present: list[list[str]] = []

    def chunks() -> Any:
        yield b"one"
        registry.blobs.sweep()
        present.append(os.listdir(drafts))
        yield b"two"

    assert registry.blobs.get(registry.blobs.put(chunks()).digest) == b"onetwo"
    assert len(present[0]) == 1
    assert "left" not in present[0]
    assert os.listdir(drafts) == []


def test_an_upload_that_breaks_off_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    def chunks() -> Any:
        yield b"one"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        registry.blobs.put(chunks())
    assert os.listdir(tmp_path / "blobs" / "tmp") == os.listdir(tmp_path / "blobs" / "sha256") == []
    assert registry.blobs.used() == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63])
def test_only_a_sha256_names_a_stored_file(tmp_path: Path, name: str) -> None:
    store = Blobs(tmp_path)
    for act in (store.get, store.open, store.delete):
        with pytest.raises(NotFoundError):
            act(name)


def test_bytes_that_changed_on_the_disk_are_told_and_healed_by_the_same_bytes(registry: Registry, tmp_path: Path) -> None:
    stored = registry.blobs.put(b"content")
    (tmp_path / "blobs" / "sha256" / stored.digest).write_bytes(b"Content")
    with pytest.raises(CorruptError):
        registry.blobs.get(stored.digest)
    registry.blobs.put(b"content")
    assert registry.blobs.get(stored.digest) == b"content"
