"""What alembic runs around the revisions: the transaction is the caller's, who holds the lock."""

from alembic import context

from app.db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
