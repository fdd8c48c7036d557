"""`specnorm jobs`: fine-tune jobs of a running service."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.remote import Service, Url

commands = typer.Typer(help="Fine-tune jobs of a running service (--url).", no_args_is_help=True)

PATH = "/v1/fine_tuning/jobs"
COLUMNS = ("id", "status", "model", "fine_tuned_model", "created")

PRIVATE = "Private training"
MaxGradNorm = Annotated[float | None, typer.Option(help="Longest gradient that one row may contribute.", rich_help_panel=PRIVATE)]
TargetEpsilon = Annotated[float | None, typer.Option(help="Epsilon that the whole job may spend.", rich_help_panel=PRIVATE)]
NoiseMultiplier = Annotated[
    float | None, typer.Option(help="Noise in units of --max-grad-norm, in place of a target.", rich_help_panel=PRIVATE)
]
Delta = Annotated[float | None, typer.Option(help="Delta of the guarantee, below one over the number of rows.", rich_help_panel=PRIVATE)]
ValidationIsPublic = Annotated[
    bool, typer.Option("--validation-is-public", help="The rows of --validation need no protection.", rich_help_panel=PRIVATE)
]
Job = Annotated[str, typer.Argument(help="Id of the job.")]


@commands.command("list")
def list_(url: Url = None, limit: Annotated[int, typer.Option(min=1, max=100)] = 20, *, as_json: output.Json = False) -> None:
    """List the newest jobs."""
    found = Service(url).get(PATH, limit=limit)["data"]
    output.show(found if as_json else [_row(job) for job in found], COLUMNS, as_json=as_json)


@commands.command()
def show(job: Job, url: Url = None) -> None:
    """Print all about one job, as JSON."""
    output.show_json(Service(url).get(f"{PATH}/{job}"))


@commands.command()
def submit(
    *,
    model: Annotated[str, typer.Option(help="Model or model:version to start from.")],
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="File to upload and train on.")] = None,
    training_file: Annotated[str | None, typer.Option(help="Id of a file that was uploaded before.")] = None,
    gradient_mode: Annotated[str, typer.Option(help="full or simplified.")] = "full",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A hyperparameter, as n_epochs=3; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    suffix: Annotated[str | None, typer.Option()] = None,
    validation: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="File to upload and judge by.")] = None,
    promote: Annotated[str, typer.Option(help="never or if_not_worse, by the file of --validation.")] = "never",
    max_grad_norm: MaxGradNorm = None,
    target_epsilon: TargetEpsilon = None,
    noise_multiplier: NoiseMultiplier = None,
    delta: Delta = None,
    validation_is_public: ValidationIsPublic = False,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Of the jobs that wait, the one with the highest is next.")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="Fail the job once it was worked at for so long.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge the parameters and the data, estimate steps and time.")] = False,
    url: Url = None,
) -> None:
    """Start a job and print its id."""
    if (data is None) == (training_file is None):
        raise typer.BadParameter("give either --data or --training-file.")
    service = Service(url)
    hyperparameters = {"gradient_mode": gradient_mode, **dict(_assignment(text) for text in set_ or ())}
    private = {"max_grad_norm": max_grad_norm, "target_epsilon": target_epsilon, "noise_multiplier": noise_multiplier, "delta": delta}
    if asked := {name: value for name, value in private.items() if value is not None}:
        hyperparameters["privacy"] = {**asked, "validation_is_public": validation_is_public}
    elif validation_is_public:
        raise typer.BadParameter("--validation-is-public is for private jobs: give --max-grad-norm and the others too.")
    request = {
        "model": model,
        "training_file": training_file or service.upload(data or Path()),
        "validation_file": validation and service.upload(validation),
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "promote": promote,
        "seed": seed,
        "suffix": suffix,
        "priority": priority or None,
        "max_seconds": max_seconds,
        "dry_run": dry_run or None,
    }
    job = service.post(PATH, {name: value for name, value in request.items() if value is not None})
    if dry_run:
        output.show_json(job)
    else:
        typer.echo(job["id"])


@commands.command()
def cancel(job: Job, url: Url = None) -> None:
    """End a job at once."""
    _act(url, job, "cancel")


@commands.command()
def pause(job: Job, url: Url = None) -> None:
    """Hold a job back; it keeps what it has learned."""
    _act(url, job, "pause")


@commands.command()
def resume(job: Job, url: Url = None) -> None:
    """Let a paused job go on."""
    _act(url, job, "resume")


@commands.command()
def logs(
    job: Job, url: Url = None, *, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False
) -> None:
    """Print the events of a job, oldest first; with --follow the exit code is 1 where it fails."""
    service = Service(url)
    for event in service.events(f"/admin/jobs/{job}/events") if follow else reversed(_events(service, job)):
        typer.echo(f"{_clock(event['created_at'])} {event['level']:<5} {event['message']}")
    if follow and service.get(f"{PATH}/{job}")["status"] == "failed":
        raise typer.Exit(1)


def _act(url: str | None, job: str, what: str) -> None:
    found = Service(url).post(f"{PATH}/{job}/{what}")
    typer.echo(f"{found['status']}{' (paused)' if found['paused'] else ''}")


def _events(service: Service, job: str) -> list[dict[str, Any]]:
    """Return all events, newest first."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        page = service.get(f"{PATH}/{job}/events", limit=100, after=found[-1]["id"] if found else None)
        found += page["data"]
        more = page["has_more"]
    return found


def _row(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "created": _clock(job["created_at"])}


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is no NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
