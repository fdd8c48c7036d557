"""`specnorm backup`, `restore` and `migrate`: a workspace as a whole."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.place import existing
from app.cli.workspace import Workspace, registry
from app.cli.workspace import settings as read_settings


def backup(
    path: Annotated[Path, typer.Argument(help="New folder, or new file whose name ends in .tar.")], workspace: Workspace = None
) -> None:
    """Write the database and every stored file as of one moment, while the service runs."""
    from app.registry import backup as backups  # noqa: PLC0415 - loaded by those commands that need it

    _tell(backups.backup(registry(existing(workspace)), path), f"are in {path}")


def restore(path: Annotated[Path, typer.Argument(exists=True, help="What `specnorm backup` wrote.")], workspace: Workspace = None) -> None:
    """Bring a backup into a new workspace, or into the empty database and store that the settings name."""
    from app.registry import backup as backups  # noqa: PLC0415 - loaded by those commands that need it

    folder = read_settings(workspace=workspace).workspace
    _tell(backups.restore(registry(folder), path), f"are in {folder}")


def migrate(
    url: Annotated[str, typer.Argument(help="Of an empty PostgreSQL database: postgresql+psycopg://user:password@host/name.")],
    workspace: Workspace = None,
) -> None:
    """Copy every row of the SQLite database of a workspace to PostgreSQL; stop the service first."""
    from app.db import connect  # noqa: PLC0415 - loaded by those commands that need it
    from app.db.copy import transfer  # noqa: PLC0415

    folder = existing(workspace)
    count = transfer(connect(folder), connect(folder, url))
    typer.echo(f"{count} rows are copied; start the service with SPECNORM_DATABASE_URL set to that URL")


def register(root: typer.Typer) -> None:
    """Add these commands to ``root``."""
    for command in (backup, restore, migrate):
        root.command()(command)


def _tell(summary: tuple[int, int, int], where: str) -> None:
    rows, files, size = summary
    typer.echo(f"{rows} rows and {files} files of {size} bytes {where}")
