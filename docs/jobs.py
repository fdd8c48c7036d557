"""Writes the parts of `docs/fine-tuning.md` that the code itself tells: hyperparameters, the request, the states. `make docs` runs it."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from app.jobs.machine import HOLDS, TABLE, TERMINAL, State
from app.jobs.request import Hyperparameters, JobRequest

PAGE = Path(__file__).with_name("fine-tuning.md")
OWN = ("promote", "dry_run", "priority", "max_seconds")


def table(model: type[BaseModel], names: tuple[str, ...]) -> str:
    """Return fields of a model as a table: what is taken, what where nothing is said, and what it means."""
    known = model.model_json_schema()["properties"]
    rows = ((name, taken(known[name]), default(model, name), known[name]["description"]) for name in names)
    lines = [f"| `{name}` | {takes} | `{value}` | {meaning} |" for name, takes, value, meaning in rows]
    return "\n".join(["| name | takes | default | meaning |", "|---|---|---|---|", *lines])


def taken(schema: dict[str, Any]) -> str:
    """Return the values that a field takes."""
    form = next((part for part in schema.get("anyOf", ()) if part.get("type") != "null"), schema)
    if "enum" in form:
        return ", ".join(f"`{value}`" for value in form["enum"])
    if "$ref" in form:
        return "[its own fields](private-training.md)"
    low = f"from {form['minimum']:g}" if "minimum" in form else f"above {form['exclusiveMinimum']:g}" if "exclusiveMinimum" in form else ""
    high = f"to {form['maximum']:g}" if "maximum" in form else f"below {form['exclusiveMaximum']:g}" if "exclusiveMaximum" in form else ""
    return " ".join(part for part in (form["type"], low, high) if part)


def default(model: type[BaseModel], name: str) -> str:
    """Return what a field is where nothing is said."""
    value = model.model_fields[name].default
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def states() -> str:
    """Return the state machine as a diagram."""
    lines = [f"    [*] --> {next(iter(State)).value}"]
    for (start, event), end in TABLE.items():
        lines.append(f"    {start.value} --> {end.value}: {event.value}")
    lines += [f"    {state.value} --> [*]" for state in State if state in TERMINAL]
    holds = "; ".join(f"`{event.value}` where `paused` is {str(before).lower()}" for before, event in HOLDS)
    return "```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + f"\n```\n\nOnly these: {holds}."


PARTS = {
    "hyperparameters": lambda: table(Hyperparameters, tuple(Hyperparameters.model_fields)),
    "request": lambda: table(JobRequest, OWN),
    "states": states,
}


def written(page: str) -> str:
    """Return the page with its parts as they are now."""
    for name, part in PARTS.items():
        before, rest = page.split(f"<!-- {name} -->", maxsplit=1)
        page = f"{before}<!-- {name} -->\n{part()}\n<!-- end of {name} -->{rest.split(f'<!-- end of {name} -->')[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    sys.exit()
