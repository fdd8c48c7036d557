"""Aliases, what the store of bytes holds, and answers under idempotency keys. Not released yet: it takes this release's changes."""

import time

import sqlalchemy as sa
from alembic import op

from app.db.tables import Size

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is new."""
    _add_admissions()
    op.create_table(
        "aliases",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("bytes", Size, nullable=False),
        sa.Column("mark", sa.String(32), nullable=False),
        sa.Column("touched", sa.Integer(), nullable=False),
    )
    op.add_column("idempotency", sa.Column("answer", sa.JSON(none_as_null=True)))
    op.add_column("idempotency", sa.Column("at", sa.Integer()))
    op.execute(sa.text("UPDATE idempotency SET at = :now").bindparams(now=int(time.time())))  # known for one more day
    op.create_index("ix_idempotency_at", "idempotency", ["at"])
    _cancel()
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("spent", sa.Float(), nullable=False, server_default="0"))
    op.add_column("files", sa.Column("expires_at", sa.Integer()))
    op.create_index("versions_by_parent", "versions", ["parent"])
    op.create_index("version_files_by_digest", "version_files", ["digest"])
    op.create_index("files_by_digest", "files", ["digest"])
    op.create_index("history_by_model", "history", ["model", "number"])
    op.create_index("checkpoints_by_digest", "job_checkpoints", ["digest"])
    op.execute("UPDATE schema_version SET version = 2")  # so that a release before the revisions refuses it


def _cancel() -> None:
    """End the jobs whose workers were asked to cancel them, which is immediate now, and drop the column that asked."""
    jobs = sa.table("jobs", *(sa.column(name) for name in ("cancel", "state", "paused", "owner", "estimated_finish", "finished_at")))
    asked = sa.and_(jobs.c.cancel == sa.true(), jobs.c.state.in_(("validating_files", "queued", "running")))
    ended = {"state": "cancelled", "paused": sa.false(), "owner": None, "estimated_finish": None, "finished_at": int(time.time())}
    op.execute(sa.update(jobs).where(asked).values(ended))
    op.drop_column("jobs", "cancel")


def _add_admissions() -> None:
    """Add a table that the first databases of the first release lack."""
    if sa.inspect(op.get_bind()).has_table("admissions"):
        return
    op.create_table(
        "admissions",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.Integer()),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("heartbeat", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(16)),
        sa.Column("error", sa.Text()),
        sqlite_autoincrement=True,
    )
