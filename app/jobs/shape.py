"""Rows as the objects that OpenAI's client reads; what it does not know of is added beside."""

from typing import Any

from sqlalchemy import Row

from app.jobs.machine import State, told

ORGANIZATION = "specnorm"


def job_object(row: Row[Any]) -> dict[str, Any]:
    """Return a job as ``fine_tuning.job``."""
    request = row.request
    hyperparameters = _told(request["hyperparameters"])
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "estimated_finish": row.estimated_finish,
        "status": told(State(row.state), paused=row.paused, worked_at=row.owner is not None).value,
        "error": row.error,
        "model": request["model"],
        "fine_tuned_model": row.fine_tuned_model,
        "organization_id": ORGANIZATION,
        "result_files": [],
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "trained_tokens": None,
        "integrations": None,
        "metadata": request["metadata"],
        "seed": hyperparameters.get("seed"),
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "suffix": request["suffix"],
        "promote": request["promote"],
        "priority": row.priority,
        "max_seconds": request.get("max_seconds"),
        "dry_run": request["dry_run"],
        "parent": row.parent,
        "paused": row.paused,
        "progress": {"step": row.step, "steps": row.steps, "seconds": round(row.spent, 1)},
        "result": row.result,
        "spectral": row.spectral,
    }


def _told(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters as a client sees them: a private job has no seed, so none is named."""
    if hyperparameters.get("privacy") is None:
        return hyperparameters
    return {name: value for name, value in hyperparameters.items() if name != "seed"}


def event_object(row: Row[Any]) -> dict[str, Any]:
    """Return an event as ``fine_tuning.job.event``."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": row.created_at,
        "level": row.level,
        "type": row.type,
        "message": row.message,
        "data": row.data or {},
    }


def checkpoint_object(row: Row[Any]) -> dict[str, Any]:
    """Return a checkpoint as ``fine_tuning.job.checkpoint``; it is what the job goes on from, not a model that is served."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": row.created_at,
        "fine_tuned_model_checkpoint": f"{row.job}:step-{row.step}",
        "fine_tuning_job_id": row.job,
        "metrics": {"step": row.step, **row.metrics},
        "step_number": row.step,
    }
