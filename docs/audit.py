"""Writes the table of rules in `docs/audit.md` from the rules themselves. `make docs` runs it."""

import sys
from collections import defaultdict
from pathlib import Path

from onnx import helper

from export.audit import elementwise, reducing, rules
from export.audit.node import Node

PAGE = Path(__file__).with_name("audit.md")
START, END = "<!-- rules -->", "<!-- end of rules -->"


def table() -> str:
    """Return the table: operators that share a rule, and the first sentence of the rule."""
    shared: dict[str, list[str]] = defaultdict(list)
    for op, rule in rules.RULES.items():
        text = reducing.REDUCTIONS[op].__doc__ if op in reducing.REDUCTIONS else rule.__doc__
        first = " ".join((text or "").split("\n\n")[0].split())
        shared[first].append(f"`{op}`" + (f" {steepest(op)}" if op in elementwise.SLOPES else ""))
    rows = sorted((", ".join(sorted(ops)), text) for text, ops in shared.items())
    return "\n".join(["| operators | rule |", "|---|---|", *(f"| {ops} | {text} |" for ops, text in rows)])


def steepest(op: str) -> str:
    """Return the slope of an entrywise operator with default attributes."""
    node = Node(helper.make_node(op, ["x"], ["y"]), (), 24)
    try:
        found = elementwise.SLOPES[op](node)
    except Exception:  # it has no default
        return "(by its attributes)"
    return f"{found:.6g}" if found < float("inf") else "(by its attributes)"


def written(page: str) -> str:
    """Return the page with the table as it is now."""
    before, after = page.split(START, maxsplit=1)[0], page.split(END)[1]
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    sys.exit()
