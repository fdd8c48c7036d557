import io
import threading
from typing import Any

import pytest
from sqlalchemy import update

from app.db import files
from app.errors import ConflictError, InvalidRequestError, NotFoundError, QueueFullError
from app.jobs import store
from app.jobs.attempt import Attempt, FencedError
from app.jobs.machine import IllegalTransitionError, State
from app.jobs.store import Claim, Jobs
from app.registry.files import expire


def attempt(workspace: Any, owner: str = "me") -> Attempt:
    claim = workspace.jobs.claim(owner)
    assert claim is not None
    return Attempt(workspace.registry.database, claim)


def running(workspace: Any) -> Attempt:
    made = attempt(workspace)
    made.accept("good")
    made.start("go")
    return made


def messages(workspace: Any, job: str) -> list[str]:
    return [event["message"] for event in workspace.jobs.events(job, limit=100).items][::-1]


def test_a_new_job_is_validated_first_and_takes_the_mode_of_its_parent(workspace: Any) -> None:
    job = workspace.create()
    assert (job["status"], job["parent"], job["paused"]) == ("validating_files", "digits:1", False)
    assert job["method"]["supervised"]["hyperparameters"]["gradient_mode"] == "simplified"
    assert workspace.create(gradient_mode="full")["hyperparameters"]["gradient_mode"] == "full"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"model": "none"}, "model"),
        ({"model": "digits:9"}, "model"),
    ],
)
def test_what_does_not_exist_cannot_be_asked_for(workspace: Any, fields: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        workspace.create(**fields)
    assert caught.value.param == param


def test_a_model_without_a_checkpoint_or_without_a_live_version_cannot_be_trained(workspace: Any, make_bundle: Any) -> None:
    workspace.registry.publish("foreign", *make_bundle({"model.onnx": b"graph"}))
    with pytest.raises(InvalidRequestError, match="no live version"):
        workspace.create(model="foreign")
    with pytest.raises(InvalidRequestError, match="cannot be trained further"):
        workspace.create(model="foreign:1")


def test_the_same_key_from_many_threads_makes_one_job(workspace: Any) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(workspace.create(key="k")["id"])) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 50
    assert len(set(made)) == 1
    with pytest.raises(ConflictError):
        workspace.create(key="k", suffix="other")


def test_the_queue_is_bounded(workspace: Any) -> None:
    narrow = Jobs(workspace.registry.database, max_open=1)
    workspace.create()
    with pytest.raises(QueueFullError):
        workspace._replace(jobs=narrow).create()


def test_claimants_at_once_never_get_the_same_job(workspace: Any) -> None:
    made = {workspace.create()["id"] for _ in range(6)}
    claims: list[Claim | None] = []
    threads = [threading.Thread(target=lambda n=n: claims.append(workspace.jobs.claim(f"w{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = [claim.job for claim in claims if claim]
    assert sorted(got) == sorted(made)
    assert claims.count(None) == 2


def test_a_job_goes_through_its_states_to_its_end(workspace: Any) -> None:
    job = workspace.create()["id"]
    made = attempt(workspace)
    seen = [workspace.jobs.get(job)["status"]]
    made.accept("good")
    seen.append(workspace.jobs.get(job)["status"])
    made.start("go")
    seen.append(workspace.jobs.get(job)["status"])
    made.succeed("done", fine_tuned_model="digits:2", result={"version": "2"})
    end = workspace.jobs.get(job)
    assert [*seen, end["status"]] == ["validating_files", "queued", "running", "succeeded"]
    assert (end["fine_tuned_model"], end["error"]) == ("digits:2", None)
    assert end["finished_at"] >= end["created_at"]
    assert workspace.jobs.leases() == []


def test_a_worker_whose_job_was_taken_over_can_write_nothing(workspace: Any) -> None:
    job = workspace.create()["id"]
    old = running(workspace)
    assert workspace.jobs.lose(old.claim, why="silent", max_attempts=3) is State.QUEUED
    new = attempt(workspace, "other")
    assert new.claim.token > old.claim.token
    before = messages(workspace, job)
    acts = [
        old.heartbeat,
        old.assignment,
        lambda: old.accept(""),
        lambda: old.start(""),
        lambda: old.event(""),
        lambda: old.progress("", {}, step=1, steps=2, seconds_left=1),
        lambda: old.checkpoint(workspace.registry.blobs.put(b"0"), step=1, metrics={}),
        lambda: old.release(""),
        lambda: old.fail("x", "y"),
        lambda: old.succeed("done"),
    ]
    for act in acts:
        with pytest.raises(FencedError):
            act()
    assert messages(workspace, job) == before
    assert new.heartbeat() is False


def test_a_publication_by_a_worker_that_lost_its_job_leaves_no_version(workspace: Any, make_bundle: Any) -> None:
    workspace.create()
    old = running(workspace)
    workspace.jobs.lose(old.claim, why="silent", max_attempts=3)
    with pytest.raises(FencedError):
        workspace.registry.publish(
            "digits", *make_bundle({"model.onnx": b"new"}), job=old.claim.job, within=lambda c, _v: old.succeed_within(c, "done")
        )
    assert workspace.registry.versions("digits") == ["1"]


def test_a_lease_is_not_lost_if_the_heart_beat_meanwhile(workspace: Any) -> None:
    workspace.create()
    made = running(workspace)
    (lease,) = workspace.jobs.leases()
    made.heartbeat()
    assert workspace.jobs.lose(made.claim, why="silent", max_attempts=3, heartbeat=lease.heartbeat) is None
    assert made.heartbeat() is False


def test_a_job_that_loses_too_many_workers_is_lost(workspace: Any) -> None:
    job = workspace.create()["id"]
    for _ in range(3):
        workspace.jobs.lose(attempt(workspace).claim, why="its worker died", max_attempts=3)
    end = workspace.jobs.get(job)
    assert (end["status"], end["error"]["code"]) == ("failed", "lost")
    assert end["error"]["message"].startswith("3 workers were lost, the last one at no step yet: its worker died. It is not tried again;")
    assert workspace.jobs.claim("me") is None


def test_a_release_does_not_count_as_a_loss(workspace: Any) -> None:
    job = workspace.create()["id"]
    for _ in range(5):
        attempt(workspace).release("asked to end")
    assert workspace.jobs.get(job)["status"] == "validating_files"


def claimed(workspace: Any) -> None:
    attempt(workspace)


def accepted(workspace: Any) -> None:
    attempt(workspace).accept("good")


def pausing(workspace: Any) -> None:
    workspace.jobs.pause(running(workspace).claim.job)


def paused(workspace: Any) -> None:
    made = running(workspace)
    workspace.jobs.pause(made.claim.job)
    made.release("it was paused")


@pytest.mark.parametrize("come", [lambda _: None, claimed, accepted, running, pausing, paused])
def test_a_job_is_cancelled_at_once_whatever_it_does(workspace: Any, come: Any) -> None:
    job = workspace.create()["id"]
    come(workspace)
    end = workspace.jobs.cancel(job)
    assert (end["status"], end["paused"], end["estimated_finish"]) == ("cancelled", False, None)
    assert end["finished_at"] >= end["created_at"]
    assert messages(workspace, job)[-1] == "The job was cancelled."
    assert workspace.jobs.leases() == []
    assert workspace.jobs.claim("me") is None
    before = workspace.jobs.get(job)
    for act in (workspace.jobs.cancel, workspace.jobs.pause, workspace.jobs.resume):
        with pytest.raises(IllegalTransitionError, match="cancelled cannot be"):
            act(job)
    assert workspace.jobs.get(job) == before


def test_a_cancelled_job_publishes_nothing_even_if_it_was_done(workspace: Any, make_bundle: Any) -> None:
    job = workspace.create()["id"]
    made = running(workspace)
    workspace.jobs.cancel(job)
    with pytest.raises(FencedError):
        workspace.registry.publish(
            "digits", *make_bundle({"model.onnx": b"new"}), job=job, within=lambda c, _v: made.succeed_within(c, "done")
        )
    assert workspace.registry.versions("digits") == ["1"]


def test_a_job_whose_worker_dies_after_a_cancel_stays_cancelled(workspace: Any) -> None:
    job = workspace.create()["id"]
    made = running(workspace)
    workspace.jobs.cancel(job)
    assert workspace.jobs.lose(made.claim, why="its worker died", max_attempts=3) is None
    assert workspace.jobs.get(job)["status"] == "cancelled"


def test_the_job_with_the_highest_priority_is_next_and_of_two_the_older(workspace: Any) -> None:
    made = [workspace.create(priority=priority)["id"] for priority in (0, 5, -1, 5)]
    claims = [workspace.jobs.claim("me").job for _ in made]
    assert claims == [made[1], made[3], made[0], made[2]]


def test_a_job_of_low_priority_is_not_left_behind_by_urgent_ones_that_keep_coming(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "HEAD_START", 5)
    low = workspace.create(priority=0)["id"]
    claimed = []
    while low not in claimed:
        workspace.create(priority=1)
        claimed.append(workspace.jobs.claim("me").job)
        assert len(claimed) <= 5
    assert len(claimed) == 5


def test_the_seconds_that_a_job_was_worked_at_add_up_over_its_attempts(workspace: Any) -> None:
    job = workspace.create(max_seconds=60)["id"]
    first = running(workspace)
    first.heartbeat(2.0)
    first.release("asked to end")
    attempt(workspace).heartbeat(1.5)
    (lease,) = workspace.jobs.leases()
    assert (lease.spent, lease.max_seconds) == (3.5, 60.0)
    assert workspace.jobs.get(job)["progress"]["seconds"] == 3.5


def test_a_paused_job_waits_in_the_queue_until_it_is_resumed(workspace: Any) -> None:
    job = workspace.create()["id"]
    made = running(workspace)
    asked = workspace.jobs.pause(job)
    assert (asked["status"], asked["paused"]) == ("running", True)
    assert made.heartbeat() is True
    made.release("paused")
    held = workspace.jobs.get(job)
    assert (held["status"], held["paused"]) == ("queued", True)
    assert workspace.jobs.claim("me") is None
    assert not workspace.jobs.waiting()
    with pytest.raises(ConflictError, match="paused"):
        workspace.jobs.pause(job)
    assert workspace.jobs.resume(job)["paused"] is False
    with pytest.raises(ConflictError, match="resumed"):
        workspace.jobs.resume(job)
    assert workspace.jobs.claim("me") is not None


def test_a_job_that_is_paused_before_anybody_has_judged_its_data_is_told_as_queued(workspace: Any) -> None:
    job = workspace.create()["id"]
    held = workspace.jobs.pause(job)
    assert (held["status"], held["paused"]) == ("queued", True)
    assert messages(workspace, job)[-1] == "The job was paused."
    assert workspace.jobs.claim("me") is None
    assert workspace.jobs.resume(job)["status"] == "validating_files"


def test_a_file_is_kept_while_a_job_needs_it(workspace: Any) -> None:
    job = workspace.create()["id"]
    with pytest.raises(ConflictError):
        workspace.files.delete(workspace.file)
    workspace.jobs.cancel(job)
    workspace.files.delete(workspace.file)
    assert workspace.jobs.get(job)["training_file"] == workspace.file


def test_a_file_whose_time_is_over_is_kept_while_a_job_needs_it_and_gone_after(workspace: Any) -> None:
    stored = workspace.files.create(io.BytesIO(b"a,target\n1,0\n"), "short.csv", "fine-tune", seconds=3600)
    assert stored["expires_at"] == stored["created_at"] + 3600
    name = stored["id"]
    job = workspace.create(training_file=name)["id"]
    with workspace.registry.database.begin() as connection:
        connection.execute(update(files).where(files.c.id == name).values(expires_at=1))
    assert expire(workspace.registry.database) == 0
    assert workspace.files.get(name)["expires_at"] == 1
    assert attempt(workspace).assignment().training.filename == "short.csv"
    workspace.jobs.cancel(job)
    with pytest.raises(NotFoundError):
        workspace.files.get(name)
    assert [file["id"] for file in workspace.files.list().items] == [workspace.file]
    with pytest.raises(InvalidRequestError, match="there is no file"):
        workspace.create(training_file=name)
    assert expire(workspace.registry.database) == 1
    assert workspace.files.get(workspace.file)["expires_at"] is None


def test_a_version_is_kept_while_a_job_trains_from_it(workspace: Any, make_bundle: Any) -> None:
    workspace.registry.publish("digits", *make_bundle({"model.onnx": b"new"}))
    workspace.create()
    workspace.registry.promote("digits", "2", why="", who="test")
    with pytest.raises(ConflictError, match="trains from"):
        workspace.registry.delete("digits", "1")


def test_only_the_last_checkpoint_holds_bytes_and_an_ended_job_none(workspace: Any) -> None:
    job = workspace.create()["id"]
    made = running(workspace)
    assert made.last_checkpoint() is None
    made.checkpoint(workspace.registry.blobs.put(b"1"), step=10, metrics={"train_loss": 0.5})
    last = workspace.registry.blobs.put(b"2")
    made.checkpoint(last, step=20, metrics={"train_loss": 0.4})
    kept = made.last_checkpoint()
    assert kept is not None
    assert (kept.digest, kept.metrics) == (last.digest, {"train_loss": 0.4})
    page = workspace.jobs.checkpoints(job)
    assert [item["step_number"] for item in page.items] == [20, 10]
    assert page.items[0]["metrics"] == {"step": 20, "train_loss": 0.4}
    made.fail("diverged", "nan")
    with workspace.registry.database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(digest) FROM job_checkpoints").scalar() == 0


def test_lists_go_by_an_exclusive_cursor(workspace: Any) -> None:
    made = [workspace.create(metadata={"n": str(n % 2)})["id"] for n in range(5)]
    plain = workspace.create()["id"]
    seen, after, more = [], None, True
    while more:
        page, more = workspace.jobs.list(after=after, limit=2)
        seen += [item["id"] for item in page]
        after = seen[-1]
    assert seen == [plain, *made[::-1]]
    assert [item["id"] for item in workspace.jobs.list(metadata={"n": "1"}).items] == [made[3], made[1]]
    assert [item["id"] for item in workspace.jobs.list(without_metadata=True).items] == [plain]


def test_events_are_listed_newest_first_and_streamed_oldest_first(workspace: Any) -> None:
    job = workspace.create()["id"]
    made = running(workspace)
    made.progress("Step 1", {"loss": 1.0}, step=1, steps=2, seconds_left=5)
    page = workspace.jobs.events(job, limit=2)
    assert (page.items[0]["type"], page.items[0]["data"]) == ("metrics", {"loss": 1.0})
    assert page.has_more
    stream, ended = workspace.jobs.events_since(job, 0)
    assert [event["message"] for _, event in stream] == messages(workspace, job)
    assert not ended
    assert workspace.jobs.events_since(job, stream[-1][0]) == ([], False)
    assert workspace.jobs.get(job)["estimated_finish"] is not None


def test_an_unknown_job_is_not_found(workspace: Any) -> None:
    jobs = workspace.jobs
    for act in (jobs.get, jobs.cancel, jobs.pause, jobs.resume, jobs.events, jobs.checkpoints):
        with pytest.raises(NotFoundError):
            act("ftjob-none")
