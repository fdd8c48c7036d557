"""kill -9 in the midst of things. The long form has every place for itself; here one job meets them one after another."""

from typing import Any

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
