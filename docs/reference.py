"""Writes `docs/reference.md` from the code itself: settings, commands, routes, metrics, error statuses. `make docs` runs it."""

import asyncio
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp
from typer.testing import CliRunner

from app.api import errors, metrics
from app.api.guard import Guard
from app.cli import root
from app.cli.processes import RESTARTS, RESTARTS_TEXT
from app.db import connect
from app.inference import describe
from app.inference.catalog import Catalog
from app.jobs.machine import State
from app.main import create_app
from app.observability import Family, process
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import access, scope_of
from app.settings import Settings

PASSED_ON = {"export": "export", "audit": "export.audit", "compare": "export.compare"}
PAGE = Path(__file__).with_name("reference.md")


def page() -> str:
    """Return the whole page."""
    parts = {
        "Settings": table(("variable", "default", "meaning"), settings()),
        "Commands": "\n\n".join(commands()),
        "HTTP routes": table(("method", "path", "scope", "what"), routes()),
        "Errors": table(("status", "when"), statuses()),
        "States of a job": ", ".join(f"`{state.value}`" for state in State),
        "Metrics": table(("name", "what"), families()),
    }
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    return f"# Reference\n\nWritten by `make docs` from the code; do not edit.\n\n{sections}\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings() -> Iterable[tuple[str, ...]]:
    """Yield every setting."""
    for name, field in Settings.model_fields.items():
        yield f"`SPECNORM_{name.upper()}`", f"`{field.default}`", field.description or ""


def commands() -> Iterable[str]:
    """Yield the help text of every command."""
    for name in _listed(_help()):
        if name in PASSED_ON:
            yield f"### specnorm {name}\n\nAll options go to `python -m {PASSED_ON[name]}`."
            continue
        for command in [[name, inner] for inner in _listed(_help(name))] or [[name]]:
            yield f"### specnorm {' '.join(command)}\n\n```text\n{_help(*command).strip()}\n```"


def _listed(text: str) -> list[str]:
    return re.findall(r"^  (\w+) ", text.partition("Commands:")[2], re.MULTILINE)


def _help(*command: str) -> str:
    result = CliRunner().invoke(root, [*command, "--help"], prog_name="specnorm", terminal_width=100, max_content_width=100)
    return result.stdout


def routes() -> Iterable[tuple[str, ...]]:
    """Yield every route with the scope that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        text = asyncio.run(_openapi(create_app(Settings(workspace=Path(folder), worker="none"))))
    for path, methods in sorted(text["paths"].items()):
        for method, operation in methods.items():
            what = operation["summary"] if path.startswith("/v2") else operation["description"]
            yield f"`{method.upper()}`", f"`{path}`", scope_of(path) or "-", what.splitlines()[0]


async def _openapi(application: ASGIApp) -> dict[str, Any]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
        text: dict[str, Any] = (await client.get("/openapi.json")).json()
        return text


def statuses() -> Iterable[tuple[str, ...]]:
    """Yield the status of every error with its default sentence."""
    for kind, status in sorted(errors.STATUS.items(), key=lambda item: item[1]):
        yield str(status), kind.__doc__ or ""


def families() -> list[tuple[str, ...]]:
    """Return every metric, as a service without models tells them."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_families(Settings(workspace=Path(folder))))


async def _families(empty: Settings) -> list[tuple[str, ...]]:
    database = connect(empty.workspace)
    catalog = Catalog(Registry(database, Blobs(empty.workspace / "blobs")), empty)
    guarded = Guard(create_app(empty), access(empty), empty).families()
    sources = metrics.live(catalog), metrics.stored(database), guarded, process()
    told = [*metrics.inference(describe.numbers(catalog)), *[family for source in sources async for family in source]]
    told.append(Family(RESTARTS, "counter", RESTARTS_TEXT, ()))
    return [(f"`{family.name}`", family.text) for family in told if not family.name.startswith(("process_", "python_"))]


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE.name}\n")
