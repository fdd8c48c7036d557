"""A bundle as one file: a zip archive of its files, without folders, read within limits and never unpacked to a path of its choosing."""

import io
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final

from app.errors import InvalidRequestError, TooLargeError
from app.registry.store import CHUNK
from export.bundle import MANIFEST, Manifest

SUFFIX: Final = ".zip"
MOST_FILES: Final = 64

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BEGINNING: Final = (1980, 1, 1, 0, 0, 0)  # of zip's calendar: the same bundle is always the same bytes


def pack(out: IO[bytes], manifest: Manifest, content: Callable[[str], BinaryIO]) -> None:
    """Write the archive of a bundle, of which no more than a piece is in memory.

    Args:
        out: where to, a file that can be written anywhere.
        manifest: of the bundle.
        content: opens one of the files that the manifest names.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, MANIFEST, io.BytesIO(manifest.model_dump_json(indent=2).encode()))
        for name in manifest.files:
            with content(name) as stream:
                _add(archive, name, stream)


def unpack(stream: BinaryIO, *, limit: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the files of an archive, each as its name and the pieces of its content, which are to be taken before the next file.

    Args:
        stream: the archive, which can be read from anywhere.
        limit: most bytes that its files may have in all, whatever its directory says of them.

    Raises:
        InvalidRequestError: it is no archive, is damaged, or a name in it is no plain file name or comes twice.
        TooLargeError: its files are too many, or larger.
    """
    left = limit

    def pieces(member: zipfile.ZipInfo) -> Iterator[bytes]:
        nonlocal left
        with _readable(), archive.open(member) as source:
            while piece := source.read(CHUNK):
                left -= len(piece)
                if left < 0:
                    raise TooLargeError("the files of the archive are larger than a bundle may be", param="file")
                yield piece

    with _readable(), zipfile.ZipFile(stream) as archive:
        for member in _members(archive):
            yield member.filename, pieces(member)


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return what an archive holds, its names judged."""
    members = archive.infolist()
    if len(members) > MOST_FILES:
        raise TooLargeError(f"a bundle has at most {MOST_FILES} files, this archive {len(members)}", param="file")
    seen: set[str] = set()
    for member in members:
        if not _PLAIN.fullmatch(member.filename) or member.filename in seen:
            raise InvalidRequestError(f"{member.filename[:80]!r} in the archive is no plain file name, or comes twice", param="file")
        seen.add(member.filename)
    return members


def _add(archive: zipfile.ZipFile, name: str, stream: BinaryIO) -> None:
    member = zipfile.ZipInfo(name, _BEGINNING)
    member.file_size = stream.seek(0, io.SEEK_END)  # past 2 GiB the head has another form
    stream.seek(0)
    with archive.open(member, "w") as to:
        shutil.copyfileobj(stream, to, CHUNK)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise InvalidRequestError(f"the archive cannot be read: {error}", param="file") from None
