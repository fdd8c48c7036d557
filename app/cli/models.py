"""`specnorm models`: the registry, of a workspace or of a running service."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import bundles, output
from app.cli.place import WHO, existing, place, version_of
from app.cli.remote import Service, Url
from app.cli.workspace import Workspace, registry
from app.errors import InvalidRequestError

commands = typer.Typer(help="Models and versions, of a workspace (--workspace) or of a running service (--url).", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="Version.")]


@commands.command("list")
def list_(workspace: Workspace = None, url: Url = None, *, as_json: output.Json = False) -> None:
    """List the models and the version of each that is live."""
    if url:
        rows = Service(url).get("/admin/models")
    else:
        models = registry(existing(workspace))
        rows = [{"name": name, "live_version": models.live(name), "versions": models.versions(name)} for name in models.models()]
    brief = [{**row, "versions": [v["version"] if isinstance(v, dict) else v for v in row["versions"]]} for row in rows]
    output.show(rows if as_json else brief, ["name", "live_version", "versions"], as_json=as_json)


@commands.command()
def show(
    name: Annotated[str, typer.Argument(help="NAME for its versions; NAME:VERSION or NAME@ALIAS for where one came from.")],
    workspace: Workspace = None,
    url: Url = None,
    *,
    as_json: output.Json = False,
) -> None:
    """Show the versions of a model: their bounds, metrics and origin; or all that is known of one."""
    if ":" in name or "@" in name:
        _show_one(name, workspace, url, as_json=as_json)
        return
    rows: list[dict[str, Any]]
    path = f"/admin/models/{name}/versions?manifests=false"
    rows = list(Service(url).pages(path)) if url else registry(existing(workspace)).describe(name)
    output.show(rows, ["version", "gradient_mode", "lipschitz_bound", "metrics", "parent", "job"], as_json=as_json)


def _show_one(name: str, workspace: Path | None, url: str | None, *, as_json: bool) -> None:
    from app.registry.lineage import lineage  # noqa: PLC0415 - loaded by those commands that need it

    model, version = version_of(place(workspace, url), name)
    about: dict[str, Any]
    if url:
        about = Service(url).get(f"/admin/models/{model}/versions/{version}")["lineage"]
    else:
        about = lineage(registry(existing(workspace)), model, version)
    if as_json:
        output.show_json(about)
        return
    sigmas = {f"sigma of {row['layer']}": {name: row[name] for name in ("before", "after", "folded")} for row in about.pop("sigma")}
    output.show([{"what": what, "is": value} for what, value in {**about, **sigmas}.items()], ["what", "is"], as_json=False)


@commands.command()
def promote(name: Name, version: Version, workspace: Workspace = None, url: Url = None) -> None:
    """Make a version the live one."""
    if url:
        previous = Service(url).post(f"/admin/models/{name}/promote", {"version": version})["previous_version"]
    else:
        previous = registry(existing(workspace)).promote(name, version, why="asked for", who=WHO)
    typer.echo(f"{name}:{version} is live" + (f"; before it was {previous}" if previous not in {None, version} else ""))


@commands.command()
def rollback(name: Name, workspace: Workspace = None, url: Url = None) -> None:
    """Go back to the version that was live before."""
    if url:
        answer = Service(url).post(f"/admin/models/{name}/rollback")
        live, previous = answer["live_version"], answer["previous_version"]
    else:
        live, previous = registry(existing(workspace)).rollback(name, who=WHO)
    typer.echo(f"{name}:{live} is live again; before it was {previous}")


@commands.command()
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="Name to call the version by, as in `digits@stable`.")],
    version: Annotated[str | None, typer.Argument(help="Version; with --remove none.")] = None,
    workspace: Workspace = None,
    url: Url = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Forget the alias.")] = False,
) -> None:
    """Point an alias at a version, in one step for everybody who follows it."""
    if (version is None) is not remove:
        raise InvalidRequestError("Name a version, or --remove without one.")
    where = place(workspace, url)
    if version is None:
        where.remove_alias(name, alias)
        typer.echo(f"{name}@{alias} is removed")
        return
    before = where.set_alias(name, alias, version, who=WHO)
    typer.echo(f"{name}@{alias} is {name}:{version}" + (f"; before it was {before}" if before not in {None, version} else ""))


bundles.register(commands)
