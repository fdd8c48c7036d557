"""`specnorm bench` against a real service."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.workspace import registry
from export import bundle

COMMAND = [sys.executable, "-m", "app.cli"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("SPECNORM_")} | {"COLUMNS": "200"}


@pytest.fixture
def url(tmp_path: Path, models: Any) -> Iterator[str]:
    stored = registry(tmp_path / "workspace")
    for name, artifact in (("affine", models.affine()), ("flags", models.identity("BOOL", 3, bound=None))):
        stored.promote(name, stored.publish(name, artifact.manifest, {bundle.MODEL: artifact.model}), why="test", who="test")
    stored.database.dispose()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [*COMMAND, "serve", "--port", str(port), "--worker", "none"]
    with subprocess.Popen(serve, cwd=tmp_path, env=CLEAN, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while "Ctrl-C" not in child.stdout.readline():
            assert child.poll() is None
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
        child.terminate()


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, "bench", "--seconds", "0.2", "--rows", "2", "--connections", "1,3", *arguments]
    return subprocess.run(words, cwd=tmp_path, env=CLEAN, capture_output=True, text=True, check=False)


def test_every_case_is_measured_beside_the_limit_in_process_and_plotted(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--url", url, "--model", "affine", "--json", "--plot", "plot.svg")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["data"], row["connections"]) for row in rows] == [("binary", 1), ("binary", 3), ("JSON", 1), ("JSON", 3)]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["rows_per_s"] == pytest.approx(2 * row["requests_per_s"], abs=0.2)
        assert row["in_process_rows_per_s"] > 0
    assert "in process" in (tmp_path / "plot.svg").read_text()
    told = run(tmp_path, "--url", url, "--model", "affine", "--binary", "--workspace", "elsewhere")
    assert told.returncode == 0
    assert "connections" in told.stdout


def test_a_model_without_rows_is_measured_once_for_each_kind_of_data(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--url", url, "--model", "flags", "--json", "--rows", "2,64", "--connections", "1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["data"], row["rows"]) for row in rows] == [("binary", 1), ("JSON", 1)]
    assert all(row["rows_per_s"] == row["requests_per_s"] for row in rows)


def test_what_cannot_be_measured_is_a_sentence(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--url", url, "--model", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no model" in done.stderr
    assert run(tmp_path, "--url", url, "--model", "affine", "--rows", "x").returncode == 2
