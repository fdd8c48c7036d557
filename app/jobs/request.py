"""What a client may ask of a fine-tune job, in OpenAI's shape: checked, defaults filled in, aliases made one."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.errors import InvalidRequestError
from app.registry.registry import NAME

GradientMode = Literal["full", "simplified"]
GRADIENT_MODES = tuple(sorted(get_args(GradientMode)))
CANONICAL = "method.supervised.hyperparameters"
LEARNING_RATE = 3e-3
MAX_RATE = 1e30

_BASE = re.compile(rf"({NAME.pattern})(?::([1-9][0-9]{{0,8}}))?")


class Checked(BaseModel):
    """A value from a client: immutable, finite, and strict: no unknown keys, no text or truth where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


CheckedT = TypeVar("CheckedT", bound=Checked)


class Privacy(Checked):
    """What is asked of private training: the fields of ``specnorm_core.privacy.Privacy``, repeated where there is no torch.

    Its noise and its batches always come from the system's cryptographic source. ``validation_is_public`` says that the rows of the
    validation file need no protection: what they say about the model is shown.
    """

    max_grad_norm: float = Field(gt=0, le=1e6)
    noise_multiplier: float | None = Field(default=None, gt=0, le=1e6)
    target_epsilon: float | None = Field(default=None, gt=0, le=1e3)
    delta: float = Field(gt=0, lt=1)
    accountant: Literal["prv", "rdp"] = "rdp"
    validation_is_public: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("privacy needs noise_multiplier or target_epsilon: one of the two, not both")
        return self


class Hyperparameters(Checked):
    """The fields, ranges and defaults of ``specnorm_core.Hyperparameters``, repeated where there is no torch.

    ``gradient_mode`` None takes the mode of the model that is trained further. ``learning_rate_multiplier`` multiplies
    the default learning rate and stands instead of ``learning_rate``.
    """

    gradient_mode: GradientMode | None = Field(
        default=None, description="`full` is the gradient of the loss; `simplified` holds sigma constant; null: as the model was trained."
    )
    n_epochs: int = Field(default=20, ge=1, le=10_000, description="Passes over the data.")
    batch_size: int = Field(default=64, ge=1, le=65_536, description="Rows per step.")
    learning_rate: float = Field(default=LEARNING_RATE, gt=0, le=MAX_RATE, description="Step size of the optimiser.")
    learning_rate_multiplier: float = Field(
        default=1.0, gt=0, le=MAX_RATE / LEARNING_RATE, description="Stands instead of `learning_rate`: times its default."
    )
    schedule: Literal["constant", "one_cycle"] = Field(
        default="constant", description="Whether the learning rate stays, or rises over 15 % of the run and falls to zero."
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Adam, or SGD with momentum 0.9.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="L2 penalty on the raw weights and biases.")
    loss: Literal["cross_entropy", "margin", "mse"] = Field(
        default="cross_entropy", description="What is minimised; `mse` for targets that are values."
    )
    temperature: float = Field(default=10.0, gt=0, le=1e4, description="What logits are multiplied with in the loss alone.")
    margin: float = Field(default=0.5, gt=0, description="The margin that the loss `margin` asks for.")
    power_iterations: int = Field(default=1, ge=1, le=100, description="Power iterations per optimiser step.")
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between two checkpoints.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the order of the rows; a private job has none.")
    privacy: Privacy | None = Field(default=None, description="Train with differential privacy of single rows.")


class JobRequest(Checked):
    """A fine-tune job as it was asked for, with every choice made explicit."""

    model: str = Field(description="What is trained further: `name`, its live version, or `name:version`.")
    training_file: str = Field(max_length=64, description="Id of an upload.")
    validation_file: str | None = Field(default=None, max_length=64, description="Id of an upload that is judged by, never trained on.")
    suffix: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]{1,40}$", description="The result becomes a version of `name-suffix`, and not of `name`."
    )
    metadata: dict[str, str] | None = Field(default=None, max_length=16, description="Up to 16 texts by name; jobs are found by them.")
    promote: Literal["never", "if_not_worse"] = Field(
        default="never", description="Whether the new version goes live if it does no worse on the validation file than the live one."
    )
    dry_run: bool = Field(default=False, description="Judge the request and the data, and estimate steps and time; train nothing.")
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Each step goes before 100 jobs that were made earlier: the highest is next, and none waits for ever.",
    )
    max_seconds: float | None = Field(
        default=None, gt=0, le=1e7, description="Fail the job once it was worked at for so long, all attempts together."
    )
    hyperparameters: Hyperparameters = Hyperparameters()

    @field_validator("metadata")
    @classmethod
    def _short(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value and any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
            raise ValueError("keys have at most 64 characters, values at most 512")
        return value

    @property
    def base(self) -> tuple[str, str | None]:
        """Name and, where one is named, version of the model to train from."""
        found = _BASE.fullmatch(self.model)
        if found is None:
            raise InvalidRequestError(f"model must be `name` or `name:version`, not {self.model[:80]!r}", param="model")
        return found[1], found[2]

    @property
    def target(self) -> str:
        """Name of the model that the result is a version of: the base's, with the suffix if there is one."""
        name = self.base[0] if self.suffix is None else f"{self.base[0]}-{self.suffix}"
        if not NAME.fullmatch(name):
            raise InvalidRequestError(f"model name and suffix together have at most 64 characters: {name!r}", param="suffix")
        return name


def parse(body: Any) -> JobRequest:
    """Return the job that the JSON value ``body`` asks for.

    ``gradient_mode`` and the other hyperparameters belong in ``method.supervised.hyperparameters``; the older place
    ``hyperparameters``, and ``gradient_mode`` and ``seed`` at the top, are taken too, as long as they agree.

    Raises:
        InvalidRequestError: with the parameter, and for a choice by name the names there are.
    """
    fields = dict(_mapping(body, "the body"))
    places: dict[str, Mapping[str, Any]] = {
        CANONICAL: _of_method(fields.pop("method", None)),
        "hyperparameters": _mapping(fields.pop("hyperparameters", None), "hyperparameters"),
        "the top level": {name: fields.pop(name) for name in ("gradient_mode", "seed") if name in fields},
    }
    if fields.pop("integrations", None):
        raise InvalidRequestError("integrations are not supported", param="integrations")
    chosen = _agreed(places)
    if {"learning_rate", "learning_rate_multiplier"} <= chosen.keys():
        raise InvalidRequestError("give learning_rate or learning_rate_multiplier, not both", param=f"{CANONICAL}.learning_rate")
    if "gradient_mode" in chosen and chosen["gradient_mode"] not in GRADIENT_MODES:
        known = ", ".join(GRADIENT_MODES)
        raise InvalidRequestError(
            f"unknown gradient_mode {str(chosen['gradient_mode'])[:40]!r}: choose one of {known}", param=f"{CANONICAL}.gradient_mode"
        )
    hyperparameters = _validated(Hyperparameters, chosen, f"{CANONICAL}.")
    if "learning_rate_multiplier" in chosen:
        rate = min(MAX_RATE, LEARNING_RATE * hyperparameters.learning_rate_multiplier)
        hyperparameters = _validated(Hyperparameters, {**chosen, "learning_rate": rate}, f"{CANONICAL}.")
    else:
        hyperparameters = hyperparameters.model_copy(update={"learning_rate_multiplier": hyperparameters.learning_rate / LEARNING_RATE})
    request = _validated(JobRequest, {**fields, "hyperparameters": hyperparameters}, "")
    if request.promote == "if_not_worse" and request.validation_file is None:
        raise InvalidRequestError("promote if_not_worse needs a validation_file to judge by", param="validation_file")
    if request.hyperparameters.privacy is not None:
        _judge_privacy(request, request.hyperparameters.privacy, seeded="seed" in chosen)
    _ = request.target  # judges the names of model and suffix
    return request


def _judge_privacy(request: JobRequest, privacy: Privacy, *, seeded: bool) -> None:
    """Refuse what a private job cannot keep to itself."""
    if seeded:
        raise InvalidRequestError("a private job takes no seed: who knows it could take the noise off the model", param=f"{CANONICAL}.seed")
    if request.validation_file is not None and not privacy.validation_is_public:
        raise InvalidRequestError(
            "a private job shows how well its model does on the validation file: say privacy.validation_is_public if its rows need no "
            "protection, or leave the file out",
            param=f"{CANONICAL}.privacy.validation_is_public",
        )


def _of_method(method: Any) -> Mapping[str, Any]:
    fields = _mapping(method, "method")
    if fields.get("type", "supervised") != "supervised" or fields.keys() - {"type", "supervised"}:
        raise InvalidRequestError("method.type must be 'supervised'", param="method.type")
    supervised = _mapping(fields.get("supervised"), "method.supervised")
    if supervised.keys() - {"hyperparameters"}:
        raise InvalidRequestError("method.supervised has the one field hyperparameters", param="method.supervised")
    return _mapping(supervised.get("hyperparameters"), CANONICAL)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return an object of JSON; null and an empty list, as PHP writes it, are ones without fields, but for the whole body."""
    if value in (None, []) and where != "the body":
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be a JSON object", param=None if where == "the body" else where)
    return value


def _agreed(places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the places where a hyperparameter may stand; ``auto`` and null are the same as nothing."""
    chosen: dict[str, tuple[str, Any]] = {}
    for place, fields in places.items():
        for name, value in fields.items():
            if value in ("auto", None):
                continue
            first, known = chosen.setdefault(name, (place, value))
            if known != value:
                raise InvalidRequestError(
                    f"{name} is {str(known)[:40]!r} in {first} but {str(value)[:40]!r} in {place}", param=f"{CANONICAL}.{name}"
                )
    return {name: value for name, (_, value) in chosen.items()}


def _validated(kind: type[CheckedT], fields: Mapping[str, Any], prefix: str) -> CheckedT:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        param = prefix + ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = (Privacy if problem["loc"][0] == "privacy" and len(problem["loc"]) > 1 else kind).model_fields
            raise InvalidRequestError(f"unknown parameter {param}; known are {', '.join(sorted(known))}", param=param) from None
        reason = "this is required, and was not given" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{param}: {reason}", param=param) from None
