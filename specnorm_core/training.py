"""Training as an iterator of plain records: it writes nothing by itself, and goes on from a checkpoint as if nothing had happened."""

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from specnorm_core.data import Dataset
from specnorm_core.functional import GradientMode
from specnorm_core.losses import LOSSES, ROW_LOSSES
from specnorm_core.norms import converge, power_iteration, spectral_layers
from specnorm_core.privacy import Plan, Privacy, Secure, Seeded, Source, check, poisson, set_gradients

CHECK_EVERY = 16
"""Steps between two looks at loss and sigma for values that are not finite: each look waits for the device."""

WARM = 0.15
"""The part of a run of one cycle in which the learning rate rises (Smith, Topin 2017); then it falls as a cosine."""


EXPLODED = 1e8
"""A sigma of raw weights beyond which float32 rounds a step of ordinary size away: what is learned is lost."""


class DivergedError(ArithmeticError):
    """Training left what float32 can carry; the sentence says at which step, in which layer, and what to try."""


class Hyperparameters(BaseModel):
    """How to train; the ranges are those that the fine-tune endpoint accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gradient_mode: GradientMode = Field(
        default="full", description="`full` is the gradient of the loss; `simplified` holds sigma constant."
    )
    n_epochs: int = Field(default=20, ge=1, le=10_000, description="Passes over the data.")
    batch_size: int = Field(default=64, ge=1, le=65_536, description="Rows per step.")
    learning_rate: float = Field(default=3e-3, gt=0, le=1e30, description="Step size of the optimiser.")
    schedule: Literal["constant", "one_cycle"] = Field(
        default="constant", description="Whether the learning rate stays, or rises over 15 % of the run and falls to zero."
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Adam, or SGD with momentum 0.9.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="L2 penalty on the raw weights and biases.")
    loss: Literal["cross_entropy", "margin", "mse"] = Field(default="cross_entropy", description="What is minimised.")
    temperature: float = Field(
        default=10.0, gt=0, le=1e4, description="What logits are multiplied with in the loss (never in the served model)."
    )
    margin: float = Field(default=0.5, gt=0, description="The margin that the loss `margin` asks for, in logits after temperature.")
    power_iterations: int = Field(default=1, ge=1, le=100, description="Power iterations per optimiser step.")
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between two checkpoints.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    privacy: Privacy | None = Field(default=None, description="Train with differential privacy of single rows; null: without.")


class StepRecord(BaseModel):
    """What is known after one step; ``sigmas`` are the running estimates (lower bounds) of the raw weights, by layer.

    A private run tells no loss, which is about its rows, but the ``epsilon`` that it has spent, at the end of each epoch.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    steps: int
    epoch: int
    loss: float | None
    accuracy: float | None
    sigmas: dict[str, float]
    seconds: float
    epsilon: float | None = None


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "one_cycle": lambda done: done / WARM if done < WARM else (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2,
}
"""The part of ``learning_rate`` in use, by the part of the run that is done: functions of it alone, so a resumed run needs no state."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9),
}


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, batch: int = 1024) -> dict[str, float]:
    """Return ``accuracy`` (classes) or ``mse`` (values) of ``model`` on ``data``, in eval mode."""
    training = model.training
    model.eval()
    outputs = torch.cat([model(torch.from_numpy(data.x[at : at + batch])) for at in range(0, len(data), batch)])
    model.train(training)
    y = torch.from_numpy(data.y)
    if data.y.dtype.kind == "i":
        return {"accuracy": float((outputs.argmax(dim=1) == y).double().mean())}
    return {"mse": float(F.mse_loss(outputs.squeeze(-1), y))}


class Fit:
    """One training run: iterate over it for records; ``checkpoint()`` at any time; ``resume`` a checkpoint's bytes to go on.

    With the same seed, data and thread count on a CPU a resumed run ends with the same bits as one that was never stopped; not so a private
    run with the secure source, whose noise nobody can draw again. The batches of a private run are Poisson samples, and what its
    ``validation`` says about the model is not covered by its guarantee: those rows must be public.

    Args:
        model: built by an architecture; trained in place, its spectral layers set to the run's gradient mode.
        data: the rows to learn.
        hyperparameters: how.
        validation: rows whose accuracy is reported after each epoch.
        resume: what ``checkpoint()`` of a run with the same arguments returned.
        begun: steps of a private run that were begun already, those after the checkpoint included: they count as spent.

    Raises:
        ValueError: the data and the model do not fit each other, the checkpoint is of another run, or no private training is possible.
        ModuleNotFoundError: a private run without the extra ``privacy``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        hyperparameters: Hyperparameters | None = None,
        *,
        validation: Dataset | None = None,
        resume: bytes | None = None,
        begun: int = 0,
    ) -> None:
        self.model, self.data, self.validation = model, data, validation
        self.options = hyperparameters or Hyperparameters()
        if self.options.loss != "mse" and data.y.dtype.kind != "i":
            raise ValueError(f"the loss {self.options.loss} needs integer class labels; the targets are real numbers: use the loss mse")
        for layer in spectral_layers(model).values():
            layer.gradient_mode = self.options.gradient_mode
        self.optimizer = OPTIMIZERS[self.options.optimizer](
            model.parameters(), lr=self.options.learning_rate, weight_decay=self.options.weight_decay
        )
        self.step = 0
        self.per_epoch = -(-len(data) // self.options.batch_size)
        self.steps = self.per_epoch * self.options.n_epochs
        self.lag: dict[str, float] = {}
        self._accuracy: float | None = None
        self._order = torch.empty(0)
        self._planned = self.steps
        self.begun = 0
        self.plan: Plan | None = None
        if self.options.privacy is not None:
            check(model)
            self.plan = self.options.privacy.plan(len(data), self.options.batch_size, self.steps)
        if resume is not None:
            self._restore(resume)
        if self.options.privacy is not None:
            self.begun = max(self.begun, begun)
            if self.options.privacy.target_epsilon is not None:  # steps that were lost are spent: the run ends so much the earlier
                self.steps = max(self.step, self._planned - (self.begun - self.step))

    @property
    def epsilon(self) -> float | None:
        """What has been spent, every step included that was begun in this run or one that it goes on from; None: it is not private."""
        return None if self.plan is None else self.plan.epsilon(self.begun)

    def __iter__(self) -> Iterator[StepRecord]:
        self.model.train()
        start = time.monotonic()
        x, y = torch.from_numpy(self.data.x), torch.from_numpy(self.data.y)
        if self.plan is not None and self.step == self.steps:
            self._finish()
        while self.step < self.steps:
            epoch = self.step // self.per_epoch
            loss = self._advance(x, y)
            self.step += 1
            last = self.step % self.per_epoch == 0
            if last or self.step % CHECK_EVERY == 0 or self.step == self.steps:
                self._check(loss)
            if self.step == self.steps:
                self._finish()
            if last and self.validation is not None:
                self._accuracy = evaluate(self.model, self.validation).get("accuracy")
            yield StepRecord(
                step=self.step, steps=self.steps, epoch=epoch + 1, loss=None if loss is None else float(loss),
                accuracy=self._accuracy if last else None,
                sigmas={name: float(layer.sigma()) for name, layer in spectral_layers(self.model).items()} if last else {},
                seconds=time.monotonic() - start, epsilon=self.epsilon if last or self.step == self.steps else None,
            )  # fmt: skip

    def _advance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Take one step and return its loss; a private one tells none."""
        if self.plan is not None:
            self._advance_privately(x, y, self.plan)
            return None
        rows = self._rows()
        self.optimizer.zero_grad(set_to_none=True)
        loss = LOSSES[self.options.loss](self.model(x[rows]), y[rows], self.options)
        loss.backward()
        self._update()
        return loss.detach()

    def _advance_privately(self, x: Tensor, y: Tensor, plan: Plan) -> None:
        self.begun += 1
        # A source of its own for every step: a seeded run that goes on from a checkpoint draws what it would have drawn.
        source: Source = Secure() if plan.privacy.secure else Seeded(self.options.seed, self.step)
        rows = poisson(len(x), plan.sample_rate, source)
        set_gradients(
            self.model, (lambda: ROW_LOSSES[self.options.loss](self.model(x[rows]), y[rows], self.options)) if len(rows) else None,
            max_grad_norm=plan.privacy.max_grad_norm, noise_multiplier=plan.noise_multiplier, expected_rows=plan.expected_rows,
            source=source,
        )  # fmt: skip
        self._update()

    def _rows(self) -> Tensor:
        """Return the rows of the next step."""
        epoch, position = divmod(self.step, self.per_epoch)
        if position == 0 or len(self._order) == 0:
            # The order is a function of seed and epoch, so a resumed run needs no sampler state.
            self._order = torch.from_numpy(np.random.default_rng([self.options.seed, epoch]).permutation(len(self.data)))
        return self._order[position * self.options.batch_size : (position + 1) * self.options.batch_size]

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * SCHEDULES[self.options.schedule]((self.step + 0.5) / self._planned)
        self.optimizer.step()
        power_iteration(self.model, self.options.power_iterations)

    def _check(self, loss: Tensor | None) -> None:
        """Raise DivergedError where the loss or a weight is not finite, or the sigma of a layer has exploded."""
        when = f"step {self.step} of {self.steps}: try a learning_rate below {self.options.learning_rate:g}"
        for name, layer in spectral_layers(self.model).items():
            sigma = float(layer.sigma())
            if not (bool(torch.isfinite(layer.weight).all()) and math.isfinite(sigma)):
                raise DivergedError(f"layer {name!r} is not finite after {when}")
            if sigma > EXPLODED:
                raise DivergedError(f"sigma of layer {name!r} has grown to {sigma:.3g} after {when}")
        if loss is not None and not bool(torch.isfinite(loss)):
            raise DivergedError(f"the loss is {float(loss)} at {when}")

    def _finish(self) -> None:
        """End with a converged (u, v): one step of power iteration per optimiser step lags behind, by ``lag`` (relative, by layer)."""
        running = {name: float(layer.sigma()) for name, layer in spectral_layers(self.model).items()}
        converge(self.model)
        self.lag = {name: float(layer.sigma()) / running[name] - 1 for name, layer in spectral_layers(self.model).items()}
        self.model.eval()

    def checkpoint(self) -> bytes:
        """Return everything that is needed to go on, as safetensors: weights, (u, v), optimiser, position."""
        tensors = {f"model.{key}": value.contiguous() for key, value in self.model.state_dict().items()}
        for name, layer in spectral_layers(self.model).items():
            tensors[f"u.{name}"], tensors[f"v.{name}"] = (part.contiguous() for part in layer.pair)
        for index, state in self.optimizer.state_dict()["state"].items():
            known = {key: value for key, value in state.items() if value is not None}
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value).contiguous() for key, value in known.items()}
        about = {"step": self.step, "begun": self.begun, **self._identity()}
        return save_tensors(tensors, metadata={"fit": json.dumps(about)})

    def _identity(self) -> dict[str, object]:
        """Return what a checkpoint is bound to; the digest of private rows is told to nobody: it would confirm a guess of them."""
        digest = self.data.digest if self.plan is None else None
        unseeded = self.plan is not None and self.plan.privacy.secure
        return {"rows": len(self.data), "digest": digest, "options": self.options.model_dump_json(exclude={"seed"} if unseeded else None)}

    def _restore(self, content: bytes) -> None:
        about = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["fit"])
        expected = self._identity()
        different = [key for key, value in expected.items() if about[key] != value]
        if different:
            raise ValueError(f"the checkpoint is of another run: its {' and '.join(different)} differ")
        tensors = load_tensors(content)
        self.model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        for name, layer in spectral_layers(self.model).items():
            layer.set_pair(tensors[f"u.{name}"], tensors[f"v.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, self.begun = about["step"], about["begun"]


def fit(
    model: nn.Module,
    data: Dataset,
    *,
    validation: Dataset | None = None,
    resume: bytes | None = None,
    hyperparameters: Hyperparameters | None = None,
    epochs: int | None = None,
    gradient_mode: GradientMode | None = None,
) -> Iterator[StepRecord]:
    """Train ``model`` on ``data`` and yield a record per step; see :class:`Fit`. ``epochs`` and ``gradient_mode`` override."""
    changes = {key: value for key, value in {"n_epochs": epochs, "gradient_mode": gradient_mode}.items() if value is not None}
    options = Hyperparameters.model_validate((hyperparameters or Hyperparameters()).model_dump() | changes)
    yield from Fit(model, data, options, validation=validation, resume=resume)
