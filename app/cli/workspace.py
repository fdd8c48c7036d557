"""The settings of a command, and the stores of a workspace."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import InvalidRequestError

if TYPE_CHECKING:
    from app.registry.registry import Registry
    from app.settings import Settings

Workspace = Annotated[Path | None, typer.Option("--workspace", help="Folder of the database and the stored files.")]


def settings(**flags: Any) -> "Settings":
    """Return the settings, those flags that were given before all else.

    Raises:
        InvalidRequestError: one of them has a value that it cannot have.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - loaded by those commands that need it

    from app.settings import Settings  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise InvalidRequestError(f"The setting SPECNORM_{name.upper()} is wrong: {problem['msg']}.") from None


def registry(workspace: Path) -> "Registry":
    """Return the registry of ``workspace``."""
    from app.registry.workspace import open_registry  # noqa: PLC0415

    return open_registry(settings(workspace=workspace))
