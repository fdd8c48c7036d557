"""What can be wrong with a job's data or training: each ends as `failed`, and says what, where and what to try; the live version stays."""

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from app.jobs.dispatch import Dispatcher
from app.jobs.launcher import Local

HEAD = "p," * 64 + "target\n"


def csv(*rows: tuple[str, str]) -> bytes:
    """Return 64 times the first text, and the second as the target, of every row."""
    return (HEAD + "".join(f"{value}," * 64 + f"{target}\n" for value, target in rows)).encode()


def npz(x: Any, y: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=x, y=y)
    return stream.getvalue()


def columns(**values: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(values), stream)
    return stream.getvalue()


PIXELS = np.random.default_rng(0).uniform(0, 16, (8, 64)).astype(np.float32)
LABELS = np.arange(8) % 4
SPOILED = np.where(np.arange(8)[:, None] == 5, np.nan, PIXELS)

BAD_DATA = {
    "empty csv": ("rows.csv", b"", "line 1: expected a header"),
    "header alone": ("rows.csv", HEAD.encode(), "holds no rows: at least two are needed"),
    "empty jsonl": ("rows.jsonl", b"\n\n", "holds no rows: at least two are needed"),
    "one row": ("rows.csv", csv(("1", "3")), "has one row: at least two are needed"),
    "one class": ("rows.csv", csv(("1", "3"), ("2", "3")), "all 2 rows have the class 3: add rows of others"),
    "one input": ("rows.csv", csv(("1", "3"), ("1", "4")), "all 2 rows have the same input but not the same target: check how"),
    "label too large": (
        "rows.csv",
        b"\n".join(csv(("1", "9"), ("2", "10")).split(b"\n", 1)),
        "line 3: .*labels from 0 to 9, got 10",
    ),
    "empty lines count": ("rows.csv", csv(("1", "9"), ("2", "10")).replace(b"target\n", b"target\n\n"), "line 4: .*got 10"),
    "label negative": ("rows.csv", csv(("1", "0"), ("2", "-1")), "line 3: a class label must be an integer from 0, got -1"),
    "label not whole": ("rows.csv", csv(("1", "1"), ("2", "0.5")), "line 3: .*expects class labels, got the target 0.5: use the loss"),
    "wrong width": ("rows.csv", b"a,b,target\n1,2,0\n3,4,1\n", r"takes inputs of shape \[64\], the data set has \[2\]: give 64 numbers"),
    "uneven rows": (
        "rows.jsonl",
        b'{"input": [1, 2], "target": 0}\n{"input": [1], "target": 1}\n',
        r"line 2: .*shape \(1,\), those before",
    ),
    "NaN in csv": ("rows.csv", csv(("1", "1"), ("nan", "2")), "line 3: a value is NaN"),
    "NaN in jsonl": ("rows.jsonl", b'{"input": [NaN], "target": 0}\n', "line 1: not valid JSON"),
    "NaN in npz": ("rows.npz", npz(SPOILED, LABELS), "row 6: a value is NaN"),
    "NaN in parquet": ("rows.parquet", columns(input=list(SPOILED), target=LABELS), "row 6: a value is NaN"),
    "no number": ("rows.csv", csv(("1", "1"), ("x", "2")), "line 3: could not convert"),
    "no JSON": ("rows.jsonl", b'{"input": [1], "target": 0}\n\nnonsense\n', "line 3: not valid JSON"),
    "no archive": ("rows.npz", b"no archive", "not an NPZ file"),
    "pickle": (
        "rows.npz",
        npz(np.array([{}, {}], object), LABELS[:2]),
        "not an NPZ file of plain numeric arrays .object arrays are never read",
    ),
    "no parquet": ("rows.parquet", b"PAR1 or not", "not a Parquet file"),
    "missing in parquet": ("rows.parquet", columns(input=[[1.0], None], target=[0, 1]), "row 2: expected lists of equal length"),
    "text in parquet": (
        "rows.parquet",
        columns(input=[[1.0], [2.0]], target=["a", "b"]),
        "expected numbers in the column 'target'",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_learned_fail_the_job_and_it_says_what_and_where(workspace: Any, case: str) -> None:
    name, content, told = BAD_DATA[case]
    job = workspace.create(workspace.files.create(io.BytesIO(content), name, "fine-tune")["id"])
    assert workspace.work() == 0
    end = workspace.jobs.get(job)
    assert (end["status"], end["error"]["code"], end["error"]["param"]) == ("failed", "bad_data", "training_file"), end["error"]
    assert re.match(f"{name}: (the data set |the model )?{told}", end["error"]["message"]), end["error"]["message"]
    event = workspace.jobs.events(job).items[0]
    assert (event["level"], event["message"]) == ("error", f"The job failed (bad_data): {end['error']['message']}")
    assert (workspace.registry.live("digits"), workspace.registry.versions("digits")) == ("1", ["1"])


LOST_STEP = r"after step \d+ of \d+: try a learning_rate below"
DIVERGES = {
    "sgd with a huge step": (
        {"learning_rate": 1e30, "optimizer": "sgd"},
        f"(layer '.*' is not finite|sigma of layer '.*' has grown) {LOST_STEP}",
    ),
    "adam with a huge step": ({"learning_rate": 1e12}, f"sigma of layer '.*' has grown to .* {LOST_STEP}"),
    "sigma explodes while the loss is finite": ({"learning_rate": 1e8}, f"sigma of layer '.*' has grown to .* {LOST_STEP} 1e.08"),
}


@pytest.mark.parametrize("case", DIVERGES)
def test_training_that_diverges_fails_the_job_and_it_says_where_and_what_to_try(workspace: Any, case: str) -> None:
    options, told = DIVERGES[case]
    job = workspace.create(workspace.upload(slice(0, 128)), hyperparameters={"n_epochs": 20, **options})
    assert workspace.work() == 0
    end = workspace.jobs.get(job)
    assert (end["status"], end["error"]["code"]) == ("failed", "diverged"), end["error"]
    assert end["error"]["param"] == "method.supervised.hyperparameters.learning_rate"
    assert re.search(told, end["error"]["message"]), end["error"]["message"]
    assert (workspace.registry.live("digits"), workspace.registry.versions("digits")) == ("1", ["1"])


def test_good_parquet_files_of_both_forms_are_the_data_set_that_the_other_formats_are(workspace: Any) -> None:
    forms = {
        "lists.parquet": columns(input=list(PIXELS), target=LABELS),
        "columns.parquet": columns(**{f"p{n}": PIXELS[:, n] for n in range(64)}, target=LABELS),
        "rows.npz": npz(PIXELS, LABELS),
    }
    found = set()
    for name, content in forms.items():
        file = workspace.files.create(io.BytesIO(content), name, "fine-tune")["id"]
        job = workspace.create(file, hyperparameters={"n_epochs": 1})
        workspace.work()
        assert workspace.jobs.get(job)["error"] is None, workspace.jobs.get(job)["error"]
        version = workspace.jobs.get(job)["result"]["version"]
        found.add(workspace.registry.manifest("digits", version).training.data_digest)
    assert len(found) == 1


def test_the_real_worker_process_tells_bad_data_and_ends_well(workspace: Any) -> None:
    job = workspace.create(workspace.text(HEAD, "rows.csv"))
    code = "import sys, app.worker.__main__ as w; w.yield_to_others = lambda: None; sys.exit(w.main())"
    started: list[Any] = []
    local = Local(workspace.settings, command=[sys.executable, "-c", code])
    start: Callable[..., Any] = local.start
    local.start = lambda claim: started.append(start(claim)) or started[-1]  # type: ignore[method-assign]  # to see how it ends
    dispatcher = Dispatcher(workspace.jobs, local, workspace.settings)
    while workspace.jobs.get(job)["status"] != "failed":
        dispatcher.turn()
    while started[0].poll() is None:
        pass
    assert started[0].poll() == 0
    dispatcher.close()
    assert workspace.jobs.get(job)["error"]["code"] == "bad_data"
