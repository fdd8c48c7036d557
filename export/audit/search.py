"""How large the constant is at least: a search for two inputs whose outputs lie far apart. A bound from below, beside those from above."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.audit.report import Report
from specnorm_core.deadline import Deadline

Real = NDArray[np.float64]
T = TypeVar("T")

WIDEST = 1024
"""Most numbers in an input for which every direction is tried; of a wider one, a few at a time."""
DIRECTIONS = 8
"""That are tried at once in a wide input, beside the best so far; fewer where the model is so slow that a round would outlast the time."""
KEPT = 4
"""Of the best directions, that the next round tries again beside new ones."""
SCALES = (1.0, 0.1, 10.0)
SECONDS = 5.0
UNKNOWN = 64
"""What takes the place of a size that the file leaves open, other than the batch's."""
DATATYPES: dict[str, tuple[Any, float]] = {
    "FP16": (np.float16, 2.0**-8),
    "FP32": (np.float32, 2.0**-18),
    "FP64": (np.float64, 2.0**-46),
}
"""What numbers of an input are sent as, and which share of two inputs and answers may be rounding in the difference of the answers."""


def searched(
    model: bytes | Path,
    report: Report,
    *,
    rounds: int = 4,
    starts: int = 2,
    seed: int = 0,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Return the largest ``norm(f(x) - f(x')) / norm(x - x')`` that was met, by output.

    Where an input has at most `WIDEST` numbers, the Jacobian at a point comes from differences along every axis; its leading direction is
    then tried over several distances, and the best point is where the next round starts. Of a wider one, the Jacobian is taken within a
    few directions, smooth and rough ones, beside the best one so far. What is returned is a quotient of two answers of ONNX Runtime, less
    what their rounding may have added, so a true bound is at least that. It ends when the time is up, after one round at least. Empty where
    the model has not exactly one floating-point input, or does not run.
    """
    if len(report.inputs) != 1 or report.inputs[0].datatype not in DATATYPES:
        return {}
    bounds = report.on_box or report.lipschitz
    wanted = [output.name for output in report.outputs if output.datatype in DATATYPES and bounds[output.name].bound is not None]
    name, shape = report.inputs[0].name, report.inputs[0].shape or (1,)
    lead, row = shape[0], tuple(d if d > 0 else UNKNOWN for d in shape[1:])
    row = row if lead == -1 else (lead, *row)  # a batch of a fixed size is one row, since the bound is of all of it
    wide = int(np.prod(row)) > WIDEST
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 0 if wide else 1, 4
    options.enable_cpu_mem_arena = not wide
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # or activations that meet quantised weights are rounded to 8 bits
    if wide:  # what follows would hold the weights twice
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) if wanted else None
        if session is None:
            return {}
        outputs = Outputs(session, name, row, wanted, *DATATYPES[report.inputs[0].datatype], batched=lead == -1)
        search = Search(outputs, limits(report, name, row, channel=1 if lead == -1 else 2), Deadline(seconds), progress or (lambda _: None))
        return (search.among_some if wide else search.among_all)(np.random.default_rng(seed), rounds, starts)
    except Exception:  # the runtime raises what it likes at a graph of another's making: then nothing was found
        return {}


def limits(report: Report, name: str, row: tuple[int, ...], channel: int = 1) -> tuple[Real, Real]:
    """Return the lowest and the highest flat row of an input whose axis ``channel``, the batch counted, is the one that a box is about."""
    pairs = np.array(report.box.get(name, ((-np.inf, np.inf),)))
    low, high = (np.broadcast_to(side.reshape(-1, *[1] * (len(row) - channel)) if side.size > 1 else side, row).ravel() for side in pairs.T)
    return low, high


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model as functions of flat rows."""

    session: ort.InferenceSession
    name: str
    row: tuple[int, ...]
    names: list[str]
    kind: Any
    rounding: float
    batched: bool

    def __call__(self, x: Real) -> dict[str, Real]:
        """Return the outputs of rows ``x (N, size)``, each ``(N, ...)`` made flat; wide rows one after the other."""
        if not self.batched or x.shape[1] > WIDEST:
            every = [self.session.run(self.names, {self.name: self.sent(one).reshape(self.shape(1))}) for one in x]
            return {name: np.stack([found[i].astype(np.float64).ravel() for found in every]) for i, name in enumerate(self.names)}
        found = self.session.run(self.names, {self.name: self.sent(x).reshape(self.shape(len(x)))})
        return {name: value.reshape(len(x), -1).astype(np.float64) for name, value in zip(self.names, found, strict=True)}

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of an input of so many rows."""
        return (rows, *self.row) if self.batched else self.row

    def sent(self, x: Real) -> Any:
        """Return numbers as they are sent."""
        return x.astype(self.kind)

    def quotients(self, left: Real, right: Real) -> dict[str, Real]:
        """Return by how much the outputs of pairs of rows differ per unit, at least, and 0 where that says nothing."""
        ahead, behind = self(left), self(right)
        left, right = (self.sent(side).astype(np.float64) for side in (left, right))
        apart, sent = np.linalg.norm(left - right, axis=1), np.linalg.norm(left, axis=1) + np.linalg.norm(right, axis=1)
        found = {}
        for name in self.names:
            with np.errstate(all="ignore"):
                size = np.linalg.norm(ahead[name], axis=1) + np.linalg.norm(behind[name], axis=1)
                quotient = np.linalg.norm(ahead[name] - behind[name], axis=1) / apart * (1 - self.rounding * sent / apart)
                quotient -= self.rounding * size / apart
            found[name] = np.where(np.isfinite(quotient) & (apart > 0), np.maximum(quotient, 0.0), 0.0)
        return found


class Search:
    """A search within limits, until the time is up."""

    def __init__(self, outputs: Outputs, box: tuple[Real, Real], deadline: Deadline, progress: Callable[[float], None]) -> None:
        self.outputs, self.box, self.deadline, self.progress = outputs, box, deadline, progress
        self.best = dict.fromkeys(outputs.names, 0.0)

    def over(self) -> bool:
        """Say whether the time is up, and tell how much of it is gone."""
        self.progress(min(1.0, 1 - self.deadline.left() / self.deadline.seconds) if 0 < self.deadline.seconds < np.inf else 0.0)
        return self.deadline.passed()

    def found(self) -> dict[str, float]:
        """Return the largest quotients, where there are any."""
        return {name: value for name, value in self.best.items() if value > 0}

    def among_all(self, rng: np.random.Generator, rounds: int, starts: int) -> dict[str, float]:
        """Return the largest quotient of every output, from several starts at several scales, all directions tried."""
        size = len(self.box[0])
        for _ in range(starts):
            for scale in SCALES:
                start = self.inside(self.centre() + rng.standard_normal(size) * scale)
                for output in self.outputs.names:
                    x = start
                    for _ in range(rounds):
                        x = self.along(x, output, self.leading(x, np.eye(size), output, scale * 2.0**-6)[0], scale)
                        if self.over():
                            return self.found()
        return self.found()

    def among_some(self, rng: np.random.Generator, rounds: int, starts: int) -> dict[str, float]:
        """Return the same of a wide input, where every round tries a few directions and the best ones of the rounds before."""
        size = len(self.box[0])
        reach = (size / WIDEST) ** 0.5  # differences that the rounding of so long a row does not cover
        _, run = timed(lambda: self.outputs(self.inside(self.centre())[None]))
        count = int(min(DIRECTIONS, max(2, self.deadline.left() / (4 * run))))
        for scale in SCALES * starts:
            start = self.inside(self.centre() + rng.standard_normal(size) * scale)
            for output in self.outputs.names:
                x, held = start, np.zeros((0, size))
                for _ in range(rounds):
                    some = np.concatenate([held, [pattern(rng, self.outputs.row, place) for place in range(count)]])
                    directions = np.linalg.qr(some.T)[0].T
                    held, first = timed(partial(self.leading, x, directions, output, scale * reach * 2.0**-4))
                    held = held[:KEPT]
                    x, then = timed(partial(self.along, x, output, held[0], scale * reach, places=3))
                    if self.over() or self.deadline.left() < first + then:
                        return self.found()
        return self.found()

    def leading(self, x: Real, directions: Real, output: str, h: float) -> Real:
        """Return the unit vectors along which the Jacobian at ``x`` is steepest, among those that orthonormal ``directions`` span."""
        ahead, behind = np.split(self.outputs(np.concatenate([x + h * directions, x - h * directions]))[output], 2)
        return np.asarray(np.linalg.svd((ahead - behind).T / (2 * h), full_matrices=False)[2] @ directions)

    def along(self, x: Real, output: str, direction: Real, scale: float, places: int = 33) -> Real:
        """Return the best place along a direction, by quotients over a short distance, whose largest is kept."""
        points = x + np.linspace(-8, 8, places)[:, None] * scale * direction / 4
        left, right = (self.inside(points + sign * scale * 2.0**-6 * direction) for sign in (-1, 1))
        if places < 33:  # also over longer distances, which round less
            left = np.concatenate([left, self.inside(x - np.array([[0.25], [2.0]]) * scale * direction)])
            right = np.concatenate([right, self.inside(x + np.array([[0.25], [2.0]]) * scale * direction)])
        quotients = self.outputs.quotients(left, right)
        for name, every in quotients.items():
            self.best[name] = max(self.best[name], float(every.max()))
        return self.inside(points[int(quotients[output][:places].argmax())])

    def inside(self, x: Real) -> Real:
        """Return points moved into the box."""
        return np.clip(x, *self.box)

    def centre(self) -> Real:
        """Return the middle of the box; 0 where there is none."""
        low, high = (np.where(np.isfinite(side), side, 0.0) for side in self.box)
        return low / 2 + high / 2


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and how many seconds it took."""
    begun = time.perf_counter()
    found = call()
    return found, time.perf_counter() - begun


def pattern(rng: np.random.Generator, row: tuple[int, ...], place: int) -> Real:
    """Return a direction in a wide row: a wave over the long axes and any weights over the short ones, at every third place noise."""
    if place % 3 == 2:
        return rng.standard_normal(int(np.prod(row)))
    found = np.ones(row)
    for axis, n in enumerate(row):
        wave = np.cos(2 * np.pi * rng.integers(0, 4) * np.arange(n) / n + rng.uniform(0, 2 * np.pi))
        side = wave if n > DIRECTIONS else rng.standard_normal(n)
        found = found * side.reshape(-1, *[1] * (len(row) - axis - 1))
    return found.ravel()


def with_search(report: Report, found: Mapping[str, float]) -> Report:
    """Return the report with what was found beside the bounds."""
    bounds = {name: bound.model_copy(update={"searched": found.get(name)}) for name, bound in report.bounds.items()}
    return report.model_copy(update={"bounds": bounds})
