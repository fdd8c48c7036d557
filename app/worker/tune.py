"""One fine-tune, from the parent's bundle to a published version of the model."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from sqlalchemy import Connection

from app.errors import ConflictError
from app.jobs.attempt import Assignment, Attempt
from app.jobs.machine import State
from app.jobs.request import Hyperparameters as Asked
from app.registry import live
from app.registry.registry import Registry
from app.worker.estimate import estimate
from app.worker.failure import JobFailedError
from app.worker.guarantee import guarantee
from app.worker.pulse import Pulse
from app.worker.rows import load
from app.worker.train import train
from app.worker.verdict import Verdict, judge, scored
from export.bundle import MODEL, Manifest, Training
from export.checkpoint import CheckpointError, Provenance
from export.fold import FoldError
from export.pipeline import export_bundle, load_bundle
from export.to_onnx import GraphError
from export.verify import VerificationError
from specnorm_core.architecture import Network
from specnorm_core.data import Dataset
from specnorm_core.training import Fit, Hyperparameters


class Rows(NamedTuple):
    """What to train on, and what to judge by."""

    training: Dataset
    validation: Dataset | None


class Finished(NamedTuple):
    """What the training came to: the bundle, and the manifest of the one that it began with."""

    parent: Manifest
    manifest: Manifest
    files: Mapping[str, bytes]


class _MovedOnError(ConflictError):
    """Another version went live while this one was judged."""


def tune(attempt: Attempt, registry: Registry, pulse: Pulse, *, threads: int) -> None:
    """Do the job of ``attempt``: judge its data, train, export, verify, publish.

    Raises:
        JobFailedError: the job cannot be done, and why.
        SpecnormError: what :meth:`Pulse.check` raises, once the training so far is kept as a checkpoint.
    """
    torch.set_num_threads(threads)
    assignment = attempt.assignment()
    parent = registry.manifest(assignment.parent_model, assignment.parent_version)
    options = _options(assignment.request.hyperparameters)
    data, validation = _rows(registry, assignment, parent)
    _judge_privacy(options, len(data))
    if assignment.state is State.VALIDATING:
        attempt.accept(f"The data are good: {len(data)} rows to train on, {len(validation) if validation else 0} to validate on.")
    pulse.check()
    attempt.start(f"Attempt {attempt.claim.token} starts.")
    model, provenance = _parent(registry, assignment)
    if assignment.request.dry_run:
        found = estimate(model, data, options, validation=validation)
        told = f"{found['steps']} steps would take about {found['seconds']:.3g} seconds on this machine; nothing was trained"
        attempt.succeed(f"Dry run: data and parameters are good, {told}.", result=found)
        return
    metrics, run = train(model, data, options, validation=validation, attempt=attempt, blobs=registry.blobs, pulse=pulse)
    training = _training(run, metrics, assignment)
    manifest, files = _exported(attempt, pulse, model, provenance, training=training, rows=Rows(data, validation))
    manifest = scored(manifest, files[MODEL], validation, threads=threads)
    pulse.check()
    _publish(attempt, registry, assignment, Finished(parent, manifest, files), validation, threads=threads)


def _options(asked: Asked) -> Hyperparameters:
    return Hyperparameters.model_validate(asked.model_dump(exclude={"learning_rate_multiplier": True, "privacy": {"validation_is_public"}}))


def _judge_privacy(options: Hyperparameters, rows: int) -> None:
    """Refuse what would not be private, before the job counts as accepted."""
    if options.privacy is None:
        return
    if find_spec("opacus") is None:
        raise JobFailedError("unavailable", "this installation cannot train privately: pip install 'specnorm[privacy]'", param="privacy")
    try:
        options.privacy.judge(rows)
    except ValueError as error:
        raise JobFailedError("not_private", str(error), param="privacy.delta") from None


def _training(run: Fit, metrics: dict[str, float], assignment: Assignment) -> Training:
    """Return what the manifest says of ``run``; of a private one nothing that its rows, or its noise, could be told from."""
    asked = assignment.request.hyperparameters.privacy
    if asked is None:
        told = run.options.model_dump(exclude={"privacy"})
        return Training(data_digest=run.data.digest, hyperparameters=told, metrics=metrics, seed=run.options.seed)
    parent = f"{assignment.parent_model}:{assignment.parent_version}"
    privacy = guarantee(run, parent=parent, validation_is_public=asked.validation_is_public)
    return Training(hyperparameters=run.options.model_dump(exclude={"privacy", "seed"}), metrics=metrics, privacy=privacy)


def _parent(registry: Registry, assignment: Assignment) -> tuple[Network, Provenance]:
    try:
        return load_bundle(registry.files(assignment.parent_model, assignment.parent_version))
    except CheckpointError as error:
        raise JobFailedError("bad_model", f"{assignment.parent_model}:{assignment.parent_version}: {error}", param="model") from error


def _exported(
    attempt: Attempt, pulse: Pulse, model: Network, parent: Provenance, *, training: Training, rows: Rows
) -> tuple[Manifest, dict[str, bytes]]:
    def progress(sentence: str) -> None:
        pulse.check()
        attempt.event(f"{sentence[:1].upper()}{sentence[1:]}.")

    try:
        return export_bundle(
            model,
            parent.architecture.with_gradient_mode(training.hyperparameters["gradient_mode"]),
            samples=_samples(rows, private=training.privacy is not None),
            domain=parent.input,
            labels=parent.labels,
            training=training,
            validation=rows.validation,
            progress=progress,
        )
    except (FoldError, GraphError, VerificationError) as error:
        raise JobFailedError("rejected", str(error)) from error


def _samples(rows: Rows, *, private: bool) -> np.ndarray | None:
    """Return inputs to compare graph and model on: numbers that the manifest shows come from them, so none of private rows."""
    if not private:
        return rows.training.x
    return None if rows.validation is None else rows.validation.x


def _rows(registry: Registry, assignment: Assignment, parent: Manifest) -> Rows:
    chosen = assignment.request.hyperparameters
    try:
        training = load(registry.blobs, assignment.training, parent, chosen, param="training_file")
    except JobFailedError as error:
        if chosen.privacy is None or error.code != "bad_data":
            raise
        told = "the training file cannot be used; a private job does not say where, a dry run without privacy does"
        raise JobFailedError("bad_data", told, param="training_file") from None
    if assignment.validation is None:
        return Rows(training, None)
    return Rows(training, load(registry.blobs, assignment.validation, parent, chosen, param="validation_file"))


def _publish(
    attempt: Attempt,
    registry: Registry,
    assignment: Assignment,
    finished: Finished,
    validation: Dataset | None,
    *,
    threads: int,
) -> None:
    """Publish, end the job and, where that was asked for and earned, promote: in one transaction."""
    target, (parent, manifest, files) = assignment.target, finished
    while True:
        verdict = Verdict(False, None, "that was not asked for", {})
        if assignment.request.promote == "if_not_worse" and validation is not None:
            verdict = judge(registry, target, manifest, validation, threads=threads)

        def within(connection: Connection, version: str, verdict: Verdict = verdict) -> None:
            if verdict.promote and live.text(live.known(connection, target).live) != verdict.against:
                raise _MovedOnError
            name = f"{target}:{version}"
            fate = "is live now" if verdict.promote else "is not promoted"
            attempt.succeed_within(
                connection,
                f"The job succeeded: {name} {fate}, since {verdict.reason}.",
                fine_tuned_model=name,
                result=_result(version, manifest, verdict),
                spectral=_spectral(parent, manifest),
            )
            if verdict.promote:
                live.promote(connection, target, version, why=verdict.reason, who=attempt.claim.job)

        try:
            parent_name = f"{assignment.parent_model}:{assignment.parent_version}"
            registry.publish(target, manifest, files, job=attempt.claim.job, parent=parent_name, within=within)
        except _MovedOnError:
            continue
        return


def _result(version: str, manifest: Manifest, verdict: Verdict) -> dict[str, Any]:
    metrics = manifest.training.metrics if manifest.training else {}
    return {
        "version": version,
        "model_digest": manifest.model_digest,
        "metrics": {**metrics, **verdict.scores},
        "verification": manifest.verification,
        "promoted": verdict.promote,
        "promotion_reason": verdict.reason,
    }


def _spectral(before: Manifest, after: Manifest) -> dict[str, Any]:
    """Return sigma of every layer and the Lipschitz bound, before and after."""

    def of(manifest: Manifest) -> dict[str, Any]:
        sigma = {layer.name: layer.sigma_upper for layer in manifest.layers}
        return {"sigma": sigma, "lipschitz_bound": manifest.lipschitz.bound}

    return {"gradient_mode": after.gradient_mode, "before": of(before), "after": of(after)}
