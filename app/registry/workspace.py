"""Opens what the settings name: the database and the store of a workspace, as one registry."""

from collections.abc import Callable

from pydantic import SecretStr

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
    database = connect(settings.workspace, _plain(settings.database_url), _plain(settings.database_password))
    return Registry(database, open_store(settings), quota=settings.quota_bytes or None)


def open_store(settings: Settings) -> Store:
    """Return where the bytes lie: the folder ``blobs`` of the workspace, or what ``SPECNORM_BLOBS_URL`` names."""
    if settings.blobs_url is None:
        return Blobs(settings.workspace / "blobs")
    scheme = settings.blobs_url.partition("://")[0]
    if scheme not in STORES:
        raise InvalidRequestError(f"SPECNORM_BLOBS_URL must begin with one of: {', '.join(sorted(STORES))}; then ://bucket/prefix")
    return STORES[scheme](settings.blobs_url, settings)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _bucket(url: str, settings: Settings) -> Store:
    try:
        from app.registry.bucket import Bucket  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise UnavailableError("SPECNORM_BLOBS_URL is set, but its client is not installed: install specnorm[s3].") from None
    return Bucket(url, _plain(settings.s3_access_key_id), _plain(settings.s3_secret_access_key))


STORES: dict[str, Callable[[str, Settings], Store]] = {"s3": _bucket}
