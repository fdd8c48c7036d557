"""Revisions of the schema, run by alembic within the transaction of `app.db.upgrade`."""
