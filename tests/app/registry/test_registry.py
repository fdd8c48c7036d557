"""Real SQLite and real files in a temporary folder."""

import threading
from pathlib import Path

import pytest

from app.db import DATABASE, connect
from app.errors import ConflictError, CorruptError, InvalidRequestError, NotFoundError
from app.registry.blobs import Blobs
from app.registry.live import undo
from app.registry.registry import Registry
from export.bundle import digest
from tests.app.registry.conftest import bundle as make


def publish(registry: Registry, count: int, model: str = "digits") -> None:
    for number in range(count):
        registry.publish(model, *make(b"graph %d" % number))


def test_a_published_version_gives_back_its_bytes_and_its_manifest(registry: Registry) -> None:
    manifest, files = make(b"graph")
    assert registry.publish("digits", manifest, files) == "1"
    artifact = registry.artifact("digits", "1")
    assert (artifact.manifest, artifact.model) == (manifest, b"graph")
    assert registry.live("digits") is None


def test_the_same_job_publishes_once(registry: Registry) -> None:
    assert [registry.publish("digits", *make(), job="ftjob-1") for _ in range(2)] == ["1", "1"]
    assert registry.versions("digits") == ["1"]


def test_what_runs_within_the_publication_can_undo_it(registry: Registry) -> None:
    def refuse(_connection: object, _version: str) -> None:
        raise ConflictError("fenced")

    with pytest.raises(ConflictError):
        registry.publish("digits", *make(), within=refuse)
    assert registry.models() == []


def test_version_numbers_are_never_used_again(registry: Registry) -> None:
    publish(registry, 3)
    registry.delete("digits", "3")
    assert registry.publish("digits", *make()) == "4"


def test_files_that_are_not_those_of_the_manifest_are_refused(registry: Registry) -> None:
    manifest, _ = make(b"graph")
    with pytest.raises(InvalidRequestError):
        registry.publish("digits", manifest, {"model.onnx": b"another"})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a" * 65, "ä", "a\n", "a b"])
def test_a_name_that_could_be_a_path_is_no_model_name(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        registry.publish(name, *make())


@pytest.mark.parametrize("version", ["0", "01", "2", "-1", "1.0", "latest", "١", "9" * 40, ""])
def test_a_version_that_is_not_there_is_not_found(registry: Registry, version: str) -> None:
    publish(registry, 1)
    with pytest.raises(NotFoundError):
        registry.artifact("digits", version)


def test_a_flipped_bit_is_told_and_not_served(registry: Registry, tmp_path: Path) -> None:
    publish(registry, 1)
    (path,) = (tmp_path / "blobs" / "sha256").iterdir()
    path.write_bytes(b"Graph 0")
    with pytest.raises(CorruptError, match=r"model\.onnx of digits:1"):
        registry.artifact("digits", "1")
    registry.publish("digits", *make(b"graph 0"))
    assert registry.artifact("digits", "1").model == b"graph 0"  # the same bytes, stored again, heal it


def test_a_changed_manifest_is_told_and_the_other_versions_still_listed(registry: Registry) -> None:
    publish(registry, 2)
    with registry.database.begin() as connection:
        connection.exec_driver_sql("UPDATE versions SET manifest = replace(manifest, '\"bound\":1.0', '\"bound\":0.1') WHERE version = 1")
    with pytest.raises(CorruptError):
        registry.manifest("digits", "1")
    first, second = registry.describe("digits")
    assert "corrupt" in first
    assert second["lipschitz_bound"] == 1.0


def test_promotion_and_rollback_move_one_pointer_and_keep_its_history(registry: Registry) -> None:
    publish(registry, 3)
    assert registry.promote("digits", "1", why="first", who="anna") is None
    assert registry.promote("digits", "2", why="better", who="anna") == "1"
    assert registry.promote("digits", "2", why="again", who="anna") == "2"
    assert registry.promote("digits", "3", why="best", who="ftjob-1") == "2"
    assert registry.rollback("digits", who="bela") == ("2", "3")
    assert registry.rollback("digits", who="bela") == ("1", "2")
    with pytest.raises(ConflictError):
        registry.rollback("digits", who="bela")
    assert registry.live("digits") == "1"
    lines = [(line["what"], line["who"], line["from"], line["to"]) for line in registry.history("digits")]
    assert lines == [
        ("promote", "anna", None, "1"),
        ("promote", "anna", "1", "2"),
        ("promote", "ftjob-1", "2", "3"),
        ("rollback", "bela", "3", "2"),
        ("rollback", "bela", "2", "1"),
    ]


def test_rollback_passes_over_versions_that_were_deleted(registry: Registry) -> None:
    publish(registry, 3)
    for version in ("1", "2", "3"):
        registry.promote("digits", version, why="", who="anna")
    registry.delete("digits", "2")
    assert registry.rollback("digits", who="anna") == ("1", "3")


def test_a_rollback_to_what_is_no_longer_the_version_before_is_refused(registry: Registry) -> None:
    publish(registry, 3)
    for version in ("1", "2"):
        registry.promote("digits", version, why="", who="anna")
    expected = registry.previous("digits")
    registry.promote("digits", "3", why="", who="bela")
    with pytest.raises(ConflictError):
        registry.rollback("digits", who="anna", expected=expected)
    assert registry.live("digits") == "3"


def test_undo_is_a_stack() -> None:
    assert undo([]) == []
    assert undo([("promote", "1")]) == []
    assert undo([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("promote", "3")]) == ["1"]


def test_a_live_version_and_a_parent_are_not_deleted(registry: Registry) -> None:
    publish(registry, 2)
    registry.publish("digits", *make(), parent="1")
    registry.publish("other", *make(), parent="digits:2")
    registry.promote("digits", "3", why="", who="anna")
    for version in ("1", "2", "3"):
        with pytest.raises(ConflictError):
            registry.delete("digits", version)
    assert registry.versions("digits") == ["1", "2", "3"]


def test_promotions_at_once_are_put_in_a_row(registry: Registry) -> None:
    publish(registry, 8)
    threads = [
        threading.Thread(target=registry.promote, args=("digits", str(number)), kwargs={"why": "", "who": "anna"}) for number in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = registry.history("digits")
    assert len(lines) == 8
    assert [line["from"] for line in lines] == [None, *(line["to"] for line in lines[:-1])]
    assert registry.live("digits") == lines[-1]["to"]


def test_a_file_that_is_no_database_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"garbage" * 1000)
    with pytest.raises(CorruptError, match="file is not a database"):
        connect(tmp_path)


def test_a_workspace_that_lost_its_database_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    Blobs(tmp_path / "blobs")
    (tmp_path / "blobs" / "sha256" / digest(b"content")).write_bytes(b"content")
    (tmp_path / DATABASE).touch()
    with pytest.raises(CorruptError, match="missing or empty"):
        connect(tmp_path)


def test_sqlite_is_durable_and_enforces_foreign_keys(tmp_path: Path) -> None:
    database = connect(tmp_path)
    with database.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]
    database.dispose()
    assert found == ["wal", 2, 1]
