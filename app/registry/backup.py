"""A workspace as one folder or one file: the rows of one moment, and every stored file that they name; taken while it is in use.

The rows are written as JSON lines, so a backup of SQLite is restored into PostgreSQL, and one of a folder into a bucket.
"""

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from app.db.copy import NAMING, read, touch, write
from app.db.upgrade import HEAD
from app.errors import ConflictError, CorruptError, InvalidRequestError, NotFoundError
from app.registry.registry import Registry

FORMAT = 1
ROWS = "rows.jsonl"
ABOUT = "backup.json"


class Summary(NamedTuple):
    """What a backup holds."""

    rows: int
    files: int
    bytes: int


def backup(registry: Registry, path: Path) -> Summary:
    """Write a backup to ``path``: one file where its name ends in ``.tar``, a folder otherwise.

    Raises:
        ConflictError: there is something at ``path``.
        CorruptError: a stored file that a row names cannot be read.
    """
    if path.exists():
        raise ConflictError(f"{path} is there already: name a new one")
    touch(registry.database)  # no sweep takes what is about to be copied, though its row may go meanwhile
    draft = path.with_name(f"{path.name}.partial")
    _remove(draft)
    try:
        with _pack(draft, one_file=path.suffix == ".tar") as pack:
            summary = _fill(registry, pack)
        draft.rename(path)
    except BaseException:
        _remove(draft)
        raise
    return summary


def restore(registry: Registry, path: Path) -> Summary:
    """Bring a backup into a workspace that has no rows yet, all of it or nothing.

    Raises:
        InvalidRequestError: ``path`` holds no backup of this release's schema.
        CorruptError: something in it is not what was written.
        ConflictError: the workspace is not empty.
    """
    with _unpack(path) as pack:
        about = _about(pack, path)
        rows = pack.get(ROWS)
        if hashlib.sha256(rows).hexdigest() != about["rows_sha256"]:
            raise CorruptError(f"{ROWS} of {path} is not what was written")
        size = 0
        for digest in about["files"]:
            content = pack.get(digest)
            with registry.blobs.store.draft([content]) as draft:
                if draft.digest != digest:
                    raise CorruptError(f"the stored file {digest} in {path} is not what was written")
                registry.blobs.store.settle(draft)
            size += draft.size
        lines = (json.loads(line) for line in rows.splitlines())
        count = write(registry.database, ((line["table"], line["row"]) for line in lines))
    return Summary(count, len(about["files"]), size)


class _Pack(Protocol):
    def add(self, name: str, stream: IO[bytes], size: int) -> None: ...

    def get(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, stream: IO[bytes], size: int) -> None:
        with (self._path / name).open("xb") as out:
            shutil.copyfileobj(stream, out)

    def get(self, name: str) -> bytes:
        return (self._path / Path(name).name).read_bytes()


class _File:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, name: str, stream: IO[bytes], size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = size, int(time.time())
        self._archive.addfile(member, stream)

    def get(self, name: str) -> bytes:
        stream = self._archive.extractfile(name)  # read from where it lies: nothing is unpacked to a path of its choosing
        if stream is None:
            raise KeyError(name)
        return stream.read()


@contextmanager
def _pack(path: Path, *, one_file: bool) -> Iterator[_Pack]:
    if one_file:
        with tarfile.open(path, "w") as archive:
            yield _File(archive)
    else:
        path.mkdir(parents=True)
        yield _Folder(path)


@contextmanager
def _unpack(path: Path) -> Iterator[_Pack]:
    try:
        if path.is_dir():
            yield _Folder(path)
        else:
            with tarfile.open(path, "r:") as archive:
                yield _File(archive)
    except (OSError, tarfile.TarError, KeyError) as error:
        raise InvalidRequestError(f"{path} holds no whole backup: {error}") from None


def _fill(registry: Registry, pack: _Pack) -> Summary:
    named: set[str] = set()
    count, size = 0, 0
    sha = hashlib.sha256()
    with tempfile.TemporaryFile() as rows:
        for table, row in read(registry.database):
            line = json.dumps({"table": table, "row": row}, separators=(",", ":")).encode() + b"\n"
            sha.update(line)
            rows.write(line)
            count += 1
            named.update(NAMING[table](row) if table in NAMING else ())
        length = rows.tell()
        rows.seek(0)
        pack.add(ROWS, rows, length)
    for digest in sorted(named):
        try:
            with registry.blobs.open(digest) as content:
                length = content.seek(0, io.SEEK_END)
                content.seek(0)
                pack.add(digest, content, length)
        except NotFoundError as error:
            raise CorruptError(f"a row names what is not stored: {error}; `specnorm models verify` tells which") from None
        size += length
    about = {"format": FORMAT, "revision": HEAD, "made": int(time.time()), "rows_sha256": sha.hexdigest(), "files": sorted(named)}
    written = json.dumps(about, indent=1).encode()
    pack.add(ABOUT, io.BytesIO(written), len(written))  # the last thing: a backup without it is none
    return Summary(count, len(named), size)


def _about(pack: _Pack, path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(pack.get(ABOUT))
        format_, revision = about["format"], about["revision"]
    except ValueError as error:
        raise InvalidRequestError(f"{ABOUT} of {path} cannot be read: {error}") from None
    if (format_, revision) != (FORMAT, HEAD):
        raise InvalidRequestError(
            f"{path} has schema {revision}, this release {HEAD}: restore it with the release that wrote it, which this one then upgrades"
        )
    return about


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
