"""kill -9 of the worker at every place of a job: the next goes on from the last checkpoint, and it ends once, with the same bytes."""

from typing import Any, NamedTuple

import pytest


class Place(NamedTuple):
    """A call of a function, and what the next worker finds."""

    function: str
    call: int = 1
    when: str = "before"
    kept: int = 0
    lost: bool = True


PLACES = {
    "validation": Place("app.worker.tune:load"),
    "accepted": Place("app.jobs.attempt:Attempt.accept", when="after"),
    "started": Place("app.jobs.attempt:Attempt.start", when="after"),
    "training, before a checkpoint": Place("app.jobs.attempt:Attempt.checkpoint", call=4, kept=30),
    "training, a checkpoint being flushed": Place("os:fsync", call=5, kept=20),
    "training, a checkpoint being linked": Place("os:link", call=3, kept=20),
    "training, after a checkpoint": Place("app.jobs.attempt:Attempt.checkpoint", call=4, when="after", kept=40),
    "training, after the last checkpoint": Place("app.jobs.attempt:Attempt.checkpoint", call=9, when="after", kept=84),
    "fold": Place("export.pipeline:fold", kept=84),
    "graph": Place("export.pipeline:_certified_graph", kept=84),
    "verify": Place("export.verify:parity", kept=84),
    "bundle": Place("app.worker.tune:export_bundle", when="after", kept=84),
    "publish, before a file": Place("app.registry.registry:Registry.publish", kept=84),
    "publish, between files": Place("os:link", call=11, kept=84),
    "publish, files stored": Place("app.registry.registry:_version_of_job", kept=84),
    "publish, before the commit": Place("app.jobs.attempt:Attempt.succeed_within", when="after", kept=84),
    "publish, after the commit": Place("app.registry.registry:Registry.publish", when="after", lost=False),
    "collection": Place("app.registry.shelf:Shelf.sweep", lost=False),
}


@pytest.mark.parametrize("where", PLACES)
def test_a_killed_worker_is_followed_by_one_that_comes_to_the_same_bytes(machine: Any, uninterrupted: Any, where: str) -> None:
    place = PLACES[where]
    fault = machine.fault("app.worker", place.function, "KILL", call=place.call, when=place.when)
    service = machine.serve(fault)
    job = service.create(service.upload(machine.data))
    told = service.succeeded(job)
    assert machine.struck(fault)
    assert told.count("The job goes back to the queue: its worker ended with status -9.") == place.lost
    assert (f"Training goes on after step {place.kept} of 84." in told) == (place.kept > 0), told
    machine.whole(service, uninterrupted)
