"""Real jobs on the real digits: data, training, fold, graph, verification, publication."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local
from app.jobs.machine import State
from app.registry.blobs import Blobs
from app.worker.pulse import Pulse

QUICK = {"hyperparameters": {"n_epochs": 2, "batch_size": 64}}


def events(workspace: Any, job: str) -> list[dict[str, Any]]:
    return workspace.jobs.events(job, limit=1000).items[::-1]


def test_a_job_ends_as_a_new_version_that_is_not_live(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 600)), gradient_mode="simplified", **QUICK)
    assert workspace.work() == 0
    end = workspace.jobs.get(job)
    assert end["error"] is None, events(workspace, job)
    assert (end["status"], end["fine_tuned_model"]) == ("succeeded", "digits:2")
    assert workspace.registry.live("digits") == "1"
    manifest = workspace.registry.manifest("digits", "2")
    assert manifest.gradient_mode == "simplified"
    assert all(layer.folded_sigma_upper <= layer.target for layer in manifest.layers)
    assert manifest.input == workspace.registry.manifest("digits", "1").input
    assert manifest.signature.labels == tuple("0123456789")
    (line,) = [line for line in workspace.registry.describe("digits") if line["version"] == "2"]
    assert (line["parent"], line["job"]) == ("digits:1", job)
    spectral = end["spectral"]
    assert spectral["before"]["sigma"].keys() == spectral["after"]["sigma"].keys() == {layer.name for layer in manifest.layers}
    assert spectral["after"]["lipschitz_bound"] == manifest.lipschitz.bound
    metrics = [event["data"] for event in events(workspace, job) if event["type"] == "metrics"]
    assert metrics[-1]["sigma"].keys() == spectral["after"]["sigma"].keys()
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert (end["progress"]["step"], end["progress"]["steps"]) == (20, 20)


def test_bad_validation_data_are_named_as_such(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 64)), validation_file=workspace.text("a,target\n1,0\n", "v.csv"))
    workspace.work()
    assert workspace.jobs.get(job)["error"]["param"] == "validation_file"


def test_a_dry_run_judges_the_data_and_trains_nothing(workspace: Any) -> None:
    good = workspace.create(workspace.upload(slice(0, 64)), dry_run=True, hyperparameters={"n_epochs": 30, "batch_size": 10})
    workspace.work()
    found = workspace.jobs.get(good)["result"]
    assert (found["rows"], found["validation_rows"], found["steps"]) == (64, 0, 30 * 7)
    assert found["seconds"] == found["seconds_per_step"] * found["steps"] > 0
    assert workspace.jobs.checkpoints(good).items == []
    bad = workspace.create(workspace.text("a,target\n1,0\n", "v.csv"), dry_run=True)
    workspace.work()
    assert (workspace.jobs.get(good)["status"], workspace.jobs.get(good)["fine_tuned_model"]) == ("succeeded", None)
    assert workspace.jobs.get(bad)["error"]["code"] == "bad_data"
    assert workspace.registry.versions("digits") == ["1"]


def test_training_that_diverges_fails_the_job_with_step_and_layer_and_no_version(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 128)), hyperparameters={"learning_rate": 1e30, "optimizer": "sgd", "n_epochs": 20})
    workspace.work()
    error = workspace.jobs.get(job)["error"]
    assert error["code"] == "diverged"
    assert "step" in error["message"]
    assert "finite loss" in error["message"]
    assert workspace.registry.versions("digits") == ["1"]
    json.dumps(events(workspace, job), allow_nan=False)


def test_a_job_under_a_suffix_makes_another_model(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 64)), suffix="mine", hyperparameters={"n_epochs": 1})
    workspace.work()
    assert workspace.jobs.get(job)["fine_tuned_model"] == "digits-mine:1"
    assert workspace.registry.describe("digits-mine")[0]["parent"] == "digits:1"
    assert workspace.registry.live("digits-mine") is None


def test_a_better_model_is_promoted_where_that_was_asked_and_a_worse_one_is_not(workspace: Any) -> None:
    data, validation = workspace.upload(slice(0, 1000)), workspace.upload(slice(1000, 1797))
    options = {"promote": "if_not_worse", "validation_file": validation}
    better = workspace.create(data, hyperparameters={"n_epochs": 5}, **options)
    workspace.work()
    result = workspace.jobs.get(better)["result"]
    assert result["promoted"], result
    assert workspace.registry.live("digits") == "2"
    assert workspace.registry.history("digits")[-1]["who"] == better
    assert result["metrics"]["validation_accuracy"] > result["metrics"]["live_validation_accuracy"]
    told = workspace.registry.manifest("digits", "2").training.metrics
    assert told["validation_accuracy"] == result["metrics"]["validation_accuracy"] > 0.8
    wrong = workspace.text("p," * 64 + "target\n" + ("8," * 64 + "0\n" + "9," * 64 + "1\n") * 32, "wrong.csv")
    worse = workspace.create(wrong, hyperparameters={"n_epochs": 30, "learning_rate": 0.05}, **options)
    workspace.work()
    assert workspace.jobs.get(worse)["status"] == "succeeded"
    assert not workspace.jobs.get(worse)["result"]["promoted"]
    assert workspace.registry.live("digits") == "2"


def test_an_interrupted_training_goes_on_to_the_same_bytes(workspace: Any) -> None:
    request = {"hyperparameters": {"n_epochs": 40, "batch_size": 32, "checkpoint_every": 7}}
    data = workspace.upload(slice(0, 200))
    whole = workspace.create(data, **request)
    workspace.work()
    parted = workspace.create(data, **request)
    state = "queued"
    for _ in range(3):
        attempt = workspace.attempt()
        pulse = Pulse(attempt, 0.02)
        progress, count = attempt.progress, [0]

        def stop(*args: Any, progress: Any = progress, count: list[int] = count, pulse: Pulse = pulse, **options: Any) -> None:
            progress(*args, **options)
            count[0] += 1
            if count[0] == 3:
                pulse.interrupt("the test asks for it")

        attempt.progress = stop  # type: ignore[method-assign]  # a moment that a signal cannot hit on purpose
        workspace.work(attempt, pulse)
        state = workspace.jobs.get(parted)["status"]
        assert state == "queued"
    workspace.work()
    digests = [workspace.registry.file("digits", version, "model.onnx") for version in ("2", "3")]
    assert digests[0] == digests[1]
    assert sum("goes on after step" in event["message"] for event in events(workspace, parted)) == 3
    assert workspace.jobs.get(whole)["status"] == workspace.jobs.get(parted)["status"] == "succeeded"


def test_a_checkpoint_that_rotted_is_not_trusted(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 64)), hyperparameters={"n_epochs": 1})
    attempt = workspace.attempt()
    attempt.checkpoint(workspace.registry.blobs.put(b"no checkpoint"), step=1, metrics={})
    assert workspace.work(attempt) == 0
    told = [event["message"] for event in events(workspace, job) if event["level"] == "warn"]
    assert "starts anew" in told[0]
    assert workspace.jobs.get(job)["status"] == "succeeded", workspace.jobs.get(job)["error"]


def test_a_pause_keeps_a_checkpoint_and_a_cancel_none(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 200)), hyperparameters={"n_epochs": 10_000})
    attempt = workspace.attempt()
    start = attempt.start

    def pause(message: str) -> None:
        start(message)
        workspace.jobs.pause(job)

    attempt.start = pause  # type: ignore[method-assign]  # while it runs, at a moment that the test chooses
    workspace.work(attempt)
    held = workspace.jobs.get(job)
    assert (held["status"], held["paused"]) == ("queued", True)
    assert len(workspace.jobs.checkpoints(job).items) > 0
    workspace.jobs.resume(job)
    again = workspace.attempt()
    begin = again.start

    def cancel(message: str) -> None:
        begin(message)
        workspace.jobs.cancel(job)

    again.start = cancel  # type: ignore[method-assign]  # as above
    workspace.work(again)
    assert workspace.jobs.get(job)["status"] == "cancelled"
    assert workspace.registry.versions("digits") == ["1"]


def test_a_mistake_in_the_worker_tells_the_client_nothing_of_it(workspace: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(_self: Blobs, _name: str) -> bytes:
        raise RuntimeError("/secret/path")

    job = workspace.create(workspace.upload(slice(0, 64)))
    attempt = workspace.attempt()
    monkeypatch.setattr(Blobs, "get", broken)
    workspace.work(attempt)
    assert workspace.jobs.get(job)["error"]["code"] == "internal"
    assert "secret" not in json.dumps([workspace.jobs.get(job), events(workspace, job)])
    assert "/secret/path" in capsys.readouterr().err


# The real worker, but for its priority: beside other tests it would wait for the processor most of the time.
AT_NORMAL_PRIORITY = "import sys, app.worker.__main__ as w; w.yield_to_others = lambda: None; sys.exit(w.main())"


def test_a_worker_leaves_the_processor_to_the_serving_process() -> None:
    code = "import os; from app.worker.__main__ import yield_to_others as y; y(); print(os.nice(0)); os.system('cat /proc/self/autogroup')"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, start_new_session=True).stdout.split()
    assert int(told[0]) == min(19, os.nice(0) + 10)
    if Path("/proc/self/autogroup").exists():  # a kernel may be built without it
        assert told[-1] == "10"


def until(dispatcher: Dispatcher, met: Callable[[], bool]) -> None:
    for _ in range(6000):
        dispatcher.turn()
        if met():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def test_a_worker_killed_in_mid_training_is_followed_by_one_that_goes_on(workspace: Any) -> None:
    job = workspace.create(workspace.upload(slice(0, 400)), hyperparameters={"n_epochs": 60, "checkpoint_every": 40, "batch_size": 64})
    local = Local(workspace.settings, command=[sys.executable, "-c", AT_NORMAL_PRIORITY])
    started: list[Any] = []

    class Watched:
        def start(self, claim: Any) -> Any:
            started.append(local.start(claim))
            return started[-1]

    dispatcher = Dispatcher(workspace.jobs, Watched(), workspace.settings)
    until(dispatcher, lambda: len(workspace.jobs.checkpoints(job).items) >= 2)
    os.kill(started[0].pid, signal.SIGKILL)
    until(dispatcher, lambda: workspace.jobs.get(job)["status"] in {"succeeded", "failed"})
    dispatcher.close()
    end = workspace.jobs.get(job)
    assert end["status"] == State.SUCCEEDED, end["error"]
    assert len(started) == 2
    told = [event["message"] for event in events(workspace, job)]
    assert sum("goes on after step" in message for message in told) == 1
    assert sum(message.startswith("The job succeeded") for message in told) == 1
    assert workspace.registry.versions("digits") == ["1", "2"]


@pytest.mark.parametrize("how", ["paused", "asked to end"])
def test_a_worker_that_lets_go_in_mid_training_keeps_a_checkpoint_and_the_job_comes_to_the_same_bytes(workspace: Any, how: str) -> None:
    request = {"hyperparameters": {"n_epochs": 60, "batch_size": 32, "checkpoint_every": 10_000}}
    data = workspace.upload(slice(0, 400))
    workspace.create(data, **request)
    workspace.work()
    job = workspace.create(data, **request)
    started: list[Any] = []
    local = Local(workspace.settings, command=[sys.executable, "-c", AT_NORMAL_PRIORITY.replace("w;", "w; w.BEATS_PER_LEASE = 1200;")])
    start = local.start
    local.start = lambda claim: started.append(start(claim)) or started[-1]  # type: ignore[method-assign]  # to see when it ends
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings)
    until(dispatcher, lambda: (workspace.jobs.get(job)["progress"]["step"] or 0) > 0)
    if how == "paused":
        workspace.jobs.pause(job)
        until(dispatcher, lambda: workspace.jobs.get(job)["status"] == "queued")
        assert workspace.jobs.get(job)["paused"]
        workspace.jobs.resume(job)
    else:
        os.kill(started[0].pid, signal.SIGTERM)
    until(dispatcher, lambda: workspace.jobs.get(job)["status"] in {"succeeded", "failed"})
    dispatcher.close()
    assert workspace.jobs.get(job)["error"] is None
    assert len(started) == 2
    told = [event["message"] for event in events(workspace, job)]
    assert sum("goes on after step" in message for message in told) == 1
    models = [workspace.registry.file("digits", version, "model.onnx") for version in ("2", "3")]
    assert models[0] == models[1]
