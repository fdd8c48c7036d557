"""Writes the workspace of a release as text: `python tests/app/db/releases/make.py FOLDER`, in a checkout of that release.

`0001` was made at commit ae918a3, whose databases know nothing of revisions.
"""

import io
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from app.db import connect
from app.jobs.admissions import Admissions, succeed
from app.jobs.attempt import Attempt
from app.jobs.request import parse
from app.jobs.store import Jobs
from app.registry.blobs import Blobs
from app.registry.files import Files
from app.registry.registry import Registry
from export.bundle import Lipschitz, Manifest, Signature, Tensor, Training, digest


def bundle(number: int) -> tuple[Manifest, dict[str, bytes]]:
    content = {"model.onnx": f"graph {number}".encode(), "checkpoint.safetensors": b"weights", "architecture.json": b"{}"}
    signature = Signature(
        inputs=(Tensor(name="input", datatype="FP32", shape=(-1, 2)),), outputs=(Tensor(name="logits", datatype="FP32", shape=(-1, 2)),)
    )
    return (
        Manifest(
            signature=signature,
            lipschitz=Lipschitz(bound=1.0, rigorous=True, method="product"),
            gradient_mode="full",
            training=Training(data_digest="0" * 64, hyperparameters={"n_epochs": 3}, metrics={"accuracy": 0.9 + number / 100}, seed=number),
            origin="specnorm",
            files={name: digest(value) for name, value in content.items()},
        ),
        content,
    )


def fill(workspace: Path) -> None:
    database = connect(workspace)
    registry = Registry(database, Blobs(workspace / "blobs"))
    files, jobs, admissions = Files(database, registry.blobs, max_bytes=1000), Jobs(database), Admissions(database)
    for number in (1, 2):
        registry.publish("digits", *bundle(number), parent=None if number == 1 else "1")
        registry.promote("digits", str(number), why="better", who="anna")
    registry.publish("wine", *bundle(7))
    data = files.create(io.BytesIO(b"a,b,target\n1,2,0\n"), "data.csv", "fine-tune", key="upload")["id"]
    gone = files.create(io.BytesIO(b"a,b,target\n"), "gone.csv", "fine-tune")["id"]
    files.delete(gone)
    asked = {"model": "digits", "training_file": data}
    done = jobs.create(parse({**asked, "metadata": {"team": "red"}}), key="job")["id"]
    claim = jobs.claim("owner")
    assert claim is not None
    assert claim.job == done
    attempt = Attempt(database, claim)
    attempt.accept("The data are good.")
    attempt.start("Training begins.")
    attempt.progress("Step 1.", {"loss": 0.5}, step=1, steps=2, seconds_left=1.0)
    attempt.checkpoint(registry.blobs.put(b"a checkpoint"), step=1, metrics={"loss": 0.5})
    registry.publish(
        "digits",
        *bundle(3),
        job=done,
        parent="digits:2",
        within=lambda connection, version: attempt.succeed_within(connection, "Done.", fine_tuned_model=f"digits:{version}"),
    )
    registry.promote("digits", "3", why="better", who=done)
    registry.rollback("digits", who="bela")
    jobs.cancel(jobs.create(parse(asked))["id"])
    jobs.pause(jobs.create(parse(asked))["id"])
    jobs.create(parse(asked))
    taken = admissions.create("wine", {"model.onnx": registry.blobs.put(b"from elsewhere")})["id"]
    assert admissions.claim("judge") is not None
    registry.publish("wine", *bundle(8), within=lambda connection, version: succeed(connection, taken, version))
    database.dispose()


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        fill(workspace)
        shutil.copytree(workspace / "blobs" / "sha256", out / "blobs" / "sha256")
        with sqlite3.connect(workspace / "specnorm.db") as raw:
            (out / "specnorm.sql").write_text("\n".join(raw.iterdump()) + "\n")
        raw.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
