"""Idempotency keys: fifty senders of one request make one thing, and all hear the same of it."""

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from app.db import idempotency
from app.errors import ConflictError, InvalidRequestError
from app.registry.files import Files
from app.registry.once import KEPT_SECONDS, forget
from app.registry.registry import Registry

SENDERS = 50


def at_once(act: Callable[[], Any]) -> list[Any]:
    answers: list[Any] = []
    start = threading.Barrier(SENDERS)

    def send() -> None:
        start.wait()
        try:
            answers.append(act())
        except Exception as error:
            answers.append(error)

    senders = [threading.Thread(target=send) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return answers


def test_fifty_promotions_under_one_key_are_one_and_hear_the_same(published: Registry) -> None:
    published.promote("digits", "1", why="", who="anna")
    assert at_once(lambda: published.promote("digits", "2", why="", who="anna", key="k")) == ["1"] * SENDERS
    assert len(published.history("digits")) == 2


def test_fifty_rollbacks_under_one_key_go_back_once(published: Registry) -> None:
    for version in ("1", "2", "3"):
        published.promote("digits", version, why="", who="anna")
    assert at_once(lambda: published.rollback("digits", who="anna", key="k")) == [("2", "3")] * SENDERS
    assert published.live("digits") == "2"
    assert published.rolled_back("digits", "k") == ("2", "3")
    assert published.rolled_back("digits", "other") is None


def test_fifty_uploads_under_one_key_are_one_file(registry: Registry) -> None:
    files = Files(registry.database, registry.blobs, max_bytes=100)
    made = at_once(lambda: files.create(io.BytesIO(b"a,target\n"), "data.csv", "fine-tune", key="k")["id"])
    assert len(set(made)) == 1
    assert len(files.list().items) == 1


def test_a_promotion_is_told_again_and_not_done_again_after_another(published: Registry) -> None:
    published.promote("digits", "1", why="", who="anna", key="k")
    published.promote("digits", "2", why="", who="anna")
    assert published.promote("digits", "1", why="", who="anna", key="k") is None
    assert published.live("digits") == "2"


def test_a_key_of_another_request_is_refused(published: Registry) -> None:
    published.promote("digits", "1", why="", who="anna", key="k")
    with pytest.raises(ConflictError, match="take a new key"):
        published.promote("digits", "2", why="", who="anna", key="k")
    assert published.live("digits") == "1"


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_a_length(published: Registry, key: str) -> None:
    with pytest.raises(InvalidRequestError):
        published.promote("digits", "1", why="", who="anna", key=key)


def test_a_promotion_that_fails_leaves_its_key_free(published: Registry) -> None:
    with pytest.raises(Exception, match="no version"):
        published.promote("digits", "9", why="", who="anna", key="k")
    assert published.promote("digits", "1", why="", who="anna", key="k") is None


def test_a_key_is_forgotten_after_a_day_and_not_before(published: Registry) -> None:
    published.promote("digits", "1", why="", who="anna", key="k")
    published.promote("digits", "2", why="", who="anna", key="l")
    with published.database.begin() as connection:
        old = idempotency.c.at - int(KEPT_SECONDS)
        connection.execute(update(idempotency).where(idempotency.c.key == "k").values(at=old))
        connection.execute(update(idempotency).where(idempotency.c.key == "l").values(at=old + 60))
    assert forget(published.database) == 1
    assert published.promote("digits", "2", why="", who="anna", key="l") == "1"
    assert published.promote("digits", "1", why="", who="anna", key="k") == "2"
