"""How large the constant is at least: a search for two inputs whose outputs lie far apart. An estimate, beside what is proved."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.audit.report import Report

Real = NDArray[np.float64]

WIDEST = 1024
"""Most numbers in an input for which every direction is tried."""
SCALES = (0.1, 1.0, 10.0)


def searched(model: bytes | Path, report: Report, *, rounds: int = 4, starts: int = 2, seed: int = 0) -> dict[str, float]:
    """Return the largest ``norm(f(x) - f(x')) / norm(x - x')`` that was met, by output.

    The Jacobian at a point comes from differences along every axis, in one batch; its leading direction is then tried over several
    distances, and the best point is where the next round starts. What is returned is a quotient of two answers of ONNX Runtime, so a true
    bound is at least that, up to their float32 rounding. Empty where the model has not exactly one float32 input, free in the batch, of at
    most `WIDEST` numbers, or does not run.
    """
    if len(report.inputs) != 1 or report.inputs[0].datatype != "FP32":
        return {}
    name, (batch, *row) = report.inputs[0].name, report.inputs[0].shape or (1, -1)
    size = int(np.prod(row))
    if batch != -1 or min(row, default=-1) < 1 or size > WIDEST:
        return {}
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    wanted = [
        output
        for output in report.outputs
        if output.datatype == "FP32" and (report.on_box or report.lipschitz)[output.name].bound is not None
    ]
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        run = Runner(session, name, tuple(row), [output.name for output in wanted], limits(report, name, tuple(row)))
        return run.climb(np.random.default_rng(seed), rounds, starts)
    except Exception:  # the runtime raises what it likes at a graph of another's making: then nothing was found
        return {}


def limits(report: Report, name: str, row: tuple[int, ...]) -> tuple[Real, Real]:
    """Return the lowest and the highest flat row of an input."""
    pairs = np.array(report.box.get(name, ((-np.inf, np.inf),)))
    low, high = (np.broadcast_to(side.reshape(-1, *[1] * (len(row) - 1)), row).ravel() for side in pairs.T)
    return low, high


class Runner:
    """A model as a function of flat rows."""

    def __init__(self, session: ort.InferenceSession, name: str, row: tuple[int, ...], outputs: list[str], box: tuple[Real, Real]) -> None:
        self.session, self.name, self.row, self.outputs, self.box = session, name, row, outputs, box

    def __call__(self, x: Real) -> dict[str, Real]:
        """Return the outputs of rows ``x (N, size)``, each ``(N, ...)`` made flat."""
        given = x.reshape(-1, *self.row).astype(np.float32)
        found = self.session.run(self.outputs, {self.name: given})
        return {name: value.reshape(len(x), -1).astype(np.float64) for name, value in zip(self.outputs, found, strict=True)}

    def climb(self, rng: np.random.Generator, rounds: int, starts: int) -> dict[str, float]:
        """Return the largest quotient of every output, from several starts at several scales."""
        size = int(np.prod(self.row))
        best = dict.fromkeys(self.outputs, 0.0)
        for scale in SCALES:
            for _ in range(starts):
                start = self.inside(self.centre() + rng.standard_normal(size) * scale)
                for output in self.outputs:
                    x = start
                    for _ in range(rounds):
                        x, quotient = self.step(x, output, scale)
                        best[output] = max(best[output], quotient)
        return {name: value for name, value in best.items() if value > 0}

    def step(self, x: Real, output: str, scale: float) -> tuple[Real, float]:
        """Return the best point along the leading direction of the Jacobian at ``x``, and the largest quotient met there."""
        h = scale * 2.0**-6
        moves = np.concatenate([np.eye(len(x)), -np.eye(len(x))]) * h
        ahead, behind = np.split(self(x + moves)[output], 2)
        direction = np.linalg.svd((ahead - behind).T / (2 * h), full_matrices=False)[2][0]
        places = x + np.linspace(-8, 8, 33)[:, None] * scale * direction / 4
        left, right = (self.inside(places + sign * h * direction) for sign in (-1, 1))
        rise = np.linalg.norm(self(right)[output] - self(left)[output], axis=1)
        exact = np.linalg.norm(right.astype(np.float32).astype(np.float64) - left.astype(np.float32), axis=1)
        quotients = np.where(np.isfinite(rise), rise, 0.0) / np.maximum(exact, 1e-30)
        return self.inside(places[int(quotients.argmax())]), float(quotients.max())

    def inside(self, x: Real) -> Real:
        """Return points moved into the box."""
        return np.clip(x, *self.box)

    def centre(self) -> Real:
        """Return the middle of the box; 0 where there is none."""
        low, high = (np.where(np.isfinite(side), side, 0.0) for side in self.box)
        return low / 2 + high / 2


def with_search(report: Report, found: Mapping[str, float]) -> Report:
    """Return the report with what was found beside the bounds."""
    bounds = {name: bound.model_copy(update={"searched": found.get(name)}) for name, bound in report.bounds.items()}
    return report.model_copy(update={"bounds": bounds})
