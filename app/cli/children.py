"""Commands that need torch or onnx: each runs a module of the rooms below in a child process."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from app.cli import output
from app.cli.workspace import Workspace, registry
from app.cli.workspace import settings as read_settings
from app.errors import InvalidRequestError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def run(module: str, arguments: list[str]) -> None:
    """Run ``python -m module`` on this terminal and leave with its exit code where that is not 0."""
    stopped = False
    with subprocess.Popen([sys.executable, "-m", module, *arguments]) as child:  # noqa: S603 - our own modules, no shell
        while (code := child.poll()) is None:
            try:
                child.wait()
            except KeyboardInterrupt:  # a terminal sends it to the child too, which may have something to keep: it ends in its own way
                stopped = True
    if stopped:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code if code > 0 else 1)


def problem(module: str, arguments: list[str]) -> str | None:
    """Run ``python -m module`` and return what it says on stderr where it fails."""
    done = subprocess.run(  # noqa: S603 - our own modules, no shell
        [sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if not done.returncode:
        return None
    said = done.stderr.strip().splitlines()
    return said[-1].removeprefix("specnorm: ") if said else f"the check ended with status {done.returncode}"


def train(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model that the result becomes the next version of.")] = None,
    data: Annotated[str, typer.Option(help="File of the data, or `digits`.")] = "digits",
    arch: Annotated[str, typer.Option(help="File or preset of the architecture.")] = "mlp",
    gradient_mode: Annotated[str, typer.Option(help="full or simplified.")] = "full",
    epochs: Annotated[int | None, typer.Option(help="How often the data are gone through.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the bundle, the checkpoint among it.")] = None,
    workspace: Workspace = None,
) -> None:
    """Train, fold, export and verify; then publish under --name. Options not listed go to `python -m export.train`."""
    if name is None and out is None:
        raise typer.BadParameter("say what is to become of the model: --name, or --out, or both.")
    train_model(
        data=data,
        arch=arch,
        gradient_mode=gradient_mode,
        name=name,
        workspace=read_settings(workspace=workspace).workspace,
        out=out,
        more=[*_options({"--epochs": epochs, "--seed": seed}), *context.args],
    )


def train_model(
    *,
    data: str,
    arch: str,
    gradient_mode: str,
    name: str | None,
    workspace: Path,
    out: Path | None = None,
    more: list[str] | None = None,
) -> None:
    """Train in a child process and publish what it wrote."""
    with tempfile.TemporaryDirectory(prefix="specnorm-train-") as draft:
        folder = out or Path(draft) / "bundle"
        run("export.train", ["--data", data, "--arch", arch, "--gradient-mode", gradient_mode, "--out", str(folder), *(more or [])])
        if out is not None:
            output.note(f"bundle written to {out}")
        if name is not None:
            output.note(publish(folder, name, workspace))


def _options(values: dict[str, int | None]) -> list[str]:
    return [text for option, value in values.items() if value is not None for text in (option, str(value))]


def publish(folder: Path, name: str, workspace: Path) -> str:
    """Make the bundle in ``folder`` the next version of ``name``, live if no other is, and say so."""
    from export.bundle import BundleError, read  # noqa: PLC0415 - loaded by those commands that need it

    try:
        manifest, files = read(folder)
    except BundleError as error:
        raise InvalidRequestError(str(error)) from None
    models = registry(workspace)
    version = models.publish(name, manifest, files)
    if models.live(name) is None:
        models.promote(name, version, why="the first version", who="specnorm train")
        return f"{name}:{version} is published and live"
    return f"{name}:{version} is published; `specnorm models promote {name} {version}` makes it live"


def export(context: typer.Context) -> None:
    """Write the ONNX model of a checkpoint: all options go to `python -m export`."""
    run("export", context.args)


def audit(context: typer.Context) -> None:
    """Bound sigma of every linear layer of any ONNX file: all options go to `python -m export.audit`."""
    run("export.audit", context.args)


def compare(context: typer.Context) -> None:
    """Compare both gradient modes on your data, paired, several seeds: all options go to `python -m export.compare`."""
    run("export.compare", context.args)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.command(context_settings=PASS_ON)(train)
    for command in (export, audit, compare):
        root.command(context_settings=PASS_ON, add_help_option=False)(command)
