"""The store in an S3-compatible bucket. Address, region and keys are where S3's own tools look for them: `AWS_*` in the environment."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from app.errors import NotFoundError, UnavailableError
from app.registry.store import CHUNK, Draft, check_digest, checked, compare

if TYPE_CHECKING:
    from obstore.store import S3Config

FINAL: Final = "sha256"
DRAFTS: Final = "tmp"
PART_BYTES: Final = 8 << 20
PARTS_AT_ONCE: Final = 2
"""Parts of one upload that are under way: what it may take of memory, however slow the bucket is."""
IDLE: Final = timedelta(days=1)


class Bucket:
    """A bucket, or the part of one below a prefix: a ``Store``.

    Bytes go up in parts under ``tmp``, so that memory stays flat, and are then copied to ``sha256/<hex>`` by the server,
    on the condition that nothing is there: no reader ever sees a part of them.

    Args:
        url: ``s3://bucket/prefix``.
        key: instead of ``AWS_ACCESS_KEY_ID``.
        secret: instead of ``AWS_SECRET_ACCESS_KEY``.
    """

    def __init__(self, url: str, key: str | None = None, secret: str | None = None) -> None:
        plain = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
        keys: S3Config = {}
        if key and secret:
            keys = {"access_key_id": key, "secret_access_key": secret}
        with _named(url):
            self._store = S3Store.from_url(
                url,
                config={"copy_if_not_exists": "multipart", **keys},
                client_options={"allow_http": plain, "timeout": timedelta(seconds=60)},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
            )

    @contextmanager
    def draft(self, content: Iterable[bytes]) -> Iterator[Draft]:
        """Send ``content`` to a key of its own under ``tmp``."""
        key = f"{DRAFTS}/{secrets.token_hex(16)}"
        sha = hashlib.sha256()
        size = 0
        try:
            with (
                _named(key, writes=True),
                obstore.open_writer(self._store, key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE) as writer,
            ):
                for chunk in content:
                    sha.update(chunk)
                    size += len(chunk)
                    writer.write(chunk)
            yield Draft(sha.hexdigest(), size, key)
        finally:
            with suppress(BaseError, FileNotFoundError):  # what stays behind, `tidy` finds
                obstore.delete(self._store, key)

    def settle(self, draft: Draft) -> None:
        """Copy the draft to its digest; bytes there that are no longer these are replaced."""
        final = f"{FINAL}/{draft.digest}"
        with _named(final):
            while not self._copied(draft, final):
                pass  # a sweep removed what was there already, between two looks

    def get(self, digest: str) -> bytes:
        """Return the bytes whose sha256 is ``digest``, checked."""
        check_digest(digest)
        with _named(digest):
            return checked(digest, bytes(obstore.get(self._store, f"{FINAL}/{digest}").bytes()))

    def open(self, digest: str) -> BinaryIO:
        """Return a copy that was fetched to this machine and checked; it goes when it is closed."""
        check_digest(digest)
        stream = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - whoever asked closes it
        sha = hashlib.sha256()
        try:
            with _named(digest):
                for chunk in obstore.get(self._store, f"{FINAL}/{digest}").stream(min_chunk_size=CHUNK):
                    sha.update(chunk)
                    stream.write(chunk)
            compare(digest, sha.hexdigest())
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream

    def delete(self, digest: str) -> None:
        """Remove the bytes, if they are there."""
        check_digest(digest)
        with _named(digest), suppress(FileNotFoundError):
            obstore.delete(self._store, f"{FINAL}/{digest}")

    def all(self) -> Iterator[tuple[str, int]]:
        """Yield the digest and the size of everything visible."""
        with _named(FINAL):
            for found in obstore.list(self._store, prefix=FINAL):
                yield from ((meta["path"].rpartition("/")[2], meta["size"]) for meta in found)

    def idle(self) -> Iterator[str]:
        """Yield the names of the drafts that are a day old."""
        limit = datetime.now(UTC) - IDLE
        with _named(DRAFTS):
            old = [meta["path"] for found in obstore.list(self._store, prefix=DRAFTS) for meta in found if meta["last_modified"] < limit]
        yield from old

    def tidy(self) -> None:
        """Remove drafts that are a day old. A writer that is slower than that cannot copy his, and is told so."""
        for path in self.idle():
            with _named(DRAFTS), suppress(FileNotFoundError):
                obstore.delete(self._store, path)

    def _copied(self, draft: Draft, final: str) -> bool:
        """Return whether ``final`` holds the bytes now; False where it went away meanwhile."""
        try:
            if draft.size:
                obstore.copy(self._store, draft.place, final, overwrite=False)
            else:
                obstore.put(self._store, final, b"", mode="create")  # nothing has no parts to copy
        except AlreadyExistsError:
            try:
                found = self._digest(final)
            except FileNotFoundError:
                return False
            if found != draft.digest:
                obstore.copy(self._store, draft.place, final)
        return True

    def _digest(self, path: str) -> str:
        sha = hashlib.sha256()
        for chunk in obstore.get(self._store, path).stream(min_chunk_size=CHUNK):
            sha.update(chunk)
        return sha.hexdigest()


@contextmanager
def _named(what: str, *, writes: bool = False) -> Iterator[None]:
    """Say in this program's words what went wrong with ``what``."""
    try:
        yield
    except FileNotFoundError:
        if writes:
            raise UnavailableError("the bucket cannot be used: there is none of that name") from None
        raise NotFoundError(f"the stored file {what} is missing") from None
    except BaseError as error:
        raise UnavailableError(f"the bucket cannot be used ({what}): {str(error).splitlines()[0][:300]}") from None
