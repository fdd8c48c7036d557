"""Uploads: what is taken, what is refused, and how they are listed."""

import io
from pathlib import Path

import pytest

from app.db import connect
from app.errors import ConflictError, InvalidRequestError, NotFoundError, TooLargeError
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.shelf import Shelf


@pytest.fixture
def files(tmp_path: Path, database_url: str | None):
    engine = connect(tmp_path, database_url)
    yield Files(engine, Shelf(engine, Blobs(tmp_path / "blobs")), max_bytes=1000)
    engine.dispose()


def upload(files: Files, name: str = "data.csv", content: bytes = b"a,target\n1,0\n", **options: str) -> dict:
    return files.create(io.BytesIO(content), name, "fine-tune", **options)


def test_an_upload_is_given_back_as_it_came(files: Files) -> None:
    made = upload(files)
    assert made == files.get(made["id"])
    assert (made["bytes"], made["filename"], made["object"], made["status"]) == (13, "data.csv", "file", "processed")
    with files.open(made["id"]) as content:
        assert content.read() == b"a,target\n1,0\n"


def test_content_is_not_judged_at_upload(files: Files) -> None:
    assert upload(files, "data.npz", b"\x80\x04no zip at all")["bytes"] == 15


@pytest.mark.parametrize("name", ["data.pkl", "data.npy", "data.pt", "data.csv.pickle", "data", "", "csv"])
def test_a_format_that_is_not_known_by_its_extension_is_refused_with_those_that_are(files: Files, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"\.csv .*\.jsonl .*\.npz"):
        upload(files, name)


def test_a_path_in_a_file_name_is_cut_off(files: Files) -> None:
    assert upload(files, "../../etc/data.CSV")["filename"] == "data.CSV"
    assert upload(files, "C:\\data\\rows.csv")["filename"] == "rows.csv"


def test_an_upload_over_the_limit_leaves_nothing(files: Files, tmp_path: Path) -> None:
    upload(files, content=b"x" * 1000)
    with pytest.raises(TooLargeError):
        upload(files, content=b"y" * 1001)
    assert len(list((tmp_path / "blobs" / "sha256").iterdir())) == 1
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []


def test_the_cursor_is_exclusive_and_every_file_is_listed_once(files: Files) -> None:
    made = [upload(files, f"{number}.csv")["id"] for number in range(5)]
    seen, after, more = [], None, True
    while more:
        page, more = files.list(after=after, limit=2)
        seen += [item["id"] for item in page]
        after = seen[-1]
    assert seen == made[::-1]
    assert [item["id"] for item in files.list(order="asc", limit=3).items] == made[:3]
    with pytest.raises(InvalidRequestError):
        files.list(after="file-unknown")


def test_the_same_key_makes_one_file_and_another_request_under_it_is_refused(files: Files) -> None:
    assert upload(files, key="k")["id"] == upload(files, key="k")["id"]
    with pytest.raises(ConflictError):
        upload(files, content=b"another", key="k")
    assert len(files.list().items) == 1


def test_a_deleted_file_is_gone(files: Files) -> None:
    made = upload(files)["id"]
    files.delete(made)
    for act in (files.get, files.open, files.delete):
        with pytest.raises(NotFoundError):
            act(made)


def test_a_purpose_that_nothing_here_serves_is_refused(files: Files) -> None:
    with pytest.raises(InvalidRequestError, match="fine-tune"):
        files.create(io.BytesIO(b""), "data.csv", "assistants")
