"""These tests need Opacus, the extra `privacy`; where it is missing none of them is collected, and the run says so."""

from importlib.util import find_spec
from typing import Any

collect_ignore_glob = [] if find_spec("opacus") else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if collect_ignore_glob:
        terminalreporter.write_line("left out: tests/privacy, since Opacus is not installed (specnorm[privacy], or make test-privacy)")
