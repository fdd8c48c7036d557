"""A full disk under the workspace: what does not fit is refused with a sentence, the live version serves on, room alone heals it."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest


class Disk:
    """A small file system that holds the workspace, and a file that takes what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leaving: int = 0) -> None:
        """Take all room but ``leaving`` bytes."""
        with self._ballast.open("ab") as stream, contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 12):
                while self.free() - leaving >= size:
                    stream.write(bytes(size))
                    stream.flush()

    def free(self) -> int:
        """Return how many bytes are left."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def empty(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


@pytest.fixture
def disk(machine: Any) -> Iterator[Disk]:
    """Put the workspace on a disk of 12 MB."""
    kept = machine.folder.with_name("kept")
    machine.folder.rename(kept)
    machine.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(machine.folder)], check=True)
    shutil.copytree(kept, machine.folder, dirs_exist_ok=True)
    yield Disk(machine.folder)
    machine.end()
    subprocess.run(["umount", str(machine.folder)], check=True)


def test_an_upload_that_does_not_fit_is_refused_and_one_after_it_is_taken(machine: Any, disk: Disk) -> None:
    service = machine.serve(worker="none")
    before = service.infer()
    disk.fill(leaving=4 << 20)
    left = disk.free()
    with pytest.raises(openai.InternalServerError) as refused:
        service.upload(os.urandom(8 << 20))
    assert refused.value.status_code == 507
    assert "disk is full" in str(refused.value)
    assert disk.free() >= left - (1 << 16)
    assert not list(service.openai.files.list())
    assert service.infer() == before
    disk.empty()
    service.upload(machine.data)
    service.stop()
    machine.examined()


def test_an_upload_that_finds_no_room_while_it_comes_in_is_refused_in_the_same_words(machine: Any, disk: Disk) -> None:
    """What comes in is kept in the folder for temporary files first, which may be another disk."""
    service = machine.serve(worker="none", environment={"TMPDIR": str(machine.folder)})
    disk.fill(leaving=2 << 20)
    with pytest.raises(openai.InternalServerError) as refused:
        service.upload(os.urandom(8 << 20))
    assert refused.value.status_code == 507
    assert "disk is full" in str(refused.value)
    assert service.infer()[0] == "1"
    disk.empty()
    service.upload(machine.data)
    service.stop()
    machine.examined()


def test_with_no_room_for_a_row_nothing_is_half_done_and_all_is_well_with_room_again(machine: Any, disk: Disk) -> None:
    service = machine.serve(worker="none")
    file = service.upload(machine.data)
    answers = {version: service.infer(version) for version in ("1", "2")}
    disk.fill()
    with pytest.raises(openai.InternalServerError) as refused:
        list(map(service.create, [file] * 200))  # the log of the database has room for some
    assert refused.value.status_code == 507
    promoted = service.http.post("/admin/models/digits/promote", json={"version": "2"})
    assert promoted.status_code == 507
    assert "disk is full" in promoted.json()["error"]
    assert service.live() == "1"
    assert service.infer() == answers["1"]
    assert service.http.get("/v2/health/ready").status_code == 200
    disk.empty()
    assert service.http.post("/admin/models/digits/promote", json={"version": "2"}).status_code == 200
    assert service.infer() == answers["2"]
    service.stop()
    machine.examined()


PLACES = {
    "checkpoint": ("app.registry.shelf:Shelf.put", 4),
    "export": ("app.worker.tune:export_bundle", 1),
    "publish": ("app.registry.registry:Registry.publish", 1),
}


@pytest.mark.parametrize("where", PLACES)
def test_a_job_that_finds_the_disk_full_waits_or_fails_with_a_sentence(
    machine: Any, disk: Disk, uninterrupted: Any, until: Any, where: str
) -> None:
    fault = machine.fault("app.worker", PLACES[where][0], "STOP", call=PLACES[where][1])
    service = machine.serve(fault, lease_seconds="8")
    before, file = service.infer(), service.upload(machine.data)
    job = service.create(file)
    worker = until(lambda: machine.struck(fault), "the worker is at the place")
    disk.fill()
    os.kill(worker, signal.SIGCONT)
    until(lambda: worker not in machine.workers(), "the worker has ended")
    assert service.infer() == before
    assert service.http.get("/v2/health/live").status_code == 200
    assert list(service.versions()) == ["1", "2"]
    disk.empty()
    end = service.ended(job)
    if end.status == "failed":
        assert end.error.code == "storage_full"
        assert "disk is full" in end.error.message
        job = service.create(file)
    service.succeeded(job)
    machine.whole(service, uninterrupted)
