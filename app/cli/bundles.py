"""`specnorm models import|export|verify|diff`: what goes by the bundle."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import children, output
from app.cli.place import MOST_BYTES, Place, existing, place, version_of
from app.cli.remote import Service, Url
from app.cli.workspace import Workspace
from app.errors import CorruptError, InvalidRequestError

Which = Annotated[str, typer.Argument(help="NAME:VERSION, NAME@ALIAS, or NAME for the live version.")]


def import_(
    path: Annotated[Path, typer.Argument(exists=True, help="An ONNX file, or a bundle: its folder, or one .zip file.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model that it becomes the next version of; by default that of the file, without its ending."),
    ] = None,
    workspace: Workspace = None,
    url: Url = None,
) -> None:
    """Judge a model that came from elsewhere, and publish it: with a Lipschitz bound where its audit proves one."""
    from app.registry.registry import check_name  # noqa: PLC0415 - loaded by those commands that need it

    if name is None:
        name = path.resolve().name if path.is_dir() else path.stem
    check_name(name)
    if url:
        _send(Service(url), path, name)
        return
    folder = existing(workspace)
    with tempfile.TemporaryDirectory(prefix="specnorm-import-") as draft:
        bundle = _unpacked(path, Path(draft)) if path.suffix == ".zip" else path
        if bundle.is_dir():
            children.run("export.check", [str(bundle)])
        else:
            bundle = Path(draft) / "bundle"
            children.run("export.admission", [str(path), "--out", str(bundle)])
        output.note(children.publish(bundle, name, folder))


def export(
    name: Which,
    out: Annotated[Path, typer.Option(help="New folder, or new file whose name ends in .zip.")],
    workspace: Workspace = None,
    url: Url = None,
) -> None:
    """Write a version's bundle: `model.onnx`, `manifest.json` and the rest."""
    from export.bundle import BundleError, write  # noqa: PLC0415 - loaded by those commands that need it

    where = place(workspace, url)
    model, version = version_of(where, name)
    manifest, files = where.manifest(model, version), where.files(model, version)
    if out.suffix == ".zip":
        from app.registry.archive import pack  # noqa: PLC0415

        with out.open("xb") as stream:
            pack(stream, manifest, lambda name: io.BytesIO(files[name]))
    else:
        try:
            write(out, manifest, files)
        except BundleError as error:
            raise InvalidRequestError(str(error)) from None
    typer.echo(f"{model}:{version} is in {out}")


def verify(workspace: Workspace = None, url: Url = None, *, as_json: output.Json = False) -> None:
    """Prove again, from the bytes of every version, all that its manifest promises; exit code 1 if anything is not so.

    Digests, norms, bounds, the constants and the form of the certified radius, labels, and that the graph is what its checkpoint folds to.
    """
    where = place(workspace, url)
    rows = [
        {"model": name, "version": version, "problem": _problem(where, name, version)}
        for name in where.models()
        for version in where.versions(name)
    ]
    output.show(rows, ["model", "version", "problem"], as_json=as_json)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def diff(first: Which, second: Which, workspace: Workspace = None, url: Url = None, *, as_json: output.Json = False) -> None:
    """Show two versions side by side: sigma of every layer, Lipschitz bound, metrics, and how they were trained."""
    from app.registry.lineage import differences  # noqa: PLC0415 - loaded by those commands that need it

    where = place(workspace, url)
    a, b = (version_of(where, name) for name in (first, second))
    rows = differences(where.manifest(*a), where.manifest(*b))
    heads = [":".join(one) for one in (a, b)]
    if as_json:
        output.show_json({"a": heads[0], "b": heads[1], "rows": rows})
        return
    shown: list[dict[str, Any]] = [{"what": row["what"], heads[0]: row["a"], heads[1]: row["b"], "change": row["change"]} for row in rows]
    output.show(shown, ["what", *dict.fromkeys(heads), "change"], as_json=False)


def register(commands: typer.Typer) -> None:
    """Add these commands to ``commands``."""
    commands.command("import")(import_)
    for command in (export, verify, diff):
        commands.command()(command)


def _send(service: Service, path: Path, name: str) -> None:
    """Have a running service judge and publish it."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(one.open("rb")) for one in (sorted(path.iterdir()) if path.is_dir() else [path])]
        sent = [("file", (Path(stream.name).name, stream)) for stream in files]
        found = service.post("/admin/models?wait=600", data={"name": name}, files=sent)
    fate = f"is published as {name}:{found['version']}" if found["version"] else f"is being judged as {found['id']}"
    output.note(f"{path.name} {fate}")


def _unpacked(path: Path, draft: Path) -> Path:
    """Return a folder with the files of an archive, each under its checked plain name."""
    from app.registry.archive import unpack  # noqa: PLC0415 - loaded by those commands that need it

    folder = draft / "given"
    folder.mkdir()
    with path.open("rb") as stream:
        for name, pieces in unpack(stream, limit=MOST_BYTES):
            with (folder / name).open("xb") as out:
                out.writelines(pieces)
    return folder


def _problem(where: Place, name: str, version: str) -> str | None:
    from export.bundle import BundleError, write  # noqa: PLC0415 - loaded by those commands that need it

    with tempfile.TemporaryDirectory(prefix="specnorm-verify-") as draft:
        try:
            write(Path(draft) / "bundle", where.manifest(name, version), where.files(name, version))
        except (CorruptError, BundleError, InvalidRequestError) as error:
            return str(error)
        return children.problem("export.check", [str(Path(draft) / "bundle")])
