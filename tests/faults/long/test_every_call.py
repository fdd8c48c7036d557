"""The loop of the n-th fault: publication and promotion with the first, second, … call of the system that keeps anything gone wrong.

After each: every version that is listed is whole, the live one is the old or the new one, and the history agrees.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry

CALLS = ("fsync", "fdatasync", "link", "linkat", "rename", "renameat", "unlink", "unlinkat", "ftruncate", "pwrite64", "write")
PUBLISH = """
import sys
from pathlib import Path
from app.cli.children import publish

publish(Path(sys.argv[1]), "digits", Path(sys.argv[2]))
"""
MOST = 100


class End(NamedTuple):
    status: int
    written: str
    struck: bool


class Sweep:
    """Runs a command on copies of one workspace, each time with a later call gone wrong."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.template = machine.scratch / "template"
        shutil.copytree(machine.folder, self.template)

    def runs(self, command: list[str], fault: str) -> Iterator[tuple[str, End]]:
        """Yield the ends of the runs, each with another call gone wrong; the last with none."""
        for call in CALLS:
            for number in range(1, MOST):
                end = self._run(command, f"inject={call}:{fault}:when={number}")
                if not end.struck:
                    break
                yield f"{call} {number}", end
            else:
                raise AssertionError(f"there was no end after {MOST} calls of {call}")
        yield "none", end

    def _run(self, command: list[str], inject: str) -> End:
        shutil.rmtree(self.machine.folder)
        shutil.copytree(self.template, self.machine.folder)
        log = self.machine.scratch / "calls"
        strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(CALLS)}", "-e", inject]
        environment = {**self.machine.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([*strace, sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        struck = done.returncode in {-9, 128 + 9} or "INJECTED" in log.read_text()
        return End(done.returncode, done.stdout + done.stderr, struck)


@pytest.fixture
def sweep(machine: Any) -> Sweep:
    return Sweep(machine)


@pytest.fixture
def bundle(machine: Any) -> Path:
    folder = machine.scratch / "bundle"
    assert machine.run("app.cli", "models", "export", "digits:2", "--out", str(folder))[0] == 0
    return folder


def state(folder: Path) -> tuple[list[str], str | None]:
    """Open the store as a restart does, and return the versions and the live one, all of them found whole."""
    engine = connect(folder)
    registry = Registry(engine, Blobs(folder / "blobs"))
    registry.blobs.sweep(older_than=0)
    assert not list((folder / "blobs" / "tmp").iterdir())
    versions, live = registry.versions("digits"), registry.live("digits")
    for version in versions:
        assert registry.files("digits", version).keys() == registry.manifest("digits", version).files.keys()
    assert live is not None
    onnxruntime.InferenceSession(registry.artifact("digits", live).model, providers=["CPUExecutionProvider"])
    assert registry.history("digits")[-1]["to"] == live
    engine.dispose()
    return versions, live


FAULTS = ("signal=SIGKILL", "error=EIO", "error=ENOSPC")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_promotion_that_is_cut_off_anywhere_has_happened_or_not(sweep: Sweep, fault: str) -> None:
    found = {}
    for where, end in sweep.runs(["-m", "app.cli", "models", "promote", "digits", "2"], fault):
        versions, live = state(sweep.machine.folder)
        assert versions == ["1", "2"], (where, end)
        assert live == "2" or end.status != 0, (where, end)
        assert "Traceback" not in end.written or where.startswith("write"), (where, end)
        found[where] = live
    assert set(found.values()) == {"1", "2"}
    assert found["none"] == "2"
    service = sweep.machine.serve(worker="none")
    assert service.infer()[0] == "2"
    service.stop()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_publication_that_is_cut_off_anywhere_leaves_a_whole_version_or_none(sweep: Sweep, bundle: Path, fault: str) -> None:
    found = {}
    for where, end in sweep.runs(["-c", PUBLISH, str(bundle), str(sweep.machine.folder)], fault):
        versions, live = state(sweep.machine.folder)
        assert live == "1", (where, end)
        assert versions == ["1", "2", "3"] or (versions == ["1", "2"] and end.status != 0), (where, end)
        found[where] = len(versions)
    assert set(found.values()) == {2, 3}
    assert found["none"] == 3
    service = sweep.machine.serve(worker="none")
    assert service.infer("3")[0] == "3"
    service.stop()
