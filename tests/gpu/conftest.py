"""These tests need a CUDA device; where there is none, none of them is collected, and the run says so."""

from typing import Any

import onnxruntime
import torch

WITHOUT_TORCH = "PyTorch sees no CUDA device (TORCH=cuda make test-gpu where there is one)"
WITHOUT_RUNTIME = "this build of ONNX Runtime has no CUDA (the extra gpu instead of cpu)"

left_out = {
    **({} if torch.cuda.is_available() else {"test_step_on_cuda.py": WITHOUT_TORCH}),
    **({} if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else {"test_session_on_cuda.py": WITHOUT_RUNTIME}),
}
collect_ignore = list(left_out)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, why in left_out.items():
        terminalreporter.write_line(f"left out: tests/gpu/{name}, since {why}")
