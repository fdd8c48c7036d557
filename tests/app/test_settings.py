from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.connection import _server
from app.registry.workspace import open_store
from app.settings import Settings
from tests.s3 import Server


@pytest.fixture
def s3() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def read(secrets: Path) -> Settings:
    return Settings(_env_file=None, _secrets_dir=secrets)  # type: ignore[call-arg]  # pydantic-settings takes these beside the fields


def test_a_secret_is_read_from_a_file_of_its_name_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "specnorm_database_password").write_text("from a file\n")
    settings = read(tmp_path)
    assert settings.database_password is not None
    assert settings.database_password.get_secret_value() == "from a file"
    assert "from a file" not in repr(settings)


def test_the_environment_outweighs_a_file_and_a_name_without_a_value_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specnorm_blobs_url").write_text("s3://from/file")
    monkeypatch.setenv("SPECNORM_BLOBS_URL", "s3://from/environment")
    monkeypatch.setenv("SPECNORM_DATABASE_URL", "")
    settings = read(tmp_path)
    assert (settings.blobs_url, settings.database_url) == ("s3://from/environment", None)


@pytest.mark.parametrize(("url", "password"), [("postgresql://anna@host/name", "by file"), ("postgresql://anna:own@host/name", "own")])
def test_the_password_goes_into_a_url_that_has_none(url: str, password: str) -> None:
    engine, named = _server(url, "by file")
    assert engine.url.password == password
    assert password not in named


def test_a_bucket_is_reached_with_keys_from_files_alone(tmp_path: Path, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("specnorm_s3_access_key_id", "specnorm_s3_secret_access_key"):
        (tmp_path / name).write_text("by file")
    store = open_store(read(tmp_path).model_copy(update={"blobs_url": s3.bucket()}))
    with store.draft([b"bytes"]) as draft:
        store.settle(draft)
    assert draft.size == len(b"bytes")
