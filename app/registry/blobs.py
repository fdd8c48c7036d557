"""Bytes addressed by their sha256, in a local folder: whole or absent, checked on every read."""

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.errors import CorruptError, NotFoundError, StorageFullError

CHUNK = 1 << 20


class Blobs:
    """The folder ``blobs`` of a workspace.

    A blob is written under ``tmp``, flushed, and then linked to ``sha256/<hex>``, so that no reader ever sees a part of
    one. It means nothing until a row of the database names it; one that no row names is removed by :meth:`sweep`.
    """

    def __init__(self, folder: Path) -> None:
        self._final = folder / "sha256"
        self._draft = folder / "tmp"
        self._gate = folder / ".gate"
        self._final.mkdir(parents=True, exist_ok=True)
        self._draft.mkdir(exist_ok=True)
        self._gate.touch()

    def put(self, content: bytes | Iterable[bytes]) -> str:
        """Store ``content`` and return its sha256 in hex.

        Raises:
            StorageFullError: the disk is full; nothing was kept.
        """
        draft = self._draft / secrets.token_hex(16)
        try:
            with draft.open("xb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # tells `sweep` that somebody writes it
                name = _copy([content] if isinstance(content, bytes) else content, stream)
                self._settle(draft, name)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFullError from error
            raise
        finally:
            draft.unlink(missing_ok=True)
        return name

    def get(self, name: str) -> bytes:
        """Return the bytes whose sha256 is ``name``.

        Raises:
            NotFoundError: there is no such blob.
            CorruptError: what is stored has another sha256.
        """
        content = self.open(name).read_bytes()
        if hashlib.sha256(content).hexdigest() != name:
            raise CorruptError(f"the stored file {name} has changed on disk")
        return content

    def open(self, name: str) -> Path:
        """Return where the blob lies, for streaming; its bytes are not checked."""
        path = self._path(name)
        if not path.is_file():
            raise NotFoundError(f"the stored file {name} is missing")
        return path

    def delete(self, name: str) -> None:
        """Remove the blob, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str], *, older_than: float) -> list[str]:
        """Remove what a crash left behind: drafts that nobody writes, and blobs not in ``keep``.

        Args:
            keep: the digests that some row names.
            older_than: age in seconds that an unnamed blob must have, since its row may be about to be committed.

        Returns:
            The digests that were removed.
        """
        for draft in self._draft.iterdir():
            _remove_if_idle(draft)
        removed = []
        for path in self._final.iterdir():
            if path.name in keep:
                continue
            with self._gated(fcntl.LOCK_EX):  # `put` renews the age of a blob that it finds already there
                if path.exists() and time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
                    removed.append(path.name)
        return removed

    def _path(self, name: str) -> Path:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise NotFoundError(f"{name!r} is not a sha256")
        return self._final / name

    def _settle(self, draft: Path, name: str) -> None:
        final = self._final / name
        with self._gated(fcntl.LOCK_SH):
            try:
                os.link(draft, final)
            except FileExistsError:
                if _digest(final) != name:
                    draft.replace(final)  # the copy on disk has rotted; this one is whole
                os.utime(final)
        descriptor = os.open(self._final, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _gated(self, mode: int) -> Iterator[None]:
        with self._gate.open("rb") as gate:
            fcntl.flock(gate, mode)
            yield


def _copy(chunks: Iterable[bytes], stream: BinaryIO) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
        stream.write(chunk)
    stream.flush()
    os.fsync(stream.fileno())
    return sha.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove_if_idle(draft: Path) -> None:
    try:
        with draft.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return
