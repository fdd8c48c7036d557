import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import example, root
from app.cli.workspace import registry
from app.settings import Settings
from export import bundle

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = [sys.executable, "-m", "app.cli"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command in an empty folder, without settings from outside."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SPECNORM_")}
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**clean, "COLUMNS": "200", **environment},
            check=False,
        )

    return call


@pytest.fixture
def workspace(tmp_path: Path, models: Any) -> Path:
    folder = tmp_path / "ws"
    stored = registry(folder)
    for scale in (1.0, 2.0):
        artifact = models.affine(scale)
        stored.publish("affine", artifact.manifest, {bundle.MODEL: artifact.model})
    stored.promote("affine", "1", why="test", who="test")
    return folder


@contextmanager
def serving(workspace: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start the service on a free port and yield it with the lines that it printed."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--workspace", str(workspace), "--port", "0", "--worker", "none", *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                break
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_a_bare_onnx_file_is_judged_and_published_and_a_hostile_one_is_not(run: Run, workspace: Path, models: Any) -> None:
    for file in ("bare.onnx", "no name.onnx"):
        (workspace.parent / file).write_bytes(models.honest(2.0).model)
    done = run("models", "import", "bare.onnx", "--workspace", str(workspace))
    assert (done.returncode, done.stderr) == (0, "bare:1 is published and live\n")
    done = run("models", "import", "no name.onnx", "--workspace", str(workspace))
    assert (done.returncode, "'no name' is no model name" in done.stderr) == (1, True)
    stored = registry(workspace).manifest("bare", "1")
    assert stored.origin == "import"
    assert stored.lipschitz.bound is not None
    assert 2 <= stored.lipschitz.bound < 2.001
    (workspace.parent / "loop.onnx").write_bytes(models.loop().model)
    done = run("models", "import", "loop.onnx", "--name", "loop", "--workspace", str(workspace))
    assert done.returncode == 1
    assert (
        done.stderr
        == "specnorm: loop.onnx is not admitted: operator 'Loop' repeats a graph, so that a run might never end: it is not served\n"
    )
    assert "loop" not in registry(workspace).models()


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["serve", "--nothing"], ["serve", "--port", "99999"], ["models", "show"], ["train"],
     ["keys", "create", "--scope", "root", "--file", "k"], ["jobs", "submit", "--model", "m"]],
)  # fmt: skip
def test_bad_usage_is_one_sentence_on_stderr_and_exit_code_2(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"specnorm: .+\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["models", "list", "--workspace", "nowhere"], {}),
        (["jobs", "list", "--url", "http://127.0.0.1:1"], {}),
        (["jobs", "list", "--url", "nonsense"], {}),
        (["keys", "list", "--file", "nowhere.json"], {}),
        (["settings"], {"SPECNORM_PORT": "many"}),
        (["serve", "--host", "0.0.0.0"], {}),
        (["serve", "--host", "192.0.2.1"], {"SPECNORM_TRUST_PUBLISHED_LOOPBACK": "1"}),
        (["serve", "--worker", "elsewhere"], {}),
    ],
)
def test_a_failure_is_one_sentence_on_stderr_and_exit_code_1(run: Run, arguments: list[str], environment: dict[str, str]) -> None:
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"specnorm: .+\n", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["serve", "worker", "doctor", "train", "models", "jobs", "keys", "settings", "models import", "jobs submit"]
)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(root, [*command.split(), "--help"], prog_name="specnorm")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: specnorm {command} ")


def test_settings_are_each_printed_with_value_default_and_meaning(run: Run) -> None:
    rows = json.loads(run("settings", "--json", SPECNORM_PORT="9000").stdout)
    assert {row["variable"] for row in rows} == {f"SPECNORM_{name.upper()}" for name in Settings.model_fields}
    port = next(row for row in rows if row["variable"] == "SPECNORM_PORT")
    assert (port["value"], port["default"]) == (9000, 8000)
    assert all(row["meaning"] for row in rows)


def test_a_key_is_printed_once_and_listed_without_its_secret(run: Run) -> None:
    secret = run("keys", "create", "--scope", "infer", "--scope", "admin", "--file", "keys.json").stdout.strip()
    assert secret.startswith("sn-")
    listed = run("keys", "list", "--json", SPECNORM_API_KEYS_FILE="keys.json").stdout
    assert secret not in listed
    assert json.loads(listed)[0]["scopes"] == ["admin", "infer"]


def test_versions_are_listed_promoted_and_rolled_back_in_a_workspace(run: Run, workspace: Path) -> None:
    at = ("--workspace", str(workspace))
    assert json.loads(run("models", "list", "--json", *at).stdout) == [{"name": "affine", "live_version": "1", "versions": ["1", "2"]}]
    assert [row["version"] for row in json.loads(run("models", "show", "affine", "--json", *at).stdout)] == ["1", "2"]
    assert run("models", "promote", "affine", "2", *at).stdout == "affine:2 is live; before it was 1\n"
    assert run("models", "rollback", "affine", *at).stdout == "affine:1 is live again; before it was 2\n"
    assert "affine" in run("models", "list", *at).stdout


def test_an_unknown_version_is_refused(run: Run, workspace: Path) -> None:
    done = run("models", "promote", "affine", "9", "--workspace", str(workspace))
    assert done.returncode == 1
    assert "9" in done.stderr


def test_an_exported_bundle_is_whole(run: Run, workspace: Path, tmp_path: Path) -> None:
    done = run("models", "export", "affine:2", "--out", "bundle", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    manifest, files = bundle.read(tmp_path / "bundle")
    assert bundle.digest(files[bundle.MODEL]) == manifest.model_digest
    again = run("models", "export", "affine", "--out", "bundle", "--workspace", str(workspace))
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_a_bundle_is_imported_only_if_its_bytes_prove_its_manifest(run: Run, workspace: Path, models: Any, tmp_path: Path) -> None:
    for name, scale in (("foreign.a", 0.5), ("boastful", 2.0)):
        artifact = models.honest(scale, bound=1.0)
        bundle.write(tmp_path / name, artifact.manifest, {bundle.MODEL: artifact.model})
    done = run("models", "import", "foreign.a", "--workspace", str(workspace))
    assert (done.returncode, "foreign.a:1 is published and live" in done.stderr) == (0, True)
    done = run("models", "import", "boastful", "--name", "foreign.a", "--workspace", str(workspace))
    assert done.returncode == 1
    assert re.fullmatch("specnorm: the manifest promises a Lipschitz bound of 1.0, .+\n", done.stderr)
    junk = models.affine().manifest.model_copy(update={"files": {bundle.MODEL: bundle.digest(b"junk")}})
    bundle.write(tmp_path / "junk", junk, {bundle.MODEL: b"junk"})
    done = run("models", "import", "junk", "--name", "foreign.a", "--workspace", str(workspace))
    assert (done.returncode, done.stderr) == (1, "specnorm: the file is no ONNX model\n")
    assert registry(workspace).versions("foreign.a") == ["1"]


def test_verify_proves_every_promise_again_and_finds_a_changed_byte(run: Run, tmp_path: Path, models: Any) -> None:
    workspace = tmp_path / "ws"
    stored = registry(workspace)

    def problems(code: int) -> list[str | None]:
        done = run("models", "verify", "--json", "--workspace", str(workspace))
        assert done.returncode == code, done.stderr
        return [row["problem"] for row in json.loads(done.stdout)]

    for scale in (1.0, 2.0):
        artifact = models.honest(scale)
        stored.publish("honest", artifact.manifest, {bundle.MODEL: artifact.model})
    assert problems(0) == [None, None]
    boastful, false = models.honest(2.0, bound=1.0), models.affine()
    for artifact in (boastful, false):
        stored.publish("lying", artifact.manifest, {bundle.MODEL: artifact.model})
    blob = workspace / "blobs" / "sha256" / models.honest(1.0).manifest.model_digest
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x00")
    first, second, third, fourth = problems(1)
    assert "model.onnx of honest:1 cannot be read" in (first or "")
    assert second is None
    assert "the manifest promises a Lipschitz bound of 1.0, the bytes prove 2.0" in (third or "")
    assert fourth is not None


def test_doctor_checks_what_serving_needs(run: Run) -> None:
    done = run("doctor", "--json", SPECNORM_PORT="0")
    assert done.returncode == 0, done.stdout
    assert all(row["ok"] for row in json.loads(done.stdout))
    assert run("doctor", SPECNORM_HOST="0.0.0.0").returncode == 1


def test_serve_prints_a_line_that_works_as_pasted_and_ends_with_0_when_asked(workspace: Path) -> None:
    with serving(workspace) as (process, lines):
        url = next(re.search(r"http://\S+", line) for line in lines if "Serving" in line)
        assert url is not None
        with urllib.request.urlopen(url[0] + "/") as page:
            assert page.status == 200
        line = next(line for line in lines if line.startswith("curl "))
        words = shlex.split(line)
        request = urllib.request.Request(words[2], words[4].encode())
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["model_version"] == "1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_a_workspace_without_models_is_given_the_demo_bundle_once(tmp_path: Path, models: Any, run: Run, name: str) -> None:
    artifact = models.affine()
    bundle.write(tmp_path / "demo", artifact.manifest, {bundle.MODEL: artifact.model})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECNORM_DEMO_BUNDLE", str(tmp_path / "demo"))
        patch.setenv("SPECNORM_DEMO_NAME", "" if name == "digits" else name)
        for _ in range(2):
            with serving(tmp_path / "ws") as (_, lines):
                assert f"Serving {name} at" in lines[0]
    listed = json.loads(run("models", "list", "--json", "--workspace", str(tmp_path / "ws")).stdout)
    assert listed == [{"name": name, "live_version": "1", "versions": ["1"]}]


def test_commands_talk_to_a_running_service(run: Run, workspace: Path, tmp_path: Path) -> None:
    _, secret = [run("keys", "create", "--scope", scope, "--file", "keys.json").stdout.strip() for scope in ("infer", "admin")]
    environment = {**os.environ, "SPECNORM_API_KEYS_FILE": str(tmp_path / "keys.json")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECNORM_API_KEYS_FILE", environment["SPECNORM_API_KEYS_FILE"])
        with serving(workspace) as (_, lines):
            url = re.search(r"http://\S+", lines[0])
            assert url is not None
            assert "$SPECNORM_API_KEY" in "".join(lines)
            given = {"SPECNORM_URL": url[0], "SPECNORM_API_KEY": secret}
            assert json.loads(run("models", "list", "--json", **given).stdout)[0]["live_version"] == "1"
            assert run("models", "promote", "affine", "2", **given).stdout == "affine:2 is live; before it was 1\n"
            assert "version" in run("models", "show", "affine", **given).stdout
            refused = run("models", "list", SPECNORM_URL=url[0])
            assert (refused.returncode, "401" in refused.stderr) == (1, True)


def test_a_private_job_is_asked_for_by_flags(run: Run, workspace: Path, models: Any, tmp_path: Path) -> None:
    artifact = models.affine(1.0)
    files = {bundle.MODEL: artifact.model, "architecture.json": b"{}", "checkpoint.safetensors": b""}  # no worker will look at them
    manifest = artifact.manifest.model_copy(update={"files": {name: bundle.digest(content) for name, content in files.items()}})
    registry(workspace).publish("trainable", manifest, files)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": [1, 2, 3], "target": 0}\n')
    private = ["--max-grad-norm", "2", "--target-epsilon", "3", "--delta", "1e-5"]
    with serving(workspace) as (_, lines):
        url = re.search(r"http://\S+", lines[0])
        assert url is not None
        submit = ["jobs", "submit", "--model", "trainable:1", "--data", str(rows), "--validation", str(rows), "--url", url[0]]
        done = run(*submit, *private, "--validation-is-public")
        assert done.returncode == 0, done.stderr
        job = json.loads(run("jobs", "show", done.stdout.strip(), "--url", url[0]).stdout)
        asked = job["hyperparameters"]["privacy"]
        assert (asked["max_grad_norm"], asked["target_epsilon"], asked["delta"], asked["validation_is_public"]) == (2.0, 3.0, 1e-5, True)
        assert job["validation_file"] not in {None, job["training_file"]}
        for flags, sentence in ((private, "validation_is_public"), (["--delta", "1e-5"], "max_grad_norm")):
            refused = run(*submit, *flags)
            assert (refused.returncode, sentence in refused.stderr) == (1, True), refused.stderr
        assert run(*submit, "--validation-is-public").returncode == 2


def test_the_example_is_one_row_that_the_signature_takes(models: Any) -> None:
    body = json.loads(example.request(models.affine(width=64).manifest) or "")
    assert body["inputs"][0]["shape"] == [1, 64]
    assert body["inputs"][0]["data"][:8] == [0, 0, 5, 13, 9, 1, 0, 0]
    assert example.request(models.two_inputs().manifest) is None


def test_a_worker_shows_in_a_file_that_it_turns_until_it_is_stopped(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    command = [*COMMAND, "worker", "--workspace", str(tmp_path / "w"), "--alive", str(alive)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        child.stderr.readline()
        for _ in range(2):  # it is made anew where it is taken away
            deadline = time.monotonic() + 30
            while not alive.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            alive.unlink()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
