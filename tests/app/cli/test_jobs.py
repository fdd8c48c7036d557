"""The real command against the real service, each a process of its own; the worker's side is played by the test."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.cli.workspace import registry
from app.jobs.attempt import Attempt
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.files import Files
from export import bundle

COMMAND = [sys.executable, "-m", "app.cli"]


@contextmanager
def serving(folder: Path, port: str = "0") -> Iterator[str]:
    arguments = ["serve", "--workspace", str(folder), "--port", port, "--worker", "none"]
    patient = {**os.environ, "SPECNORM_DRAIN_SECONDS": "600"}  # a stream that is open does not hold its end up
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env=patient)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=300)
        finally:
            process.kill()


@pytest.fixture
def jobs(tmp_path: Path, models: Any) -> Jobs:
    stored = registry(tmp_path)
    artifact = models.affine(1.0)
    files = {bundle.MODEL: artifact.model, "architecture.json": b"{}", "checkpoint.safetensors": b"w"}
    manifest = artifact.manifest.model_copy(update={"files": {name: bundle.digest(content) for name, content in files.items()}})
    stored.publish("affine", manifest, files)
    made = Jobs(stored.database)
    file = Files(stored.database, stored.blobs, max_bytes=1000).create(io.BytesIO(b"a,target\n1,0\n"), "rows.csv", "fine-tune")["id"]
    made.create(parse({"model": "affine:1", "training_file": file}))
    return made


def attempt(jobs: Jobs) -> Attempt:
    claim = jobs.claim("test")
    assert claim is not None
    return Attempt(jobs.database, claim)


def command(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([*COMMAND, "jobs", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def said(*arguments: str) -> str:
    output, errors = command(*arguments).communicate()
    return output + errors


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_logs_are_followed_over_a_restart_of_the_service_to_the_end_of_the_job(tmp_path: Path, jobs: Jobs) -> None:
    made = attempt(jobs)
    job = made.claim.job
    with serving(tmp_path) as url:
        follower = command("logs", job, "--follow", "--url", url)
        assert "was created" in line(follower)
        made.accept("The data are good.")
        assert "The data are good." in line(follower)
    with serving(tmp_path, port=url.rpartition(":")[2]):
        made.start("Training starts.")
        made.fail("diverged", "the loss is NaN")
        rest, _ = follower.communicate()
        assert [text.split(maxsplit=3)[3] for text in rest.splitlines()] == [
            "Training starts.",
            "The job failed (diverged): the loss is NaN",
        ]
        assert follower.returncode == 1
        assert [text[20:] for text in said("logs", job, "--url", url).splitlines()][
            -1
        ] == "error The job failed (diverged): the loss is NaN"


def test_a_job_is_paused_resumed_and_cancelled_by_commands(tmp_path: Path, jobs: Jobs) -> None:
    job = jobs.list().items[0]["id"]
    with serving(tmp_path) as url:
        assert said("pause", job, "--url", url) == "queued (paused)\n"
        assert "a job that is paused cannot be paused" in said("pause", job, "--url", url)
        assert said("resume", job, "--url", url) == "validating_files\n"
        assert said("cancel", job, "--url", url) == "cancelled\n"
        assert "a job that is cancelled cannot be resumed" in said("resume", job, "--url", url)
        assert "there is no fine-tuning job" in said("logs", "none", "--follow", "--url", url)
