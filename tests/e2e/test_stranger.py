"""What a stranger does, from outside: serve, infer with stock clients, read sigma, fine-tune, promote under traffic, roll back, export."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import openai
import pytest
import tritonclient.http as triton
from sklearn.datasets import load_digits

SPECNORM = str(Path(sys.executable).with_name("specnorm"))
ENDED = {"succeeded", "failed", "cancelled"}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


class Service(str):
    """The address, and where the service keeps its state."""

    def __new__(cls, address, workspace):
        made = super().__new__(cls, address)
        made.workspace = workspace
        return made


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The service as `make serve` starts it, demo training included, on a free port."""
    workspace = tmp_path_factory.mktemp("stranger")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [SPECNORM, "serve", "--demo", "--workspace", str(workspace / "w"), "--port", str(port)]
    with (workspace / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=workspace, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/v2/health/ready").status_code == 200:
                break
        assert process.poll() is None, (workspace / "log").read_text()
        time.sleep(0.1)
    yield Service(address, workspace / "w")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 0, (workspace / "log").read_text()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        pytest.fail("the service left a child behind")
    text = (workspace / "log").read_text()
    assert "Traceback" not in text, text


def rows_of(digits, count):
    return digits.data[:count].astype(np.float32)


def finished(client, job, seconds=120):
    for _ in range(seconds * 5):
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in ENDED:
            return job
        time.sleep(0.2)
    raise AssertionError(job)


def test_json_rows_give_logits_a_radius_and_the_bound(url, digits):
    x = rows_of(digits, 50)
    body = {"inputs": [{"name": "input", "shape": [50, 64], "datatype": "FP32", "data": x.ravel().tolist()}]}
    answer = httpx.post(f"{url}/v2/models/digits/infer", json=body).json()
    outputs = {output["name"]: np.reshape(output["data"], output["shape"]) for output in answer["outputs"]}
    assert (outputs["logits"].argmax(axis=1) == digits.target[:50]).mean() > 0.9
    assert (outputs["certified_radius"] > 0).mean() > 0.9
    assert 0 < answer["parameters"]["lipschitz_bound"] <= 0.125
    assert len(answer["parameters"]["model_digest"]) == 64


def test_the_stock_triton_client_sends_binary_tensors_and_reads_them(url, digits):
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_model_ready("digits")
        tensor = triton.InferInput("input", [20, 64], "FP32")
        tensor.set_data_from_numpy(rows_of(digits, 20), binary_data=True)
        wanted = [triton.InferRequestedOutput("logits", binary_data=True)]
        answer = client.infer("digits", [tensor], outputs=wanted)
        plain = triton.InferInput("input", [20, 64], "FP32")
        plain.set_data_from_numpy(rows_of(digits, 20), binary_data=False)
        by_json = client.infer("digits", [plain], outputs=[triton.InferRequestedOutput("logits", binary_data=False)])
        assert answer.as_numpy("logits").tobytes() == by_json.as_numpy("logits").tobytes()
        assert answer.as_numpy("certified_radius") is None
        with pytest.raises(triton.InferenceServerException, match="nobody"):
            client.infer("nobody", [tensor])


def test_sigma_is_reported_per_layer(url):
    report = httpx.get(f"{url}/admin/models/digits/sigma").json()
    assert set(report) == {"model", "version", "gradient_mode", "layers", "lipschitz"}
    assert [layer["name"] for layer in report["layers"]] == ["0", "2", "4"]
    for layer in report["layers"]:
        assert layer["sigma_estimate"] <= layer["sigma_upper"] <= layer["sigma_estimate"] * 1.001
        assert layer["folded_sigma_upper"] <= layer["target"] == 1.0
    assert report["lipschitz"]["rigorous"] is True


@pytest.mark.parametrize("mode", ["full", "simplified"])
def test_a_fine_tune_becomes_a_version_that_goes_live_and_back_without_a_failed_request(url, digits, mode):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    text = "\n".join(json.dumps({"input": x.tolist(), "target": int(y)}) for x, y in zip(digits.data, digits.target, strict=True))
    file = client.files.create(file=("digits.jsonl", io.BytesIO(text.encode())), purpose="fine-tune")
    hyperparameters = {"n_epochs": 2, "gradient_mode": mode}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    job = finished(client, client.fine_tuning.jobs.create(model="digits", training_file=file.id, method=method))
    assert job.status == "succeeded", job.error
    name, _, version = job.fine_tuned_model.rpartition(":")
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert any(event.type == "metrics" and "loss" in event.data for event in events)
    assert version in httpx.get(f"{url}/v2/models/digits").json()["versions"]
    assert httpx.get(f"{url}/admin/models/digits/sigma?version={version}").json()["gradient_mode"] == mode
    before = next(model["live_version"] for model in httpx.get(f"{url}/admin/models").json() if model["name"] == "digits")
    assert (name, before != version) == ("digits", True)

    seen, stop = [], threading.Event()
    body = {"inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "data": digits.data[0].tolist()}]}

    def traffic():
        with httpx.Client() as session:
            while not stop.is_set():
                answer = session.post(f"{url}/v2/models/digits/infer", json=body)
                seen.append((answer.status_code, answer.json().get("model_version")))

    clients = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in clients:
        thread.start()
    for _ in range(3):
        answer = httpx.post(f"{url}/admin/models/digits/promote", json={"version": version}, timeout=30)
        assert answer.json() == {"name": "digits", "live_version": version, "previous_version": before}
        time.sleep(0.2)
        back = httpx.post(f"{url}/admin/models/digits/rollback", timeout=30)
        assert back.json() == {"name": "digits", "live_version": before, "previous_version": version}
        time.sleep(0.2)
    stop.set()
    for thread in clients:
        thread.join()
    assert {status for status, _ in seen} == {200}
    assert {version_seen for _, version_seen in seen} == {before, version}


def test_an_unreadable_data_set_fails_its_job_with_the_line_and_leaves_the_service_alone(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    file = client.files.create(file=("bad.csv", io.BytesIO(b"a,target\n1,0\nx,1\n")), purpose="fine-tune")
    job = finished(client, client.fine_tuning.jobs.create(model="digits", training_file=file.id))
    assert (job.status, job.error.code, job.error.param) == ("failed", "bad_data", "training_file")
    assert "line 3" in job.error.message
    assert httpx.get(f"{url}/v2/models/digits/ready").status_code == 200


def test_an_unknown_gradient_mode_is_refused_with_the_modes(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    file = client.files.create(file=("d.csv", io.BytesIO(b"a,target\n1,0\n")), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match=r"full.*simplified"):
        client.fine_tuning.jobs.create(model="digits", training_file=file.id, extra_body={"gradient_mode": "half"})


BAD = {
    "malformed JSON": b"{",
    "a list": b"[]",
    "no inputs": b"{}",
    "wrong name": {"name": "x"},
    "wrong datatype": {"datatype": "INT64"},
    "wrong shape": {"shape": [1, 63]},
    "negative shape": {"shape": [-1, -64]},
    "wrong count": {"data": [0.0] * 63},
    "text for a number": {"data": ["0"] * 64},
    "a boolean for a number": {"data": [True] * 64},
    "NaN": b'{"inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "data": [NaN]}]}',
    "a lone surrogate": b'{"id": "\\ud800", "inputs": []}',
    "deep nesting": b"[" * 100_000,
    "a long integer": b'{"inputs": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_a_400_with_a_sentence_and_the_connection_lives_on(url, digits, case):
    good = {"name": "input", "shape": [1, 64], "datatype": "FP32", "data": digits.data[0].tolist()}
    body = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps({"inputs": [good | body]}).encode()
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as session:
        answer = session.post(f"{url}/v2/models/digits/infer", content=content)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.json()["error"]) > 20
        after = session.post(f"{url}/v2/models/digits/infer", json={"inputs": [good]})
        assert after.status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/nobody/infer", "/v2/models/digits/versions/99/infer"])
def test_an_unknown_model_or_version_is_a_404(url, path):
    assert httpx.post(f"{url}{path}", json={"inputs": []}).status_code == 404


def test_a_version_leaves_the_service_as_a_bundle_that_plain_onnx_runtime_runs(url, digits, tmp_path):
    command = [SPECNORM, "models", "export", "digits", "--workspace", str(url.workspace), "--out", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    session = ort.InferenceSession(tmp_path / "b" / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": rows_of(digits, 100)})
    assert (logits.argmax(axis=1) == digits.target[:100]).mean() > 0.9


def test_metrics_console_and_api_page_answer(url):
    assert "nv_inference_request_success" in httpx.get(f"{url}/metrics").text
    assert "<html" in httpx.get(f"{url}/").text
    assert "/v2/models/{model}/infer" in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_the_python_of_the_readme_runs_as_printed(url, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = [block for block in re.findall(r"^```python *\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "127.0.0.1:8000" in block]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block.replace("127.0.0.1:8000", url.removeprefix("http://")), "README.md", "exec"), {"__name__": "example"})
    assert "succeeded digits:" in capsys.readouterr().out


def test_the_python_of_the_page_on_fine_tuning_runs_as_printed(url, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text()
    namespace = {"__name__": "example"}
    for block in re.findall(r"^```python[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block.replace("127.0.0.1:8000", url.removeprefix("http://")), "fine-tuning.md", "exec"), namespace)
    told = capsys.readouterr().out
    assert "The data are good: 1400 rows to train on, 397 to validate on." in told
    assert "Step 66 of 66: loss" in told
    assert "its validation accuracy is" in told
