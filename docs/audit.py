"""Writes the table of rules in `docs/audit.md` from the rules themselves. `make docs` runs it."""

import importlib
import sys
from collections import Counter, defaultdict
from pathlib import Path

from onnx import helper

from export.audit import elementwise, reducing, rules
from export.audit.node import Node

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "audit.md"
START, END = "<!-- rules -->", "<!-- end of rules -->"


def table() -> str:
    """Return the table: operators that share a rule, and the first sentence of the rule."""
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    graphs = cases()
    for op, rule in rules.RULES.items():
        text = reducing.REDUCTIONS[op].__doc__ if op in reducing.REDUCTIONS else rule.__doc__
        first = " ".join((text or "").split("\n\n")[0].split())
        where = f"{rule.__module__.removeprefix('export.audit.')}.{rule.__name__}"
        shared[first, where].append(f"`{op}`" + (f" {steepest(op)}" if op in elementwise.SLOPES else "") + f" ({graphs[op]})")
    rows = sorted((", ".join(sorted(ops)), text, where) for (text, where), ops in shared.items())
    return "\n".join(
        ["| operators | rule | in `export.audit` |", "|---|---|---|", *(f"| {ops} | {text} | `{where}` |" for ops, text, where in rows)]
    )


def cases() -> Counter[str]:
    """Return how many graphs attain the factor of each operator in its tests."""
    sys.path.insert(0, str(ROOT))
    found = importlib.import_module("tests.export.audit.test_rules")
    return Counter(case.op for case in found.CASES)


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
