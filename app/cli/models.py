"""`specnorm models`: the registry, of a workspace or of a running service."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import children, output
from app.cli.remote import Service, Url
from app.cli.workspace import Workspace, registry
from app.cli.workspace import settings as read_settings
from app.errors import CorruptError, InvalidRequestError

commands = typer.Typer(help="Models and versions, of a workspace (--workspace) or of a running service (--url).", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="Version.")]

WHO = "specnorm models"


@commands.command("list")
def list_(workspace: Workspace = None, url: Url = None, *, as_json: output.Json = False) -> None:
    """List the models and the version of each that is live."""
    if url:
        rows = Service(url).get("/admin/models")
    else:
        models = registry(_folder(workspace))
        rows = [{"name": name, "live_version": models.live(name), "versions": models.versions(name)} for name in models.models()]
    brief = [{**row, "versions": [v["version"] if isinstance(v, dict) else v for v in row["versions"]]} for row in rows]
    output.show(rows if as_json else brief, ["name", "live_version", "versions"], as_json=as_json)


@commands.command()
def show(name: Name, workspace: Workspace = None, url: Url = None, *, as_json: output.Json = False) -> None:
    """Show the versions of a model: their bounds, metrics and origin."""
    rows: list[dict[str, Any]]
    rows = Service(url).get(f"/admin/models/{name}/versions") if url else registry(_folder(workspace)).describe(name)
    output.show(rows, ["version", "gradient_mode", "lipschitz_bound", "metrics", "parent", "job"], as_json=as_json)


@commands.command()
def promote(name: Name, version: Version, workspace: Workspace = None, url: Url = None) -> None:
    """Make a version the live one."""
    if url:
        previous = Service(url).post(f"/admin/models/{name}/promote", {"version": version})["previous_version"]
    else:
        previous = registry(_folder(workspace)).promote(name, version, why="asked for", who=WHO)
    typer.echo(f"{name}:{version} is live" + (f"; before it was {previous}" if previous not in {None, version} else ""))


@commands.command()
def rollback(name: Name, workspace: Workspace = None, url: Url = None) -> None:
    """Go back to the version that was live before."""
    if url:
        answer = Service(url).post(f"/admin/models/{name}/rollback")
        live, previous = answer["live_version"], answer["previous_version"]
    else:
        live, previous = registry(_folder(workspace)).rollback(name, who=WHO)
    typer.echo(f"{name}:{live} is live again; before it was {previous}")


@commands.command("import")
def import_(
    path: Annotated[Path, typer.Argument(exists=True, help="An ONNX file, or the folder of a bundle.")],
    name: Annotated[str, typer.Option(help="Name of the model that it becomes the next version of.")],
    workspace: Workspace = None,
    url: Url = None,
) -> None:
    """Judge a model that came from elsewhere, and publish it: with a Lipschitz bound where its audit proves one."""
    from app.registry.registry import check_name  # noqa: PLC0415 - loaded by those commands that need it

    check_name(name)
    if url:
        _send(Service(url), path, name)
        return
    folder = _folder(workspace)
    if path.is_dir():
        children.run("export.check", [str(path)])
        output.note(children.publish(path, name, folder))
        return
    with tempfile.TemporaryDirectory(prefix="specnorm-import-") as draft:
        bundle = Path(draft) / "bundle"
        children.run("export.admission", [str(path), "--out", str(bundle)])
        output.note(children.publish(bundle, name, folder))


def _send(service: Service, path: Path, name: str) -> None:
    """Have a running service judge and publish it."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(one.open("rb")) for one in (sorted(path.iterdir()) if path.is_dir() else [path])]
        sent = [("file", (Path(stream.name).name, stream)) for stream in files]
        found = service.post("/admin/models?wait=600", data={"name": name}, files=sent)
    fate = f"is published as {name}:{found['version']}" if found["version"] else f"is being judged as {found['id']}"
    output.note(f"{path.name} {fate}")


@commands.command()
def export(
    name: Annotated[str, typer.Argument(help="NAME, or NAME:VERSION; without one the live version.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    workspace: Workspace = None,
) -> None:
    """Write a version's bundle: `model.onnx`, `manifest.json` and the rest."""
    from export.bundle import BundleError, write  # noqa: PLC0415 - loaded by those commands that need it

    models = registry(_folder(workspace))
    model, _, version = name.partition(":")
    version = version or models.live(model) or ""
    try:
        write(out, models.manifest(model, version), models.files(model, version))
    except BundleError as error:
        raise InvalidRequestError(str(error)) from None
    typer.echo(f"{model}:{version} is in {out}")


@commands.command()
def verify(workspace: Workspace = None, *, as_json: output.Json = False) -> None:
    """Prove again, from the bytes of every version, all that its manifest promises; exit code 1 if anything is not so.

    Digests, norms, bounds, the constants and the form of the certified radius, labels, and that the graph is what its checkpoint folds to.
    """
    models = registry(_folder(workspace))
    rows = [
        {"model": name, "version": version, "problem": _problem(models, name, version)}
        for name in models.models()
        for version in models.versions(name)
    ]
    output.show(rows, ["model", "version", "problem"], as_json=as_json)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _problem(models: Any, name: str, version: str) -> str | None:
    from export.bundle import write  # noqa: PLC0415 - loaded by those commands that need it

    with tempfile.TemporaryDirectory(prefix="specnorm-verify-") as draft:
        try:
            write(Path(draft) / "bundle", models.manifest(name, version), models.files(name, version))
        except CorruptError as error:
            return str(error)
        return children.problem("export.check", [str(Path(draft) / "bundle")])


def _folder(workspace: Path | None) -> Path:
    """Return the workspace, which must be there: these commands look, they do not make one."""
    folder = read_settings(workspace=workspace).workspace
    if not folder.is_dir():
        raise InvalidRequestError(f"There is no workspace {folder}: say where it is with --workspace.")
    return folder
