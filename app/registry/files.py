"""Uploaded data sets: stored as they come, judged only by the worker that reads them."""

import secrets
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from sqlalchemy import Column, ColumnElement, Connection, Engine, Row, Select, delete, insert, not_, or_, select

from app.db import files, jobs, reading
from app.errors import ConflictError, InvalidRequestError, NotFoundError, TooLargeError
from app.registry.once import once
from app.registry.paging import Page, page
from app.registry.registry import OPEN_STATES
from app.registry.shelf import Shelf, hold
from app.registry.store import CHUNK

FORMATS = {".csv": "CSV with a header", ".jsonl": "JSON Lines", ".npz": "NumPy arrays x and y", ".parquet": "Parquet"}
PURPOSES = ("fine-tune",)


class Files:
    """The uploads of a workspace, in the shape of OpenAI's files."""

    def __init__(self, database: Engine, blobs: Shelf, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._database = database
        self._blobs = blobs

    def create(
        self, stream: BinaryIO, filename: str, purpose: str, *, seconds: int | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Store an upload and return its object.

        Args:
            stream: the bytes, read once and in pieces.
            filename: its extension names the format of the data.
            purpose: ``fine-tune``.
            seconds: how long it is kept; None: until it is deleted.
            key: idempotency key; the same key with the same upload gives the same file.

        Raises:
            InvalidRequestError: purpose or format is not one that is taken; ``key`` was used for another upload.
            TooLargeError: the stream is longer than the limit; nothing was kept.
            StorageFullError: the disk is full; nothing was kept.
        """
        filename = _checked(filename, purpose)
        counted = _Counted(stream, self.max_bytes)
        stored = self._blobs.put(counted)
        with self._database.begin() as connection:
            hold(connection, stored)

            def add() -> str:
                name = f"file-{secrets.token_hex(12)}"
                now = int(time.time())
                row = {"id": name, "created_at": now, "expires_at": seconds and now + seconds, "filename": filename, "purpose": purpose}
                connection.execute(insert(files).values(**row, bytes=counted.count, digest=stored.digest))
                return name

            name = once(connection, "file", key, [filename, purpose, stored.digest, seconds], add)
            return _object(_find(connection, name))

    def get(self, name: str) -> dict[str, Any]:
        """Return the object of a file, or raise NotFoundError."""
        with reading(self._database) as connection:
            return _object(_find(connection, name))

    def list(self, *, after: str | None = None, limit: int = 10_000, order: str = "desc", purpose: str | None = None) -> Page:
        """Return the files that come after the one named ``after``, newest first unless ``order`` is ``asc``.

        Raises:
            InvalidRequestError: there is no file ``after``.
        """
        query = select(files).where(present(), *([] if purpose is None else [files.c.purpose == purpose]))
        with reading(self._database) as connection:
            return page(connection, query, files, _object, after=after, limit=limit, newest_first=order == "desc")

    def open(self, name: str) -> BinaryIO:
        """Return the bytes of a file, their sha256 checked, as a stream to be read and closed.

        Raises:
            NotFoundError: there is no such file.
            CorruptError: the stored bytes have changed.
        """
        with reading(self._database) as connection:
            digest = _find(connection, name).digest
        return self._blobs.open(digest)

    def delete(self, name: str) -> None:
        """Forget a file.

        Raises:
            NotFoundError: there is no such file.
            ConflictError: a job that has not ended needs it.
        """
        with self._database.begin() as connection:
            _find(connection, name)
            job = connection.scalar(_needing(name))
            if job is not None:
                raise ConflictError(f"job {job} needs {name}: cancel the job or wait for it", param="file_id")
            connection.execute(delete(files).where(files.c.id == name))


def present() -> ColumnElement[bool]:
    """Return the condition that a file is there still: it has not expired, or a job that has not ended needs it."""
    return or_(files.c.expires_at.is_(None), files.c.expires_at > int(time.time()), _needing(files.c.id).exists())


def expire(database: Engine) -> int:
    """Forget the files whose time is over, but for those that a job needs; return how many."""
    with database.begin() as connection:
        return connection.execute(delete(files).where(not_(present()))).rowcount


def _needing(name: str | Column[str]) -> Select[Any]:
    """Select the jobs that need a file."""
    needed = or_(jobs.c.training_file == name, jobs.c.validation_file == name)
    return select(jobs.c.id).where(needed, jobs.c.state.in_(OPEN_STATES))


class _Counted:
    """The chunks of a stream, up to a limit."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.count = 0
        self._stream = stream
        self._limit = limit

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._stream.read(CHUNK):
            self.count += len(chunk)
            if self.count > self._limit:
                raise TooLargeError(f"a data set may have at most {self._limit} bytes", param="file")
            yield chunk


def _checked(filename: str, purpose: str) -> str:
    if purpose not in PURPOSES:
        raise InvalidRequestError(f"purpose must be {' or '.join(PURPOSES)}, not {purpose[:40]!r}", param="purpose")
    plain = PurePosixPath(filename.replace("\\", "/")).name
    if PurePosixPath(plain).suffix.lower() not in FORMATS:
        known = ", ".join(f"{extension} ({meaning})" for extension, meaning in sorted(FORMATS.items()))
        raise InvalidRequestError(f"the format of {plain[:80]!r} is not known by its extension; accepted are {known}", param="file")
    if len(plain) > 255 or not plain.isprintable():
        raise InvalidRequestError("a file name may have at most 255 printable characters", param="file")
    return plain


def _find(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(files).where(files.c.id == name, present())).first()
    if row is None:
        raise NotFoundError(f"there is no file {name[:80]!r}", param="file_id")
    return row


def _object(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "expires_at": row.expires_at,
        "status_details": None,
    }
