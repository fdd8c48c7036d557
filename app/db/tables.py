"""The tables of a workspace. Whoever changes one changes the newest, unreleased revision in `migrations/versions` with it."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

Size = BigInteger().with_variant(Integer(), "sqlite")
"""A number of bytes, which may pass 2**31: SQLite's integers hold that anyway."""

metadata = MetaData()

# What releases before the revisions look at: they refuse all but 1, and a database with a revision says 2.
schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

# alembic's own: the one row names the revision.
revision = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("live", Integer),
    Column("next_version", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created", Integer, nullable=False),
    Column("parent", String(128)),
    Column("job", String(64), unique=True),
    Column("manifest", Text, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Index("versions_by_parent", "parent"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    Column("who", String(128), nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

version_files = Table(
    "version_files",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"], ondelete="CASCADE"),
    Index("version_files_by_digest", "digest"),
)

# What the store of bytes holds. A digest that was removed and came back has another mark, so nobody takes it for the old one.
blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("bytes", Size, nullable=False),
    Column("mark", String(32), nullable=False),
    Column("touched", Integer, nullable=False),
)

history = Table(
    "history",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("model", ForeignKey("models.name"), nullable=False),
    Column("at", Integer, nullable=False),
    Column("what", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("before", Integer),
    Column("after", Integer, nullable=False),
    Index("history_by_model", "model", "number"),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", Size, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("expires_at", Integer),
    Index("files_by_digest", "digest"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("state", String(20), nullable=False),
    Column("paused", Boolean, nullable=False, default=False),
    Column("request", JSON, nullable=False),
    Column("model", String(64), nullable=False),
    Column("parent", String(128), nullable=False),
    # No foreign key: a finished job still names files that were deleted since.
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    # `attempt` is the fencing token: whoever writes for the job names the attempt that it was given.
    Column("attempt", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    Column("heartbeat", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("spent", Float, nullable=False, server_default="0"),
    Column("step", Integer),
    Column("steps", Integer),
    Column("estimated_finish", Integer),
    Column("fine_tuned_model", String(160)),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("spectral", JSON(none_as_null=True)),
    Index("jobs_by_state", "state", "number"),
    sqlite_autoincrement=True,
)

job_events = Table(
    "job_events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
    Index("events_by_job", "job", "number"),
    sqlite_autoincrement=True,
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("digest", String(64)),
    Index("checkpoints_by_job", "job", "number"),
    Index("checkpoints_by_digest", "digest"),
    sqlite_autoincrement=True,
)

admissions = Table(
    "admissions",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("state", String(20), nullable=False),
    Column("model", String(64), nullable=False),
    Column("files", JSON, nullable=False),
    Column("owner", String(64)),
    Column("heartbeat", Integer, nullable=False, default=0),
    Column("version", String(16)),
    Column("error", Text),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("resource", String(64), nullable=False),
    Column("answer", JSON(none_as_null=True)),
    Column("at", Integer, index=True),
)
