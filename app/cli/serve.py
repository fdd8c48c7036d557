"""`specnorm serve`, `specnorm worker` and `specnorm doctor`."""

import asyncio
import platform
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli import children, example, output
from app.cli.place import existing
from app.cli.workspace import Workspace, registry
from app.cli.workspace import settings as read_settings
from app.errors import SpecnormError

if TYPE_CHECKING:
    from app.settings import Settings

DEMO = "digits"
ALIVE_SECONDS = 1.0


def serve(
    *,
    workspace: Workspace = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to bind; 0 takes a free one.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, max=64, help="Serving processes on the one port.")] = None,
    worker: Annotated[str | None, typer.Option(help="local: fine-tune jobs run here; none: elsewhere.")] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help=f"First train the model `{DEMO}` on scikit-learn's digits, where there is none.")
    ] = False,
) -> None:
    """Serve the models of a workspace, and run its fine-tune jobs."""
    from app.cli import process  # noqa: PLC0415 - loaded by those commands that need it
    from app.cli.processes import Processes  # noqa: PLC0415
    from app.observability import configure_logging  # noqa: PLC0415
    from app.security import check_bind  # noqa: PLC0415

    begun = time.monotonic()
    settings = read_settings(workspace=workspace, host=host, port=port, processes=processes, worker=worker)
    check_bind(settings)
    listener = process.listen(settings)  # first: what cannot be served need not be trained
    if settings.demo_bundle and not registry(settings.workspace).models():
        output.note(children.publish(settings.demo_bundle, settings.demo_name, settings.workspace))
    if demo and DEMO not in registry(settings.workspace).models():
        output.note(f"· training the demo model {DEMO}")
        children.train_model(data=DEMO, arch="mlp", gradient_mode="full", name=DEMO, workspace=settings.workspace)
    trained = time.monotonic()
    bound: int = listener.getsockname()[1]

    def started() -> None:
        _announce(settings, bound, training=trained - begun if demo else 0, start=time.monotonic() - trained)

    if settings.processes == 1:
        process.run(settings, listener, started)
        return
    listener.close()
    configure_logging(settings.log_level, settings.log_format)
    with process.reserve(settings, bound), process.reserve(settings, settings.grpc_port) as grpc:
        shared = settings.model_copy(update={"port": bound, "grpc_port": grpc and grpc.getsockname()[1]})
        asyncio.run(Processes(shared, started).run())


def worker(
    workspace: Workspace = None,
    *,
    alive: Annotated[
        Path | None, typer.Option(help="File to touch every second while this turns: what a container's health check reads.")
    ] = None,
) -> None:
    """Run the fine-tune jobs of a workspace, and serve nothing."""
    from app.main import work  # noqa: PLC0415 - loaded by those commands that need it
    from app.observability import configure_logging  # noqa: PLC0415

    settings = read_settings(workspace=workspace)
    configure_logging(settings.log_level, settings.log_format)
    output.note(f"Running the jobs of {settings.workspace}; Ctrl-C stops.")
    asyncio.run(_until_stopped(work(settings), _live(alive)))


def doctor(
    workspace: Workspace = None,
    *,
    store: Annotated[bool, typer.Option("--store", help="Look through database and stored files too, beside the service or not.")] = False,
    as_json: output.Json = False,
) -> None:
    """Check what serving needs; exit code 1 if something is wrong."""
    settings = read_settings(workspace=workspace)
    rows: list[dict[str, Any]] = []
    for name, check in CHECKS.items():
        try:
            rows.append({"check": name, "ok": True, "found": check(settings)})
        except (SpecnormError, OSError) as error:
            rows.append({"check": name, "ok": False, "found": str(error)})
    if store:
        rows += _stored(workspace)
    output.show(rows, ["check", "ok", "found", "do"], as_json=as_json)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _stored(workspace: Path | None) -> list[dict[str, Any]]:
    """Return what is amiss in a workspace; what is left over from a crash and heals by itself is no failure."""
    from app.registry.examination import examine  # noqa: PLC0415 - loaded by those commands that need it

    try:
        found = list(examine(registry(existing(workspace))))
    except SpecnormError as error:
        return [{"check": "store", "ok": False, "found": str(error), "do": None}]
    rows = [{"check": "store", "ok": not one.problem, "found": one.what, "do": one.do} for one in found]
    return rows or [{"check": "store", "ok": True, "found": "nothing is amiss", "do": None}]


def register(root: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, worker, doctor):
        root.command()(command)


def _announce(settings: "Settings", port: int, *, training: float, start: float) -> None:
    host = settings.host
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host  # noqa: S104 - compared, not bound
    url = f"http://{shown}:{port}"
    models = registry(settings.workspace)
    lines = [f"Serving {', '.join(models.models()) or 'no model yet'} at {url}", f"Console  {url}/", f"API      {url}/docs"]
    line = example.curl(models, url, with_key=settings.api_keys_file is not None)
    lines += ["Try", line] if line else []
    times = (f"demo model {training:.1f} s, " if training >= 1 else "") + f"start {start:.1f} s"
    typer.echo("\n".join([*lines, f"({times}; Ctrl-C stops)"]))
    sys.stdout.flush()


async def _live(file: Path | None) -> None:
    while file is not None:
        file.touch()
        await asyncio.sleep(ALIVE_SECONDS)


async def _until_stopped(*work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.gather(*work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        output.note("Stopped.")


def _python(_settings: "Settings") -> str:
    return platform.python_version()


def _runtime(_settings: "Settings") -> str:
    from app.inference.runtime import installed  # noqa: PLC0415

    return installed()


def _store(settings: "Settings") -> str:
    models = registry(settings.workspace).models()
    return f"{settings.workspace}: {len(models)} model{'s' * (len(models) != 1)}"


def _address(settings: "Settings") -> str:
    from app.cli import process  # noqa: PLC0415
    from app.security import check_bind  # noqa: PLC0415

    check_bind(settings)
    process.listen(settings).close()
    return f"{settings.host}:{settings.port} is free"


CHECKS: dict[Literal["python", "runtime", "workspace", "address"], Callable[["Settings"], str]] = {
    "python": _python,
    "runtime": _runtime,
    "workspace": _store,
    "address": _address,
}
