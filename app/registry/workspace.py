"""Opens what the settings name: the database and the store of a workspace, as one registry."""

from collections.abc import Callable

from app.db import connect
from app.errors import InvalidRequestError, UnavailableError
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.registry.store import Store
from app.settings import Settings


def open_registry(settings: Settings) -> Registry:
    """Return the registry of a workspace; its ``database`` is what jobs and imports use too.

    Raises:
        CorruptError, UnavailableError, InvalidRequestError: as ``app.db.connect``; or the store cannot be used.
    """
    url = settings.database_url
    database = connect(settings.workspace, None if url is None else url.get_secret_value())
    return Registry(database, open_store(settings), quota=settings.quota_bytes or None)


def open_store(settings: Settings) -> Store:
    """Return where the bytes lie: the folder ``blobs`` of the workspace, or what ``SPECNORM_BLOBS_URL`` names."""
    if settings.blobs_url is None:
        return Blobs(settings.workspace / "blobs")
    scheme = settings.blobs_url.partition("://")[0]
    if scheme not in STORES:
        raise InvalidRequestError(f"SPECNORM_BLOBS_URL must begin with one of: {', '.join(sorted(STORES))}; then ://bucket/prefix")
    return STORES[scheme](settings.blobs_url)


def _bucket(url: str) -> Store:
    try:
        from app.registry.bucket import Bucket  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise UnavailableError("SPECNORM_BLOBS_URL is set, but its client is not installed: install specnorm[s3].") from None
    return Bucket(url)


STORES: dict[str, Callable[[str], Store]] = {"s3": _bucket}
