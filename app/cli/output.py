"""How commands print: a table for people, JSON for programs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def note(text: str) -> None:
    """Tell a person what happens, on stderr, so that stdout stays what was asked for."""
    typer.echo(text, err=True)


def show(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool) -> None:
    """Print ``rows``, all of them as JSON or the given columns as a table."""
    if as_json:
        show_json(list(rows))
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that only tables need
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = list(columns)
    for number, column in enumerate(shown):
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=number == 0)  # the first is what one copies
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in shown))
    Console(highlight=False, markup=False).print(table)


def show_json(value: Any) -> None:
    """Print one JSON value."""
    typer.echo(json.dumps(value, indent=2, default=str))


def _cell(value: Any) -> str:
    return FORMATS.get(type(value), str)(value)


FORMATS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "-",
    float: lambda number: f"{number:.7g}",
    list: lambda items: ", ".join(map(str, items)),
    dict: lambda items: ", ".join(f"{name}={_cell(value)}" for name, value in items.items()),
    bool: lambda truth: "yes" if truth else "no",
}
