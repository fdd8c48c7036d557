"""kill -9 of the service, wherever it keeps something: what it has acknowledged is there, what it has not is whole or absent."""

import hashlib
from typing import Any

import httpx
import openai
import pytest

SERVE = "app.cli serve"


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("os:fsync", {}),
        ("os:link", {}),
        ("os:link", {"when": "after"}),
        ("os:fsync", {"call": 2, "when": "after"}),
        ("app.registry.files:once", {}),
        ("app.registry.files:once", {"when": "after"}),
        ("app.registry.files:Files.create", {"when": "after"}),
    ],
)
def test_an_upload_is_whole_or_absent_and_the_same_key_makes_it_once(machine: Any, place: str, options: dict[str, Any]) -> None:
    fault = machine.fault(SERVE, place, "KILL", **options)
    service = machine.serve(fault, worker="none")
    with pytest.raises(openai.APIConnectionError):
        service.upload(machine.data, **{"Idempotency-Key": "mine"})
    assert machine.struck(fault) == service.pid
    again = machine.serve(worker="none")
    kept = list(again.openai.files.list())
    assert len(kept) == (place == "app.registry.files:Files.create")
    name = again.upload(machine.data, **{"Idempotency-Key": "mine"})
    assert [file.id for file in again.openai.files.list()] == [name]
    assert all(file.id == name for file in kept)
    content = again.openai.files.content(name).read()
    assert hashlib.sha256(content).digest() == hashlib.sha256(machine.data).digest()
    again.stop()
    machine.examined()


@pytest.mark.parametrize("what", ["promote", "rollback"])
@pytest.mark.parametrize(
    ("place", "options", "done"),
    [
        ("app.registry.registry:Registry.{what}", {}, False),
        ("app.registry.live:move", {}, False),
        ("app.registry.live:move", {"when": "after"}, False),
        ("app.registry.registry:Registry.{what}", {"when": "after"}, True),
    ],
)
def test_a_promotion_has_happened_or_not_and_its_history_agrees(
    machine: Any, what: str, place: str, options: dict[str, Any], done: bool
) -> None:
    before, after = ("1", "2") if what == "promote" else ("2", "1")
    if what == "rollback":
        assert machine.run("app.cli", "models", "promote", "digits", "2")[0] == 0
    fault = machine.fault(SERVE, place.format(what=what), "KILL", **options)
    service = machine.serve(fault, worker="none")
    answers = {version: service.infer(version) for version in ("1", "2")}
    assert service.infer() == answers[before]
    with pytest.raises(httpx.TransportError):
        service.http.post(f"/admin/models/digits/{what}", json={"version": after})
    assert machine.struck(fault) == service.pid
    again = machine.serve(worker="none")
    live = after if done else before
    assert again.live() == live
    assert again.infer() == answers[live]
    history = again.http.get("/admin/models/digits/history").json()
    assert history[-1]["to"] == live
    assert len(history) == 1 + (what == "rollback") + done
    again.stop()
    machine.examined()


@pytest.mark.parametrize(
    ("place", "when"),
    [
        ("app.jobs.store:Jobs.claim", "before"),
        ("app.jobs.store:Jobs.claim", "after"),
        ("app.jobs.launcher:Local.start", "after"),
    ],
)
def test_a_job_whose_service_dies_as_it_claims_it_is_done_by_the_next(machine: Any, uninterrupted: Any, place: str, when: str) -> None:
    fault = machine.fault(SERVE, place, "KILL", when=when)
    service = machine.serve(worker="none")
    job = service.create(service.upload(machine.data))
    service.stop()
    dying = machine.start("app.cli", "serve", "--port", "0", faults=[fault], lease_seconds="4")
    assert dying.process.wait(timeout=120) == -9
    assert machine.struck(fault) == dying.pid
    again = machine.serve(lease_seconds="4")
    again.succeeded(job)
    machine.whole(again, uninterrupted)


@pytest.mark.parametrize("with_worker", [False, True])
def test_a_service_that_dies_in_mid_training_loses_nothing(machine: Any, uninterrupted: Any, until: Any, with_worker: bool) -> None:
    service = machine.serve(lease_seconds="4")
    job = service.create(service.upload(machine.data))
    until(lambda: len(list(service.openai.fine_tuning.jobs.checkpoints.list(job))) >= 3, "three checkpoints are kept")
    (worker,) = machine.workers()
    service.kill()
    if with_worker:
        machine.kill(worker)
    again = machine.serve(lease_seconds="4")
    told = again.succeeded(job)
    lost = "The job goes back to the queue: its worker showed no life for one lease."
    left = "The job goes back to the queue: the service that started its worker has ended."
    assert told.count(lost if with_worker else left) == 1
    assert any("goes on after step" in message for message in told)
    machine.whole(again, uninterrupted)


def test_a_model_whose_judge_dies_is_not_published_and_the_sender_is_told(machine: Any, until: Any) -> None:
    fault = machine.fault(SERVE, "app.jobs.admitter:Admitter._judged", "KILL")
    service = machine.serve(fault, lease_seconds="4")
    model = service.http.get("/admin/models/digits/versions").json()
    assert len(model) == 2
    bundle = machine.scratch / "bundle"
    assert machine.run("app.cli", "models", "export", "digits:1", "--out", str(bundle))[0] == 0
    with pytest.raises(httpx.TransportError):
        service.http.post("/admin/models?wait=60", data={"name": "other"}, files={"file": ("m.onnx", (bundle / "model.onnx").read_bytes())})
    assert machine.struck(fault)
    again = machine.serve(lease_seconds="4")
    with machine.database() as connection:
        (name,) = connection.exec_driver_sql("SELECT id FROM admissions").scalars()
    end = until(lambda: (one := again.http.get(f"/admin/imports/{name}").json())["finished_at"] and one, "the import ends")
    assert (end["status"], end["version"]) == ("failed", None)
    assert "send it again" in end["error"]
    assert [model["name"] for model in again.http.get("/admin/models").json()] == ["digits"]
    again.stop()
    machine.examined()
