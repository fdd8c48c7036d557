"""Where the bytes of a workspace lie: a folder (`app.registry.blobs`) or a bucket (`app.registry.bucket`), addressed by sha256."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol

from app.errors import CorruptError, NotFoundError

CHUNK = 1 << 18
"""Bytes that are read, or handed on, at a time: little enough for fifty at once."""


class Draft(NamedTuple):
    """Bytes that were written and are not visible yet."""

    digest: str
    size: int
    place: str


class Store(Protocol):
    """Bytes by their sha256: whole or absent. Which of them mean anything, the database says: see ``app.registry.shelf``."""

    def draft(self, content: Iterable[bytes]) -> AbstractContextManager[Draft]:
        """Write ``content`` where nobody sees it; what was not settled by the end of the block is gone.

        Raises:
            StorageFullError: there is no room.
        """
        ...

    def settle(self, draft: Draft) -> None:
        """Make a draft visible under its digest, where the same bytes may be already."""
        ...

    def get(self, digest: str) -> bytes:
        """Return the bytes whose sha256 is ``digest``.

        Raises:
            NotFoundError: there are none.
            CorruptError: what is stored has another sha256.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """Return the same bytes, as checked as those of :meth:`get`, as a file to be read and closed: never all of them in memory."""
        ...

    def delete(self, digest: str) -> None:
        """Remove the bytes, if they are there."""
        ...

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield the digest and the size of everything visible."""
        ...

    def idle(self) -> Iterator[str]:
        """Yield the names of the drafts that nobody writes any more."""
        ...

    def tidy(self) -> None:
        """Remove drafts that nobody writes any more."""
        ...


def checked(digest: str, content: bytes) -> bytes:
    """Return ``content``, or raise CorruptError where its sha256 is not ``digest``."""
    compare(digest, hashlib.sha256(content).hexdigest())
    return content


def compare(digest: str, found: str) -> None:
    """Raise CorruptError where what is stored as ``digest`` has the sha256 ``found``."""
    if found != digest:
        raise CorruptError(f"the stored file {digest} has changed on disk")


def check_digest(digest: str) -> None:
    """Raise NotFoundError unless ``digest`` is a sha256 in hex, so that it names nothing outside the store."""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise NotFoundError(f"{digest!r} is not a sha256")
