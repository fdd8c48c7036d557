"""The database of a workspace: its tables, its revisions, and a connection that is safe to share between processes."""

from app.db.connection import DATABASE, connect, reading
from app.db.tables import (
    admissions,
    aliases,
    blobs,
    files,
    history,
    idempotency,
    job_checkpoints,
    job_events,
    jobs,
    metadata,
    models,
    version_files,
    versions,
)

__all__ = [
    "DATABASE",
    "admissions",
    "aliases",
    "blobs",
    "connect",
    "files",
    "history",
    "idempotency",
    "job_checkpoints",
    "job_events",
    "jobs",
    "metadata",
    "models",
    "reading",
    "version_files",
    "versions",
]
