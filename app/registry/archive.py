"""A bundle as one file: a zip archive of its files, without folders, read within limits and never unpacked to a path of its choosing."""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO, Final

from app.errors import InvalidRequestError, TooLargeError
from app.registry.store import CHUNK
from export.bundle import MANIFEST, Manifest

SUFFIX: Final = ".zip"
MOST_FILES: Final = 64

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BEGINNING: Final = (1980, 1, 1, 0, 0, 0)  # of zip's calendar: the same bundle is always the same bytes


def pack(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return the archive of a bundle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {MANIFEST: manifest.model_dump_json(indent=2).encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name, _BEGINNING), content)
    return out.getvalue()


def unpack(stream: BinaryIO, *, limit: int) -> dict[str, bytes]:
    """Return the files of an archive by name.

    Args:
        stream: the archive, which can be read from anywhere.
        limit: most bytes that its files may have in all, whatever its directory says of them.

    Raises:
        InvalidRequestError: it is no archive, is damaged, or a name in it is no plain file name or comes twice.
        TooLargeError: its files are too many, or larger.
    """
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES:
                raise TooLargeError(f"a bundle has at most {MOST_FILES} files, this archive {len(members)}", param="file")
            for member in members:
                if not _PLAIN.fullmatch(member.filename) or member.filename in files:
                    raise InvalidRequestError(
                        f"{member.filename[:80]!r} in the archive is no plain file name, or comes twice", param="file"
                    )
                files[member.filename] = _read(archive, member, limit)
                limit -= len(files[member.filename])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise InvalidRequestError(f"the archive cannot be read: {error}", param="file") from None
    return files


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    content = bytearray()
    with archive.open(member) as source:
        while chunk := source.read(CHUNK):
            content += chunk
            if len(content) > limit:
                raise TooLargeError("the files of the archive are larger than a bundle may be", param="file")
    return bytes(content)
