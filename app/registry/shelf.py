"""The stored files of a workspace: their bytes in a store, and in the database which there are, how large, and what names them.

A file comes in three steps: its bytes are drafted; a row with a random mark is entered; the bytes are made visible.
Whoever then writes the digest into a row of his own asks for that mark in the same transaction (:func:`hold`). A sweep
removes bytes and row in one transaction, and a digest that comes back gets another mark. So a file that was swept
while its writer slept, however long and whatever the clocks said, is refused by the writer's transaction; none is ever
named and missing. The age that a sweep asks for only keeps such refusals rare.
"""

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, func, insert, select, update

from app.db import admissions, blobs, files, job_checkpoints, reading, version_files
from app.errors import QuotaError, UnavailableError
from app.registry.store import Draft, Store

GRACE_SECONDS = 24 * 3600.0

_NAMING = (version_files.c.digest, files.c.digest, job_checkpoints.c.digest)


class Stored(NamedTuple):
    """A file that was put, and the mark under which it was; it stays only once a row names it."""

    digest: str
    size: int
    mark: str


class Shelf:
    """The stored files of a workspace, at most ``quota`` bytes in all where that is given."""

    def __init__(self, database: Engine, store: Store, *, quota: int | None = None) -> None:
        self.store = store
        self._database = database
        self._quota = quota

    def put(self, content: bytes | Iterable[bytes]) -> Stored:
        """Store ``content``. A row is to name it soon, in a transaction that calls :func:`hold`.

        Raises:
            StorageFullError: the disk is full, or the quota reached (QuotaError); nothing was kept.
        """
        with self.store.draft(self._bounded([content] if isinstance(content, bytes) else content)) as draft:
            stored = self._enter(draft)
            self.store.settle(draft)
        return stored

    def get(self, digest: str) -> bytes:
        """Return the bytes whose sha256 is ``digest``, checked.

        Raises:
            NotFoundError: there are none.
            CorruptError: what is stored has another sha256.
        """
        return self.store.get(digest)

    def open(self, digest: str) -> BinaryIO:
        """Return the same bytes as :meth:`get`, checked as they are there, as a file to be read and closed."""
        return self.store.open(digest)

    def used(self) -> int:
        """Return how many bytes are stored."""
        with reading(self._database) as connection:
            return _used(connection)

    def sweep(self, *, older_than: float = GRACE_SECONDS) -> list[str]:
        """Remove what no row names and nobody put within so many seconds, and what a crash left; return the removed digests."""
        self.store.tidy()
        self._adopt()
        limit = int(time.time() - older_than)
        with reading(self._database) as connection:
            old = list(connection.scalars(select(blobs.c.digest).where(blobs.c.touched <= limit, _unnamed())))
        return [digest for digest in old if self._remove(digest, limit)]

    def _remove(self, digest: str, limit: int) -> bool:
        with self._database.begin() as connection:  # whoever puts the same bytes waits, and then finds no row
            gone = delete(blobs).where(blobs.c.digest == digest, blobs.c.touched <= limit, _unnamed())
            if digest in _awaited(connection) or not connection.execute(gone).rowcount:
                return False
            self.store.delete(digest)
        return True

    def _adopt(self) -> None:
        """Enter bytes that have no row: a crash came between, or an earlier release stored them. They are young from now on."""
        with reading(self._database) as connection:
            known = set(connection.scalars(select(blobs.c.digest)))
        for digest, size in self.store.all():
            if digest not in known:
                self._enter(Draft(digest, size, ""), bounded=False)

    def _enter(self, draft: Draft, *, bounded: bool = True) -> Stored:
        now = int(time.time())
        with self._database.begin() as connection:
            mark = connection.scalar(select(blobs.c.mark).where(blobs.c.digest == draft.digest))
            if mark is not None:
                connection.execute(update(blobs).where(blobs.c.digest == draft.digest).values(touched=now))
                return Stored(draft.digest, draft.size, mark)
            if bounded and self._quota is not None and _used(connection) + draft.size > self._quota:
                raise self._refusal()
            mark = secrets.token_hex(16)
            connection.execute(insert(blobs).values(digest=draft.digest, bytes=draft.size, mark=mark, touched=now))
            return Stored(draft.digest, draft.size, mark)

    def _bounded(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the chunks until they go past what the quota leaves."""
        left = None if self._quota is None else self._quota - self.used()
        for chunk in chunks:
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise self._refusal()
            yield chunk

    def _refusal(self) -> QuotaError:
        return QuotaError(f"the stored files would take more than the quota of {self._quota} bytes: delete versions or uploads first")


def hold(connection: Connection, *stored: Stored) -> None:
    """Make sure, within the transaction whose rows name them, that files are still those that were put.

    Raises:
        UnavailableError: one was swept meanwhile.
    """
    for one in stored:
        mark = connection.scalar(select(blobs.c.mark).where(blobs.c.digest == one.digest))
        if mark != one.mark:
            raise UnavailableError("a file that nothing named for too long was removed meanwhile: send it again")


def _used(connection: Connection) -> int:
    return int(connection.scalar(select(func.coalesce(func.sum(blobs.c.bytes), 0))) or 0)


def _unnamed() -> ColumnElement[bool]:
    named = [exists().where(column == blobs.c.digest) for column in _NAMING]
    return ~named[0] & ~named[1] & ~named[2]


def _awaited(connection: Connection) -> set[str]:
    """Return the digests of models that wait to be judged."""
    waiting = connection.scalars(select(admissions.c.files).where(admissions.c.finished_at.is_(None)))
    return {digest for found in waiting for digest in found.values()}
