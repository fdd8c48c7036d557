"""Private fine-tune jobs, from the request to the manifest, and through crashes."""

import json
import logging
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.db import DATABASE
from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local
from app.main import create_app
from app.worker.guarantee import above
from app.worker.pulse import Pulse
from export.bundle import Training
from export.pipeline import export_bundle
from specnorm_core.architecture import build, preset
from specnorm_core.privacy import epsilon, poisson

pytest.importorskip("opacus")

PRIVACY = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-4}
# The real worker, but for its priority: beside other tests it would wait for the processor most of the time.
AT_NORMAL_PRIORITY = "import sys, app.worker.__main__ as w; w.yield_to_others = lambda: None; sys.exit(w.main())"


def events(workspace: Any, job: str) -> list[dict[str, Any]]:
    return workspace.jobs.events(job, limit=1000).items[::-1]


def asked(epochs: int = 2, *, every: int = 100, mode: str = "full", batch_size: int = 64, **privacy: Any) -> dict[str, Any]:
    hyperparameters = {"n_epochs": epochs, "batch_size": batch_size, "checkpoint_every": every, "gradient_mode": mode}
    return {"hyperparameters": {**hyperparameters, "privacy": {**PRIVACY, **privacy}}}


def spent(steps: int, rows: int, batch_size: int = 64) -> float:
    return epsilon(noise_multiplier=1.0, sample_rate=batch_size / rows, steps=steps, delta=1e-4)


def manifest(workspace: Any, version: str = "2") -> Any:
    return workspace.registry.manifest("digits", version)


@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_a_private_job_ends_as_a_version_whose_manifest_states_the_guarantee(workspace: Any, mode: str) -> None:
    job = workspace.create(workspace.upload(slice(0, 640)), **asked(mode=mode))
    workspace.work()
    end = workspace.jobs.get(job)
    assert end["status"] == "succeeded", end["error"]
    stated = manifest(workspace).training.privacy
    assert (stated.steps_taken, stated.steps_charged) == (20, 20)
    assert stated.epsilon == pytest.approx(spent(20, 640))
    assert (stated.sample_rate, stated.noise_multiplier, stated.max_grad_norm, stated.delta) == (0.1, 1.0, 1.0, 1e-4)
    for word in (f"({above(stated.epsilon)}, 0.0001)", "single rows"):
        assert word in stated.statement
    assert "digits:1" in stated.not_covered[0]
    words = " ".join((stated.sampling, stated.mechanism, stated.accountant, stated.unit, stated.randomness))
    assert all(word in words for word in ("Poisson", "DP-SGD", "Opacus", "add or remove one", "no seed"))
    told = [event["data"]["epsilon"] for event in events(workspace, job) if "epsilon" in event["data"]]
    assert told
    assert max(told) == pytest.approx(stated.epsilon)
    assert end["result"]["metrics"]["epsilon"] == pytest.approx(stated.epsilon)
    assert manifest(workspace).gradient_mode == mode


def test_a_private_job_shows_no_loss_no_digest_and_no_seed_anywhere(workspace: Any, capfd: Any) -> None:
    data = workspace.upload(slice(0, 640))
    job = workspace.create(data, **asked(every=5))
    workspace.work()
    database = sqlite3.connect(workspace.folder / DATABASE)
    raw = workspace.registry.files("digits", "2")
    shown = [
        *map(json.dumps, events(workspace, job)),
        *map(json.dumps, workspace.jobs.checkpoints(job).items),
        json.dumps(workspace.jobs.get(job)),
        manifest(workspace).model_dump_json(exclude={"tools", "files"}),
        *(content.decode("latin-1") for content in raw.values()),
        *capfd.readouterr(),
    ]
    digest = database.execute("select digest from files").fetchone()[0]
    kept = {path.name: path for path in workspace.folder.rglob("*") if path.is_file() and len(path.name) == 64}  # checkpoints among them
    kept.pop(digest).read_bytes()  # the rows themselves
    assert any(b"optimizer.0" in path.read_bytes() for path in kept.values())
    shown += [path.read_bytes().decode("latin-1") for path in kept.values()]
    rows = workspace.digits.subset(range(640)).digest
    for text in shown:
        assert not re.search(r"loss\W{0,5}\d", text)  # a number after the word; the name of the loss may stand
        assert digest not in text
        assert rows not in text
        assert not re.search(r"seed\W{1,5}\d", text)
    assert workspace.jobs.get(job)["seed"] is None
    training = manifest(workspace).training
    assert (training.data_digest, training.seed) == (None, None)
    assert set(training.metrics) == {"epsilon"}
    assert manifest(workspace).verification["real_inputs"] == 0


def test_nothing_that_is_served_or_stored_tells_of_loss_digest_seed_or_the_batches_that_were_drawn(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every path of the service that can be read, the stream of events to its end, the metrics, the log, each row of the data base."""
    sizes: list[int] = []

    def counted(*args: Any) -> Any:
        drawn = poisson(*args)
        sizes.append(len(drawn))
        return drawn

    monkeypatch.setattr("specnorm_core.training.poisson", counted)
    caplog.set_level(logging.DEBUG)
    data = workspace.upload(slice(0, 640))
    job = workspace.create(data, **asked(every=5))
    workspace.work()
    assert len(sizes) == 20
    digest = sqlite3.connect(workspace.folder / DATABASE).execute("select digest from files").fetchone()[0]
    known = {"{job_id}": job, "{name}": "digits", "{model}": "digits", "{version}": "2", "{file_id}": data}
    shown: dict[str, str] = {}
    application = create_app(workspace.settings.model_copy(update={"worker": "none"}))
    with TestClient(application, base_url="http://127.0.0.1") as client:
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for name, value in known.items():
                path = path.replace(name, value)  # noqa: PLW2901  # the path, filled in
            if "get" in methods and "{" not in path and not path.endswith("/content"):  # which is the file with the rows itself
                shown[path] = client.get(path).content.decode("latin-1")
        for path in ("/metrics", "/", "/console/static/jobs.js", "/v2", "/v2/models/digits", "/v2/models/digits/versions/2/stats"):
            shown[path] = client.get(path).text
    assert shown.keys() >= {f"/v1/fine_tuning/jobs/{job}/{part}" for part in ("events", "checkpoints")}, sorted(shown)
    assert "succeeded" in shown[f"/admin/jobs/{job}/events"]
    shown["the log"] = caplog.text
    database = sqlite3.connect(workspace.folder / DATABASE)
    for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
        names = [column[1] for column in database.execute(f"pragma table_info({table})")]
        rows = [dict(zip(names, row, strict=True)) for row in database.execute(f"select * from {table}")]  # a name from the schema
        # Where the rows of the job lie: in a data base that has the file itself beside it, and never served.
        told = repr([{name: value for name, value in row.items() if value != digest} for row in rows])
        shown[f"table {table}"] = told.replace('"seed": 0', "")  # what a request says that names none; a private job uses none
    drawn = [", ".join(map(str, sizes[at : at + 3])) for at in range(18)]
    told = "\n".join(shown.values())
    for place, text in shown.items():
        assert not re.search(r"(?<!\")loss\W{0,5}\d", text), place
        assert digest not in text, place
        assert workspace.digits.subset(range(640)).digest not in text, place
        assert not re.search(r"seed\W{1,5}\d", text), place
    assert not any(run in told for run in drawn)
    assert not re.search(rf"\b{sum(sizes)}\b", told)


@pytest.mark.parametrize(
    ("epsilon", "words"), [(2.99643, "2.997"), (2.997, "2.997"), (0.100001, "0.1001"), (12345.6, "1.235e+04"), (3.0, "3")]
)
def test_an_epsilon_in_words_is_never_less_than_what_was_spent(epsilon: float, words: str) -> None:
    assert above(epsilon) == words


def test_two_runs_of_the_same_private_job_differ(workspace: Any) -> None:
    data = workspace.upload(slice(0, 640))
    for _ in range(2):
        workspace.create(data, **asked(epochs=1))
        workspace.work()
    assert workspace.registry.file("digits", "2", "model.onnx") != workspace.registry.file("digits", "3", "model.onnx")


def test_a_private_model_is_promoted_by_public_rows_alone(workspace: Any) -> None:
    fields = asked(epochs=4, validation_is_public=True)
    fields["hyperparameters"]["learning_rate"] = 1e-2
    public = workspace.upload(slice(1000, 1797))
    job = workspace.create(workspace.upload(slice(0, 1000)), validation_file=public, promote="if_not_worse", **fields)
    workspace.work()
    end = workspace.jobs.get(job)
    assert end["status"] == "succeeded", end["error"]
    assert 0 < end["result"]["metrics"]["accuracy"] <= 1
    assert "validation_accuracy" in end["result"]["metrics"]
    assert manifest(workspace).verification["real_inputs"] > 0  # the public ones
    assert manifest(workspace).training.privacy.validation_is_public


@pytest.mark.parametrize(
    ("privacy", "param", "sentence"),
    [
        ({"delta": 0.01}, "privacy.delta", "below one over the number of rows, 1/640"),
        ({"noise_multiplier": None, "target_epsilon": 1e-7}, "privacy", "no noise gives epsilon 1e-07"),
    ],
)
def test_a_wish_that_protects_nobody_or_cannot_be_met_fails_the_job(workspace: Any, privacy: Any, param: str, sentence: str) -> None:
    job = workspace.create(workspace.upload(slice(0, 640)), **asked(**privacy))
    workspace.work()
    error = workspace.jobs.get(job)["error"]
    assert (error["code"], error["param"], sentence in error["message"]) == ("not_private", param, True), error


def test_a_private_job_on_layers_without_per_sample_gradients_fails_by_their_name_before_its_first_step(workspace: Any) -> None:
    architecture = preset("mlp-orthogonal", (64,), 10, shift=8.0, scale=0.125)
    domain, training = manifest(workspace, "1").input, Training(metrics={})
    bundle = export_bundle(
        build(architecture, seed=0), architecture, samples=workspace.digits.x[:9], domain=domain, labels=(), training=training
    )
    workspace.registry.publish("orthogonal", *bundle)
    workspace.registry.promote("orthogonal", "1", why="first", who="test")
    job = workspace.create(workspace.upload(slice(0, 640)), model="orthogonal", **asked())
    workspace.work()
    error = workspace.jobs.get(job)["error"]
    assert (error["code"], error["param"]) == ("not_private", "privacy")
    assert "no rule for the per-sample gradients of a layer OrthogonalLinear" in error["message"]
    assert not [event for event in events(workspace, job) if "steps_charged" in event["data"]]


def test_bad_rows_of_a_private_job_are_not_quoted(workspace: Any) -> None:
    content = "p," * 64 + "target\n" + "1," * 64 + "31415\n"
    job = workspace.create(workspace.text(content, "rows.csv"), **asked())
    workspace.work()
    error = workspace.jobs.get(job)["error"]
    assert (error["code"], error["param"]) == ("bad_data", "training_file")
    assert "31415" not in json.dumps(events(workspace, job)) + json.dumps(error)


def test_steps_are_charged_on_the_disk_before_they_are_taken(workspace: Any) -> None:
    """Whatever the moment of a crash: what the journal says is never below the number of steps begun."""
    workspace.create(workspace.upload(slice(0, 640)), **asked(every=7))
    attempt = workspace.attempt()
    seen = []
    progress = attempt.progress

    def watched(*args: Any, step: int, **options: Any) -> None:
        seen.append((step, attempt.charged()))
        progress(*args, step=step, **options)

    attempt.progress = watched  # type: ignore[method-assign]  # looks at every step's moment
    workspace.work(attempt)
    assert len(seen) == 20
    assert all(step <= charged <= step + 6 for step, charged in seen)
    assert seen[0] == (1, 7)


def test_a_job_that_was_paused_is_charged_for_what_it_took(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 640)), **asked(every=50))
    attempt = workspace.attempt()
    pulse = Pulse(attempt, 0.02)
    progress = attempt.progress

    def stop(*args: Any, step: int, **options: Any) -> None:
        progress(*args, step=step, **options)
        if step == 9:
            pulse.interrupt("the test asks for it")

    attempt.progress = stop  # type: ignore[method-assign]  # a moment that a signal cannot hit on purpose
    workspace.work(attempt, pulse)
    assert workspace.jobs.get(job)["status"] == "queued"
    workspace.work()
    stated = manifest(workspace).training.privacy
    assert (stated.steps_taken, stated.steps_charged) == (20, 20)


def until(dispatcher: Dispatcher, met: Callable[[], bool]) -> None:
    for _ in range(6000):
        dispatcher.turn()
        if met():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def test_a_worker_killed_in_mid_training_is_followed_by_one_that_reports_no_less_than_was_spent(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 640)), **asked(epochs=16, every=20))
    local = Local(workspace.settings, command=[sys.executable, "-c", AT_NORMAL_PRIORITY])
    started: list[Any] = []

    class Watched:
        def start(self, claim: Any) -> Any:
            started.append(local.start(claim))
            return started[-1]

    def charged() -> list[int]:
        return [event["data"]["steps_charged"] for event in events(workspace, job) if "steps_charged" in event["data"]]

    dispatcher = Dispatcher(workspace.jobs, Watched(), workspace.settings)
    until(dispatcher, lambda: len(charged()) >= 3)
    os.kill(started[0].pid, signal.SIGKILL)
    before = charged()
    until(dispatcher, lambda: workspace.jobs.get(job)["status"] in {"succeeded", "failed"})
    dispatcher.close()
    assert workspace.jobs.get(job)["status"] == "succeeded", workspace.jobs.get(job)["error"]
    stated = manifest(workspace).training.privacy
    resumed = next(
        int(found[1]) for event in events(workspace, job) if (found := re.match(r"Training goes on after step (\d+)", event["message"]))
    )
    assert stated.steps_taken == 160
    assert stated.steps_charged >= before[-1] + (160 - resumed)
    assert stated.steps_charged > 160
    assert stated.epsilon == pytest.approx(spent(stated.steps_charged, 640))
    assert charged() == sorted(charged())


def test_a_target_is_kept_through_a_crash(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 640)), **asked(every=5, noise_multiplier=None, target_epsilon=5.0))
    attempt = workspace.attempt()
    attempt.charge(8, "An attempt before this one began eight steps and was lost.", {})
    workspace.work(attempt)
    stated = manifest(workspace).training.privacy
    assert workspace.jobs.get(job)["status"] == "succeeded"
    assert (stated.steps_taken, stated.steps_charged) == (12, 20)
    assert 4.5 < stated.epsilon <= 5.0
