"""One pair of runs, a gradient mode each: the same initial weights, the same rows in the same order, step by step in turn."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from export import verify
from export.bundle import MODEL, Frozen, GradientMode, InputDomain
from export.compare.trace import Point, look
from export.pipeline import export_bundle
from export.radius import RADIUS
from export.to_onnx import LOGITS
from specnorm_core.architecture import Architecture, build
from specnorm_core.data import Dataset
from specnorm_core.training import DivergedError, Fit, Hyperparameters

MODES: tuple[GradientMode, GradientMode] = ("full", "simplified")
HELD_OUT = 0.2


class FinalLayer(Frozen):
    """One layer at the end: a rigorous bound of the raw weight's sigma, that of the folded bytes, and the stable rank."""

    sigma_upper: float
    folded_sigma_upper: float
    stable_rank: float | None


class Result(Frozen):
    """What the exported graph of a run does on held-out rows, in ONNX Runtime; ``certified`` and ``curve`` follow the report's radii.

    They count rows that are classified rightly and whose ``certified_radius`` is no less than the radius: None where no bound is proved.
    """

    accuracy: float
    lipschitz_bound: float | None
    certified: tuple[float, ...] | None
    curve: tuple[float, ...] | None
    layers: dict[str, FinalLayer]


class Run(Frozen):
    """One training run. ``failure`` says why it has no ``result``; without either it was stopped. ``seconds`` are of each step."""

    mode: GradientMode
    seed: int
    learning_rate: float
    steps: int
    trace: tuple[Point, ...]
    seconds: tuple[float, ...]
    failure: str | None = None
    result: Result | None = None


class Side:
    """One of the two runs of a pair, on its way."""

    def __init__(self, mode: GradientMode, architecture: Architecture, data: Dataset, options: Hyperparameters, points: int) -> None:
        self.options = options.model_copy(update={"gradient_mode": mode})
        self.architecture = architecture.with_gradient_mode(mode)
        rows, self.held_out = data.split(HELD_OUT, options.seed)
        self.batch = rows.subset(np.arange(min(options.batch_size, len(rows))))
        self.model = build(self.architecture, seed=options.seed)
        self.fit = Fit(self.model, rows, self.options)
        self.trace: list[Point] = []
        self.seconds: list[float] = []
        self.failure: str | None = None
        self.result: Result | None = None
        self._steps = iter(self.fit)
        self._looks = {round(self.fit.steps * share / points) for share in range(points + 1)}

    @property
    def going(self) -> bool:
        """Whether there is a step left to do."""
        return self.failure is None and self.fit.step < self.fit.steps

    def advance(self) -> None:
        """Do one step, and time it."""
        begun = time.perf_counter()
        try:
            next(self._steps)
        except DivergedError as error:
            self.failure = str(error)
        self.seconds.append(round(time.perf_counter() - begun, 7))

    def look(self) -> None:
        """Measure where it is time to."""
        step = self.fit.step
        if self.failure is not None or step not in self._looks:
            return
        try:
            self.trace.append(look(self.model, self.batch, self.held_out, self.options, step=step, epoch=step / self.fit.per_epoch))
        except ValueError as error:
            self.failure = f"after step {step} of {self.fit.steps}: {error}"

    def finish(self, radii: Sequence[float], curve: Sequence[float], domain: InputDomain) -> None:
        """Export the trained network and see what is proved of it."""
        if self.failure is not None:
            return
        labels = tuple(map(str, range(self.model.output_shape[0])))
        try:
            manifest, files = export_bundle(self.model, self.architecture, samples=self.batch.x, labels=labels, domain=domain)
        except ValueError as error:
            self.failure = f"trained, but not exported: {error}"
            return
        served = verify.run(files[MODEL], self.held_out.x)
        right = served[LOGITS].argmax(axis=1) == self.held_out.y
        proved = served.get(RADIUS)
        self.result = Result(
            accuracy=float(right.mean()), lipschitz_bound=manifest.lipschitz.bound, certified=_certified(right, proved, radii),
            curve=_certified(right, proved, curve),
            layers={
                layer.name: FinalLayer(
                    sigma_upper=layer.sigma_upper, folded_sigma_upper=layer.folded_sigma_upper, stable_rank=layer.stable_rank
                )
                for layer in manifest.layers
            },
        )  # fmt: skip

    def run(self) -> Run:
        """Return all that was measured so far."""
        return Run(
            mode=self.options.gradient_mode, seed=self.options.seed, learning_rate=self.options.learning_rate, steps=self.fit.steps,
            trace=tuple(self.trace), seconds=tuple(self.seconds), failure=self.failure, result=self.result,
        )  # fmt: skip


class Pair:
    """Both runs of one seed. Iterating does one step of each, in turn, so that what slows the machine down slows both of them."""

    def __init__(self, architecture: Architecture, data: Dataset, options: Hyperparameters, *, points: int) -> None:
        self.sides = tuple(Side(mode, architecture, data, options, points) for mode in MODES)
        self.steps = self.sides[0].fit.steps

    def __iter__(self) -> Iterator[int]:
        for side in self.sides:
            side.look()
        step = 0
        while going := [side for side in self.sides if side.going]:
            for side in going if step % 2 else reversed(going):
                side.advance()
            for side in going:
                side.look()
            step += 1
            yield step

    def finish(self, radii: Sequence[float], curve: Sequence[float], domain: InputDomain) -> None:
        """Export both."""
        for side in self.sides:
            side.finish(radii, curve, domain)

    def runs(self) -> list[Run]:
        """Return all that was measured so far, of both."""
        return [side.run() for side in self.sides]


def _certified(right: np.ndarray, proved: np.ndarray | None, radii: Sequence[float]) -> tuple[float, ...] | None:
    return None if proved is None else tuple(float((right & (proved >= radius)).mean()) for radius in radii)
