"""Lists in pages: the cursor is the id of the last item seen, and that item is not shown again."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, Table

from app.errors import InvalidRequestError


class Page(NamedTuple):
    """Some items, and whether more come after them."""

    items: list[dict[str, Any]]
    has_more: bool


def page(
    connection: Connection,
    query: Select[Any],
    table: Table,
    shape: Callable[[Row[Any]], dict[str, Any]],
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
) -> Page:
    """Return up to ``limit`` rows of ``query`` that come after the row with the id ``after``.

    Args:
        connection: where to look.
        query: selects from ``table``, which has the columns ``id`` and ``number``; a number is never used twice.
        table: the table.
        shape: makes the item of a row.
        after: id of the last item seen; None begins at the first.
        limit: most items to return.
        newest_first: order by falling number.

    Raises:
        InvalidRequestError: there is no item ``after`` in this list.
    """
    number = table.c.number
    if after is not None:
        seen = connection.scalar(query.with_only_columns(number).where(table.c.id == after))
        if seen is None:
            raise InvalidRequestError(f"there is no item {after[:80]!r} to list after", param="after")
        query = query.where(number < seen if newest_first else number > seen)
    rows = connection.execute(query.order_by(number.desc() if newest_first else number).limit(limit + 1)).all()
    return Page([shape(row) for row in rows[:limit]], len(rows) > limit)
