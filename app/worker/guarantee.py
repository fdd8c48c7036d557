"""What a private training guarantees, in words and numbers that a reviewer can check."""

from decimal import ROUND_CEILING, Context
from importlib.metadata import version

from export.bundle import Privacy
from specnorm_core.training import Fit

UNIT = (
    "one row of the training file: the guarantee compares the file with the same file plus or minus any one row (add or remove one). A "
    "person who has several rows is protected less: the epsilon of k rows is up to k times as large"
)
MECHANISM = (
    "DP-SGD (Abadi et al. 2016): the gradient of every row is clipped to max_grad_norm over all trainable parameters together, summed, "
    "and noise of N(0, (noise_multiplier max_grad_norm)^2) is added to every entry of the sum; all that follows uses the noisy sums alone"
)
SAMPLING = "Poisson: each row is in each batch by itself with probability sample_rate; empty batches are steps too"
RANDOMNESS = "noise and batches from OpenSSL's cryptographic generator, seeded by the system; no seed exists, and nothing of it is stored"
NOT_COVERED = (
    "what the parent model {parent} was trained on; if rows of this file were among it, the two budgets add up",
    "other jobs on the same rows: their budgets add up to this one",
    "how hyperparameters (learning rate, max_grad_norm, number of epochs ...) were chosen, where earlier runs on these rows were looked at",
    "the number of rows, which is treated as public (sample_rate and the events of the job tell it)",
    "the validation file, whose rows count as public wherever one was given",
    "how long steps take, and other side channels of the machine; and readers of the workspace, where the rows themselves lie",
    "rounding: noise and sums meet on a grid, which clipping makes room for; 2^-10 of the bound is kept free for the rounding of the "
    "float32 sums, but no proof covers these as a whole",
)


def above(epsilon: float) -> str:
    """Return ``epsilon`` in words: four digits, rounded up, so that no sentence says less than what was spent."""
    return f"{float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(epsilon)):.4g}"


def guarantee(run: Fit, *, parent: str, validation_is_public: bool) -> Privacy | None:
    """Return what ``run``, a training of ``parent`` further, guarantees; None: nothing, it is not private."""
    if run.plan is None or run.epsilon is None:
        return None
    plan, asked, spent = run.plan, run.plan.privacy, above(run.epsilon)
    return Privacy(
        statement=(
            f"This version is ({spent}, {asked.delta})-differentially private with respect to single rows of the data: "
            f"whether any one row was there or not changes the probability of any outcome by a factor of at most exp({spent}), "
            f"except for a probability of {asked.delta}. Outcome: the weights of all steps, and all that the job showed."
        ),
        epsilon=run.epsilon, delta=asked.delta, unit=UNIT, mechanism=MECHANISM, sampling=SAMPLING, sample_rate=plan.sample_rate,
        noise_multiplier=plan.noise_multiplier, max_grad_norm=asked.max_grad_norm, steps_charged=run.begun, steps_taken=run.step,
        accountant=f"Opacus {version('opacus')}, {asked.accountant}; every step begun is charged, those that a crash lost included",
        randomness=RANDOMNESS, validation_is_public=validation_is_public,
        not_covered=tuple(line.format(parent=parent) for line in NOT_COVERED),
    )  # fmt: skip
