"""Opens what the settings name: the database and the store of a workspace, as one registry."""

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings


def open_registry(settings: Settings) -> Registry:
    """Return the registry of a workspace; its ``database`` is what jobs and imports use too.

    Raises:
        CorruptError, UnavailableError, InvalidRequestError: as ``app.db.connect``.
    """
    url = settings.database_url
    database = connect(settings.workspace, None if url is None else url.get_secret_value())
    return Registry(database, Blobs(settings.workspace / "blobs"), quota=settings.quota_bytes or None)
