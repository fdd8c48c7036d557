"""`specnorm keys` and `specnorm settings`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli import output
from app.cli.workspace import settings as read_settings
from app.errors import InvalidRequestError

commands = typer.Typer(help="Keys that clients of the service need.", no_args_is_help=True)

KeyPath = Annotated[Path | None, typer.Option("--file", help="The file of keys; by default SPECNORM_API_KEYS_FILE.")]


@commands.command()
def create(
    scope: Annotated[list[str], typer.Option(help="What the key is good for: infer, train or admin; may be repeated.")],
    file: KeyPath = None,
) -> None:
    """Make a key and print it, once: the file holds only its hash."""
    from app.security import ALL, create_key  # noqa: PLC0415 - commands load what they need

    unknown = sorted(set(scope) - ALL)
    if unknown:
        raise typer.BadParameter(f"there is no scope {unknown[0]!r}; there are {', '.join(sorted(ALL))}.")
    path = _path(file)
    key, secret = create_key(path, [name for name in ALL if name in scope])
    output.note(f"{key.id} with {', '.join(sorted(key.scopes))} is in {path}; this is shown once:")
    typer.echo(secret)


@commands.command("list")
def list_(file: KeyPath = None, *, as_json: output.Json = False) -> None:
    """List the keys of a file, without their secrets."""
    from app.security import read_keys  # noqa: PLC0415

    rows = [
        {"id": key.id, "scopes": sorted(key.scopes), "created": key.created.isoformat(timespec="seconds")}
        for key in read_keys(_path(file)).keys
    ]
    output.show(rows, ["id", "scopes", "created"], as_json=as_json)


def settings(*, as_json: output.Json = False) -> None:
    """Print every setting: its variable, value, default and meaning."""
    current = read_settings()
    rows = [
        {
            "variable": f"SPECNORM_{name.upper()}",
            "value": getattr(current, name),
            "default": field.default,
            "meaning": field.description,
        }
        for name, field in type(current).model_fields.items()
    ]
    output.show([{**row, "value": _plain(row["value"]), "default": _plain(row["default"])} for row in rows], rows[0], as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the commands that stand alone."""
    root.command()(settings)


def _path(file: Path | None) -> Path:
    given = file or os.environ.get("SPECNORM_API_KEYS_FILE") or read_settings().api_keys_file
    if given is None:
        raise InvalidRequestError("Say where the keys are: --file keys.json, or SPECNORM_API_KEYS_FILE.")
    return Path(given)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
