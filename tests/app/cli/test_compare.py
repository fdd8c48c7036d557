import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

COMMAND = [sys.executable, "-m", "app.cli", "compare"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}


def test_bad_usage_is_one_sentence_and_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"specnorm compare: .+\n", done.stderr)


def test_ctrl_c_keeps_what_was_measured_and_shows_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(60, 4)), y=np.arange(60) % 3)
    arguments = ["--data", "data.npz", "--arch", "mlp-small", "--seeds", "1000", "--epochs", "2", "--points", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        file = tmp_path / "comparison-1" / "compare.json"
        end = time.monotonic() + 60
        while not file.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the command and its child both get it
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped; what was measured until then: comparison-1/compare.json" in err
    assert "held-out accuracy" in out
    found = json.loads(file.read_text())
    assert found["stopped"]
    assert found["runs"][0]["result"] is not None
    assert len(found["runs"]) < 2000
