"""These tests need a CUDA device; where there is none, none of them is collected, and the run says so."""

from typing import Any

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if collect_ignore_glob:
        terminalreporter.write_line("left out: tests/gpu, since PyTorch sees no CUDA device (TORCH=cuda make test-gpu where there is one)")
