"""The parent's side of an admission: starts the child, waits for so long, and makes a manifest of what it told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from export.bundle import MODEL, Layer, Lipschitz, Manifest, Signature, Tensor, digest

_NO_BOUND = {"bound": None, "rigorous": False, "method": None}

COMMAND = (sys.executable, "-m", "export.admission.child")


class AdmissionError(ValueError):
    """The model is not admitted; the sentence says why."""


class Limits(NamedTuple):
    """How large a model may be, and what its trial may take.

    ``memory`` comes on top of six times the size of the file: its bytes, the parsed form, and what the runtime makes of it.
    """

    size: int = 512 * 2**20
    memory: int = 4 * 2**30
    seconds: float = 120.0


STANDARD = Limits()


def admit(content: bytes, limits: Limits = STANDARD) -> Manifest:
    """Return the manifest of a model that may be served, with a Lipschitz bound where the audit proves one.

    Raises:
        AdmissionError: it may not.
    """
    if not content:
        raise AdmissionError("the file is empty")
    if len(content) > limits.size:
        raise AdmissionError(f"the file has more than the {limits.size} bytes that are admitted")
    return manifest_of(content, *_judged(content, limits))


def manifest_of(content: bytes, told: dict[str, Any], why: str) -> Manifest:
    """Return the manifest that the lines of a child, as one object, make for ``content``; ``why`` is how the child ended.

    Raises:
        AdmissionError: they say that it is not admitted, or do not get so far as to say that it is.
    """
    if "error" in told:
        raise AdmissionError(told["error"])
    if "inputs" not in told:
        raise AdmissionError(f"its trial did not end well: {why}")
    report: dict[str, Any] = told.get("report", {"layers": (), "lipschitz": {}, "rows_independent": False})
    reason = told.get("unaudited") or f"the audit did not end well: {why}"
    outputs = tuple(Tensor.model_validate(tensor) for tensor in told["outputs"])
    first = outputs[0].name
    return Manifest(
        signature=Signature(
            inputs=tuple(Tensor.model_validate(tensor) for tensor in told["inputs"]),
            outputs=outputs,
            rows_independent=report["rows_independent"],
        ),
        layers=tuple(_layer(layer) for layer in report["layers"]),
        lipschitz=Lipschitz.model_validate(report["lipschitz"].get(first, {**_NO_BOUND, "reason": reason})),
        verification=_of_others(report["lipschitz"], first),
        origin="import",
        tools=told["tools"],
        files={MODEL: digest(content)},
    )


def _judged(content: bytes, limits: Limits) -> tuple[dict[str, Any], str]:
    """Return all that the child told as one object, and how it ended."""
    memory = limits.memory + 6 * len(content)
    child = subprocess.Popen(  # noqa: S603  # our own module; the arguments are numbers
        [*COMMAND, str(memory), str(int(limits.seconds) + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    )
    try:
        output, _ = child.communicate(content, timeout=limits.seconds)
        why = _end(child.returncode)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
        why = f"it took longer than {limits.seconds:g} seconds"
    except BaseException:
        child.kill()
        child.wait()
        raise
    told: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            told |= json.loads(line)
        except ValueError:
            break  # the last line of a child that was killed
    return told, why


def _end(status: int) -> str:
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


def _of_others(bounds: Mapping[str, Any], first: str) -> dict[str, float]:
    """Return the bounds of the outputs but the first, whose bound is the manifest's own."""
    return {f"lipschitz_bound/{name}": stated["bound"] for name, stated in bounds.items() if name != first and stated["bound"] is not None}


def _layer(found: Mapping[str, Any]) -> Layer:
    """Return an audited layer as it is: nothing was folded, and nothing is constrained."""
    upper = found["sigma_upper"]
    return Layer(
        name=found["name"],
        kind=found["kind"],
        shape=found["shape"],
        norm="operator",
        constraint="none",
        target=upper,
        sigma_estimate=found["sigma_estimate"],
        sigma_upper=upper,
        operator_sigma_upper=upper,
        folded_sigma_upper=upper,
        stable_rank=None,
    )
