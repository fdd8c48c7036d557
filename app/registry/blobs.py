"""The store in a local folder."""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.errors import NotFoundError, StorageFullError
from app.registry.store import Draft, check_digest, checked, compare

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Blobs:
    """The folder ``blobs`` of a workspace: a ``Store``.

    Bytes are written under ``tmp``, flushed, and then linked to ``sha256/<hex>``, so that no reader ever sees a part.
    """

    def __init__(self, folder: Path) -> None:
        self._final = folder / "sha256"
        self._draft = folder / "tmp"
        self._final.mkdir(parents=True, exist_ok=True)
        self._draft.mkdir(exist_ok=True)

    @contextmanager
    def draft(self, content: Iterable[bytes]) -> Iterator[Draft]:
        """Write ``content`` under ``tmp``."""
        path = self._draft / secrets.token_hex(16)
        try:
            with _claimed(path) as stream:
                digest, size = _copy(content, stream)
                yield Draft(digest, size, path.name)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFullError from error
            raise
        finally:
            path.unlink(missing_ok=True)

    def settle(self, draft: Draft) -> None:
        """Link the draft; a copy that has rotted on the disk is replaced."""
        final, path = self._final / draft.digest, self._draft / draft.place
        while not _linked(path, final, draft.digest):
            pass  # a sweep removed what was there already, between two looks
        descriptor = os.open(self._final, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def get(self, digest: str) -> bytes:
        """Return the bytes whose sha256 is ``digest``, checked."""
        return checked(digest, self.path(digest).read_bytes())

    def open(self, digest: str) -> BinaryIO:
        """Return the file, at its beginning; the bytes stay until it is closed, though they be removed meanwhile."""
        stream = self.path(digest).open("rb")
        try:
            compare(digest, hashlib.file_digest(stream, "sha256").hexdigest())
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream

    def path(self, digest: str) -> Path:
        """Return where the bytes lie, unchecked."""
        check_digest(digest)
        path = self._final / digest
        if not path.is_file():
            raise NotFoundError(f"the stored file {digest} is missing")
        return path

    def delete(self, digest: str) -> None:
        """Remove the bytes, if they are there."""
        check_digest(digest)
        (self._final / digest).unlink(missing_ok=True)

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield the digest and the size of everything visible."""
        with os.scandir(self._final) as entries:
            for entry in entries:
                yield entry.name, entry.stat().st_size

    def idle(self) -> Iterator[str]:
        """Yield the names of the drafts that nobody writes any more."""
        for path in self._draft.iterdir():
            with _unwritten(path) as idle:
                if idle:
                    yield path.name

    def tidy(self) -> None:
        """Remove drafts that nobody writes any more."""
        for path in self._draft.iterdir():
            with _unwritten(path) as idle:
                if idle:
                    path.unlink(missing_ok=True)


@contextmanager
def _claimed(path: Path) -> Iterator[BinaryIO]:
    """Make a file and hold the lock that tells `tidy` that somebody writes it."""
    while True:
        with path.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if os.fstat(stream.fileno()).st_nlink == 0:
                continue  # tidied away before the lock was had
            yield stream
            return


def _linked(path: Path, final: Path, digest: str) -> bool:
    """Return whether ``final`` holds the bytes now; False where it went away meanwhile."""
    try:
        os.link(path, final)
    except FileExistsError:
        try:
            found = _digest(final)
        except FileNotFoundError:
            return False
        if found != digest:
            path.replace(final)  # it has rotted on the disk
    return True


def _copy(chunks: Iterable[bytes], stream: BinaryIO) -> tuple[str, int]:
    sha = hashlib.sha256()
    size = 0
    for chunk in chunks:
        sha.update(chunk)
        size += len(chunk)
        stream.write(chunk)
    stream.flush()
    os.fsync(stream.fileno())
    return sha.hexdigest(), size


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _unwritten(path: Path) -> Iterator[bool]:
    """Tell whether nobody writes a draft, and keep it so meanwhile."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
    except (BlockingIOError, FileNotFoundError):
        yield False
