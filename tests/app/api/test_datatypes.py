"""Every datatype of the protocol through a real server, on models that take it, by the stock clients."""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app.db import connect
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MODEL

INTEGERS = {f"{sign}INT{bits}": f"{sign}int{bits}".lower() for sign in ("", "U") for bits in (8, 16, 32, 64)}
NUMBERS: dict[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    **{datatype: np.array([[np.iinfo(name).min, np.iinfo(name).max, 7]], name) for datatype, name in INTEGERS.items()},
    "FP16": np.array([[0.5, -65504, 6e-8]], np.float16),
    "FP32": np.array([[0.1, -3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[0.1, -1.7e308, 5e-324]], np.float64),
    "BYTES": np.array([["", "ü€", "a\nb"]], dtype=object),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One model of each datatype, and some whose signatures are not rows of numbers."""
    from tests.app.api.conftest import listening

    workspace: Path = tmp_path_factory.mktemp("types")
    registry = Registry(connect(workspace), Blobs(workspace / "blobs"))
    tensor = _tensor
    artifacts = {datatype: models.identity(datatype, -1, 3, bound=None) for datatype in (*NUMBERS, "BF16")}
    artifacts["rounded"] = models.build(
        [tensor("input", "BF16", -1, 3)],
        [tensor("output", "FP32", -1, 3)],
        [helper.make_node("Cast", ["input"], ["output"], to=1)],
        bound=None,
    )
    artifacts["free"] = models.build(
        [tensor("a", "FP32", -1), tensor("b", "INT64", -1, 2)],
        [tensor("a2", "FP32", -1), tensor("b2", "INT64", -1, 2)],
        [helper.make_node("Add", ["a", "a"], ["a2"]), helper.make_node("Add", ["b", "b"], ["b2"])],
        rows_independent=False,
    )
    artifacts["scalar"] = models.identity("FP32", rows_independent=False)
    artifacts["one_text"] = models.identity("BYTES", -1, 1, bound=None)
    artifacts["affine"] = models.affine(1.0)
    artifacts["centred"] = models.centred()
    for name, artifact in artifacts.items():
        registry.publish(name, artifact.manifest, {MODEL: artifact.model})
        registry.promote(name, "1", why="test", who="test")
    registry.database.dispose()
    with listening(Settings(workspace=workspace, worker="none", threads=1, device="cpu")) as address:
        yield address.removeprefix("http://")


def _tensor(name: str, datatype: str, *shape: int) -> Any:
    from tests.app.conftest import tensor

    return tensor(name, datatype, *shape)


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    own = triton.InferenceServerClient(url)
    yield own
    own.close()


def asked(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("datatype", sorted(NUMBERS))
def test_every_datatype_comes_back_as_it_went_in_each_way_that_it_has(client: Any, datatype: str) -> None:
    array = NUMBERS[datatype]
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [triton.InferRequestedOutput("output", binary_data=binary_out)]
            if datatype == "FP16" and not (binary_in and binary_out):
                with pytest.raises(InferenceServerException, match="binary"):
                    client.infer(datatype, [asked("input", array, datatype, binary=binary_in)], outputs=outputs)
                continue
            found = client.infer(datatype, [asked("input", array, datatype, binary=binary_in)], outputs=outputs).as_numpy("output")
            if datatype == "BYTES":
                found = np.array([[text.decode() if isinstance(text, bytes) else text for text in found[0]]], dtype=object)
            np.testing.assert_array_equal(found, array)
    metadata = client.get_model_metadata(datatype)["inputs"][0]
    assert (metadata["datatype"], client.get_model_config(datatype)["input"][0]["data_type"]) == (
        datatype, "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}",
    )  # fmt: skip


def test_bf16_goes_in_and_out_bit_by_bit_and_is_the_number_that_it_stands_for(client: Any) -> None:
    array = np.array([[1.0, -2.5, 3.140625]], np.float32)  # each has the few bits of BF16
    given_ = asked("input", array.astype(ml_dtypes.bfloat16), "BF16", binary=True)
    found = client.infer("BF16", [given_]).as_numpy("output")
    np.testing.assert_array_equal(found.astype(np.float32), array)
    np.testing.assert_array_equal(client.infer("rounded", [given_]).as_numpy("output"), array)
    best = client.infer("BF16", [given_], outputs=[triton.InferRequestedOutput("output", class_count=2)]).as_numpy("output")
    assert best.tolist() == [[b"3.140625:2", b"1.0:0"]]
    with pytest.raises(InferenceServerException, match="no JSON form"):
        client.infer("BF16", [given_], outputs=[triton.InferRequestedOutput("output", binary_data=False)])


@pytest.mark.parametrize("datatype", sorted(set(NUMBERS) - {"BYTES", "BOOL"}))
@pytest.mark.parametrize("binary", [True, False])
def test_classes_are_the_largest_first_of_every_datatype_of_numbers(client: Any, datatype: str, binary: bool) -> None:
    array = np.array([[1, 3, 2], [3, 1, 3]]).astype(np.float32 if datatype.startswith("FP") else np.uint8)
    array = array.astype({"FP16": "f2", "FP64": "f8"}.get(datatype, "f4") if datatype.startswith("FP") else datatype.lower())
    outputs = [triton.InferRequestedOutput("output", class_count=2, binary_data=binary)]
    answer = client.infer(datatype, [asked("input", array, datatype, binary=True)], outputs=outputs)
    told = answer.get_output("output")
    assert (told["datatype"], told["shape"]) == ("BYTES", [2, 2])
    indices = [[int((text if isinstance(text, str) else text.decode()).split(":")[1]) for text in row] for row in answer.as_numpy("output")]
    assert indices == [[1, 2], [0, 2]]


def test_inputs_without_common_rows_and_without_any_are_served(client: Any) -> None:
    a, b = np.arange(5, dtype=np.float32), np.arange(4, dtype=np.int64).reshape(2, 2)
    answer = client.infer("free", [asked("b", b, "INT64", binary=True), asked("a", a, "FP32", binary=False)])
    np.testing.assert_array_equal(answer.as_numpy("a2"), 2 * a)
    np.testing.assert_array_equal(answer.as_numpy("b2"), 2 * b)
    assert client.get_model_config("free")["max_batch_size"] == 0
    assert client.infer("scalar", [asked("input", np.array(3, np.float32), "FP32", binary=True)]).as_numpy("output") == 3
    (told,) = client.get_inference_statistics("free")["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (1, 1)


def test_a_raw_body_is_one_string_or_the_free_axis_that_its_size_gives(client: Any) -> None:
    for model, body, shape in (("one_text", "ü\0".encode(), [1, 1]), ("centred", np.zeros(6, np.float32).tobytes(), [2, 3])):
        answer = client._post(f"v2/models/{model}/infer", body, {"Inference-Header-Content-Length": "0"}, None)
        length = int(answer.get("inference-header-content-length"))
        found = triton.InferenceServerClient.parse_response_body(answer.read(), header_length=length)
        assert found.get_output("output")["shape"] == shape
    assert found.as_numpy("output").tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_whole_surface_of_the_stock_client_works_or_is_refused_as_the_protocol_says(client: Any) -> None:
    x = NUMBERS["FP32"]
    pending = [client.async_infer("FP32", [asked("input", x, "FP32", binary=True)], request_id=str(n)) for n in range(3)]
    assert [one.get_result().get_response()["id"] for one in pending] == ["0", "1", "2"]
    answer = client.infer(
        "FP32", [asked("input", x, "FP32", binary=True)], sequence_id=7, sequence_start=True, sequence_end=True, priority=3,
        timeout=5_000_000, parameters={"mine": "x", "number": 1.5, "flag": True}, query_params={"a": "b"},
    )  # fmt: skip
    np.testing.assert_array_equal(answer.as_numpy("output"), x)
    body, length = client.generate_request_body([asked("input", x, "FP32", binary=True)])
    assert length is not None
    assert body
    for call in (
        client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status, client.get_cuda_shared_memory_status,
        lambda: client.update_trace_settings(settings={}), lambda: client.register_system_shared_memory("r", "/k", 1),
        client.unregister_cuda_shared_memory,
    ):  # fmt: skip
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert refused.value.status() == "404"
    shared = triton.InferInput("input", [1, 3], "FP32")
    shared.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.infer("FP32", [shared])


def test_the_whole_surface_of_the_asynchronous_client_does_too(url: str) -> None:
    async def use() -> None:
        async with triton_aio.InferenceServerClient(url) as own:
            assert await own.is_server_live()
            assert await own.is_server_ready()
            assert await own.is_model_ready("FP32", "1")
            assert "binary_tensor_data" in (await own.get_server_metadata())["extensions"]
            assert (await own.get_model_config("FP32"))["backend"] == "onnxruntime"
            assert {row["state"] for row in await own.get_model_repository_index()} == {"READY"}
            await own.unload_model("UINT8")
            assert not await own.is_model_ready("UINT8")
            await own.load_model("UINT8")
            assert await own.is_model_ready("UINT8")
            with pytest.raises(InferenceServerException):
                await own.get_log_settings()

    asyncio.run(use())


@pytest.mark.parametrize("binary", [True, False])
def test_under_concurrency_every_caller_gets_the_answer_to_its_own_rows_bit_by_bit(url: str, binary: bool) -> None:
    """Many clients, each with rows that no other has; some give up at once, some ask for what is wrong."""
    wrong: list[object] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=f"http://{url}", timeout=30) as http:
            for turn in range(25):
                count = rng.randint(1, 5)
                rows = np.array([[seed, turn, number] for number in range(count)], np.float32) + np.float32(0.1)
                entry: dict[str, Any] = {"name": "input", "shape": [count, 3], "datatype": "FP32"}
                identity = f"{seed}.{turn}"
                if rng.random() < 0.1:
                    http.post("/v2/models/affine/infer", json={"inputs": [{**entry, "data": ["x"]}]})
                if rng.random() < 0.1:
                    with contextlib.suppress(httpx.TimeoutException):
                        http.post("/v2/models/affine/infer", json={"inputs": [{**entry, "data": rows.ravel().tolist()}]}, timeout=1e-4)
                if binary:
                    text = json.dumps({"id": identity, "inputs": [{**entry, "parameters": {"binary_data_size": rows.nbytes}}]}).encode()
                    headers = {"Inference-Header-Content-Length": str(len(text))}
                    found = http.post("/v2/models/affine/infer", content=text + rows.tobytes(), headers=headers)
                else:
                    found = http.post(
                        "/v2/models/affine/infer", json={"id": identity, "inputs": [{**entry, "data": rows.ravel().tolist()}]}
                    )
                answer = found.json()
                logits = np.array(answer["outputs"][0]["data"], np.float32).reshape(count, 3)
                if answer["id"] != identity or not np.array_equal(logits, rows):
                    wrong.append((identity, answer))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.randoms())
@settings(max_examples=25, deadline=None)
def test_requests_sent_at_once_are_answered_each_with_its_own_rows(url: str, counts: list[int], rng: random.Random) -> None:
    async def use() -> None:
        async with triton_aio.InferenceServerClient(url) as own:
            rows = [np.array([[at, number, rng.random()] for number in range(count)], np.float32) for at, count in enumerate(counts)]
            answers = await asyncio.gather(*(own.infer("affine", [asked("input", one, "FP32", binary=True)]) for one in rows))
            for one, answer in zip(rows, answers, strict=True):
                np.testing.assert_array_equal(answer.as_numpy("logits"), one)
                np.testing.assert_array_equal(answer.as_numpy("certified_radius"), one.max(axis=1))

    asyncio.run(use())


def test_what_the_names_of_datatypes_mean_is_what_the_stock_client_thinks() -> None:
    assert all(np_to_triton_dtype(array.dtype) == datatype for datatype, array in NUMBERS.items())
