"""kill -9 in the midst of things. The long form has every place for itself; here one job meets them one after another."""

from typing import Any

import httpx
import openai
import pytest

PLACES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("app.jobs.attempt:Attempt.checkpoint", {"call": 4, "when": "after"}),
    ("export.verify:parity", {}),
    ("app.jobs.attempt:Attempt.succeed_within", {"when": "after"}),
)


def test_a_job_whose_worker_is_killed_again_and_again_comes_to_the_same_bytes(machine: Any, uninterrupted: Any) -> None:
    faults = [machine.fault("app.worker", place, "KILL", **options) for place, options in PLACES]
    service = machine.serve(*faults)
    job = service.create(service.upload(machine.data))
    told = service.succeeded(job)
    assert len({machine.struck(fault) for fault in faults} - {None}) == len(PLACES)
    assert told.count("The job goes back to the queue: its worker ended with status -9.") == len(PLACES)
    assert [message for message in told if "goes on after step" in message] == [
        "Training goes on after step 40 of 84.",
        "Training goes on after step 84 of 84.",
        "Training goes on after step 84 of 84.",
    ]
    machine.whole(service, uninterrupted)


def test_a_service_killed_in_an_upload_or_a_promotion_has_done_it_or_not(machine: Any) -> None:
    upload = machine.fault("app.cli serve", "os:link", "KILL", when="after")
    promotion = machine.fault("app.cli serve", "app.registry.live:move", "KILL", when="after")
    service = machine.serve(upload, worker="none")
    before = service.infer()
    with pytest.raises(openai.APIConnectionError):
        service.upload(machine.data, **{"Idempotency-Key": "mine"})
    service = machine.serve(promotion, worker="none")
    assert not list(service.openai.files.list())
    assert service.upload(machine.data, **{"Idempotency-Key": "mine"}) == next(iter(service.openai.files.list())).id
    with pytest.raises(httpx.TransportError):
        service.http.post("/admin/models/digits/promote", json={"version": "2"})
    assert machine.struck(upload) != machine.struck(promotion) == service.pid
    service = machine.serve(worker="none")
    assert service.infer() == before
    assert [move["to"] for move in service.http.get("/admin/models/digits/history").json()] == ["1"]
    assert service.http.post("/admin/models/digits/promote", json={"version": "2"}).json()["previous_version"] == "1"
    assert service.infer()[0] == "2"
    service.stop()
    machine.examined()
