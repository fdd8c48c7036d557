"""The child process: reads a model from stdin, bounds itself, and writes what it finds to stdout, a JSON line at a time."""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any


def main(memory: int, seconds: int) -> None:
    """Judge the model on stdin within ``memory`` bytes and ``seconds`` of processor time."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no verdict

    def tell(**line: Any) -> None:
        told.write(json.dumps(line) + "\n")
        told.flush()

    for limit, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        judge(sys.stdin.buffer.read(), tell)
    except MemoryError:
        tell(error=f"the model needs more than the {memory >> 20} MiB of memory that its trial is given")


def judge(content: bytes, tell: Callable[..., None]) -> None:
    """Tell the signature of a model that loads and runs, then its audit; or the error that keeps it from being served."""
    import onnx  # noqa: PLC0415  # within the limits
    import onnxruntime  # noqa: PLC0415

    from export.admission.probe import ProbeError, probe, rows_have_a_name_of_their_own  # noqa: PLC0415
    from export.admission.structure import StructureError, opened  # noqa: PLC0415
    from export.claims import radius_fault  # noqa: PLC0415

    try:
        model = opened(content)
        onnx.checker.check_model(model)
        inputs, outputs = probe(content)
        fault = radius_fault(model)
        if fault is not None:
            tell(error=fault)
            return
    except (StructureError, ProbeError) as error:
        tell(error=str(error))
        return
    except (onnx.checker.ValidationError, ValueError) as error:
        tell(error=f"the model is not valid ONNX: {_first_line(error)}")
        return
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), None)
    producer = " ".join(filter(None, (model.producer_name[:64], model.producer_version[:64])))
    tell(
        inputs=[tensor.model_dump() for tensor in inputs],
        outputs=[tensor.model_dump() for tensor in outputs],
        tools={"producer": producer or "unknown", "opset": str(opset), "onnxruntime": onnxruntime.__version__},
    )
    from export.audit import AuditError, audit  # noqa: PLC0415

    try:
        report = audit(model)
    except AuditError as error:
        tell(unaudited=str(error))
        return
    own = rows_have_a_name_of_their_own(model)
    tell(report=report.model_copy(update={"rows_independent": report.rows_independent and own}).model_dump(mode="json"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
