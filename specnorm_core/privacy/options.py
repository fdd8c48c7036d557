"""What a user asks of a private run."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from specnorm_core.privacy.accounting import AccountantName, epsilon, noise_multiplier


class Privacy(BaseModel):
    """How private a run is to be: differential privacy of single rows, by clipping, Poisson sampling and noise (DP-SGD)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_grad_norm: float = Field(gt=0, le=1e6, description="Longest gradient that one row may contribute.")
    noise_multiplier: float | None = Field(
        default=None, gt=0, le=1e6, description="Standard deviation of the noise, in units of max_grad_norm; or give target_epsilon."
    )
    target_epsilon: float | None = Field(default=None, gt=0, le=1e3, description="Epsilon that the whole run may spend.")
    delta: float = Field(gt=0, lt=1, description="Delta of the guarantee; below one over the number of rows.")
    accountant: AccountantName = Field(default="rdp", description="Opacus' accountant that adds up what steps spend.")
    secure: bool = Field(default=True, description="Draw noise and batches from the system's cryptographic source, not from the seed.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("privacy needs noise_multiplier or target_epsilon: one of the two, not both")
        return self

    def judge(self, rows: int) -> None:
        """Refuse a delta that protects nobody.

        Raises:
            ValueError: it is not below one over the number of rows.
        """
        if self.delta >= 1 / rows:
            raise ValueError(
                f"delta must be below one over the number of rows, 1/{rows}; at {self.delta:g} publishing a whole row would pass"
            )

    def plan(self, rows: int, batch_size: int, steps: int) -> "Plan":
        """Return the numbers of a run of ``steps`` steps on ``rows`` rows with ``batch_size`` rows per step on average.

        Raises:
            ValueError: delta is not below one over the number of rows, or no noise gives the target.
            ModuleNotFoundError: the extra ``privacy`` is not installed.
        """
        self.judge(rows)
        rate = min(1.0, batch_size / rows)
        noise = self.noise_multiplier
        if self.target_epsilon is not None:
            noise = noise_multiplier(self.target_epsilon, sample_rate=rate, steps=steps, delta=self.delta, accountant=self.accountant)
        assert noise is not None  # noqa: S101  # the validator saw to it
        return Plan(privacy=self, noise_multiplier=noise, sample_rate=rate, expected_rows=rate * rows)


class Plan(BaseModel):
    """The same, with every number settled."""

    model_config = ConfigDict(frozen=True)

    privacy: Privacy
    noise_multiplier: float
    sample_rate: float
    expected_rows: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients."""
        return self.noise_multiplier * self.privacy.max_grad_norm

    def epsilon(self, steps: int) -> float:
        """Return what ``steps`` steps spend."""
        return epsilon(
            noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=steps, delta=self.privacy.delta,
            accountant=self.privacy.accountant,
        )  # fmt: skip
