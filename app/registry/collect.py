"""Free the disk of what no row names: what a crash left between a stored file and its row, and what was deleted."""

from sqlalchemy import Engine, select

from app.db import files, job_checkpoints, reading, version_files
from app.registry.blobs import Blobs

GRACE_SECONDS = 24 * 3600.0


def collect(database: Engine, blobs: Blobs, *, older_than: float = GRACE_SECONDS) -> list[str]:
    """Remove unnamed blobs of at least that age in seconds, and drafts that nobody writes; return the removed digests.

    The age is there for a file whose row is about to be committed.
    """
    keep: set[str] = set()
    with reading(database) as connection:
        for column in (version_files.c.digest, files.c.digest, job_checkpoints.c.digest):
            keep.update(connection.scalars(select(column).where(column.is_not(None)).distinct()))
    return blobs.sweep(keep, older_than=older_than)
