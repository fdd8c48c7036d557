"""The protocol over gRPC: the stock client against the real service, and the table of messages against the client's own."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from app.api.grpc.messages import CLASSES, MESSAGES, SERVICE
from app.db import connect
from app.observability import FORMATS
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.security import create_key
from app.settings import Settings
from export.bundle import MODEL


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fill(workspace: Path, models: Any) -> None:
    registry = Registry(connect(workspace), Blobs(workspace / "blobs"))
    artifacts = {kind: models.identity(kind, -1, 3, bound=None) for kind in ("INT8", "UINT64", "FP16", "BF16", "BYTES", "BOOL", "FP64")}
    for name, artifact in {**artifacts, "affine": models.affine(2.0), "slow": models.loop()}.items():
        registry.publish(name, artifact.manifest, {MODEL: artifact.model})
        registry.promote(name, "1", why="test", who="test")
    second = models.affine(3.0, labels=("x", "y", "z"))
    registry.publish("affine", second.manifest, {MODEL: second.model})
    registry.database.dispose()


@pytest.fixture(scope="module")
def address(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.app.api.conftest import listening

    workspace, port = tmp_path_factory.mktemp("grpc"), free_port()
    fill(workspace, models)
    with listening(Settings(workspace=workspace, worker="none", threads=1, device="cpu", grpc_port=port)):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as own:
        yield own


def asked(array: np.ndarray, datatype: str, name: str = "input") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_every_call_of_the_stock_client_is_answered_or_refused_as_unimplemented(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "2")
    assert client.get_server_metadata().name == "specnorm"
    metadata = client.get_model_metadata("affine")
    assert (list(metadata.versions), metadata.platform, list(metadata.inputs[0].shape)) == (["1", "2"], "onnx_onnxv1", [-1, 3])
    config = client.get_model_config("affine", as_json=True)["config"]
    assert (config["max_batch_size"], config["input"][0]["data_type"], config["input"][0]["dims"]) == (256, "TYPE_FP32", ["3"])
    assert {(one.name, one.state) for one in client.get_model_repository_index().models} >= {("affine", "READY"), ("BF16", "READY")}
    client.unload_model("FP64")
    assert not client.is_model_ready("FP64")
    client.load_model("FP64")
    assert client.is_model_ready("FP64")
    for call in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            call()


X = np.array([[1, 2.5, -3]], np.float32)


def test_an_answer_has_the_numbers_the_id_the_version_and_the_certificate(client: Any) -> None:
    answer = client.infer("affine", [asked(X, "FP32")], request_id="a1", client_timeout=20)
    np.testing.assert_array_equal(answer.as_numpy("logits"), 2 * X)
    np.testing.assert_array_equal(answer.as_numpy("certified_radius"), [5])
    message = answer.get_response()
    assert (message.id, message.model_name, message.model_version) == ("a1", "affine", "1")
    assert message.parameters["lipschitz_bound"].double_param == 1.0
    assert len(message.parameters["model_digest"].string_param) == 64
    outputs = [triton.InferRequestedOutput("logits", class_count=2)]
    found = client.infer("affine", [asked(X, "FP32")], model_version="2", outputs=outputs).as_numpy("logits")
    assert found.tolist() == [[b"7.5:1:y", b"3.0:0:x"]]


VALUES: dict[str, np.ndarray] = {
    "INT8": np.array([[-128, 127, 0]], np.int8),
    "UINT64": np.array([[2**64 - 1, 0, 1]], np.uint64),
    "FP16": np.array([[0.5, -65504, 6e-8]], np.float16),
    "BF16": np.array([[0.5, -3, 1e30]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"", "ü".encode(), b"x"]], dtype=object),
    "BOOL": np.array([[True, False, True]]),
    "FP64": np.array([[0.1, -1e308, 5e-324]]),
}


@pytest.mark.parametrize("datatype", sorted(VALUES))
def test_raw_and_typed_contents_of_every_kind_come_back_as_they_went_in(client: Any, address: str, datatype: str) -> None:
    array = VALUES[datatype]
    np.testing.assert_array_equal(client.infer(datatype, [asked(array, datatype)]).as_numpy("output"), array)
    if datatype in {"FP16", "BF16"}:
        return  # have no typed contents
    field = {
        "INT8": "int_contents",
        "UINT64": "uint64_contents",
        "BYTES": "bytes_contents",
        "BOOL": "bool_contents",
        "FP64": "fp64_contents",
    }
    message = service_pb2.ModelInferRequest(model_name=datatype)
    given = message.inputs.add(name="input", datatype=datatype, shape=[1, 3])
    getattr(given.contents, field[datatype]).extend(array.ravel().tolist())
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelInferResponse.FromString
        )
        raw = client.infer(datatype, [asked(array, datatype)]).get_response().raw_output_contents
        assert call(message).raw_output_contents == raw
        getattr(given.contents, field[datatype]).extend(array.ravel().tolist()[:1])
        with pytest.raises(grpc.RpcError) as refused:
            call(message)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_each_error_has_its_status_and_sentence(client: Any) -> None:
    cases: dict[str, tuple[Callable[[], object], str, str]] = {
        "unknown model": (lambda: client.infer("nobody", [asked(X, "FP32")]), "NOT_FOUND", "no model"),
        "unknown version": (lambda: client.get_model_metadata("affine", "9"), "NOT_FOUND", "no version"),
        "shape": (lambda: client.infer("affine", [asked(X[:, :2], "FP32")]), "INVALID_ARGUMENT", "expected shape"),
        "name": (lambda: client.infer("affine", [asked(X, "FP32", "other")]), "INVALID_ARGUMENT", "expected an input"),
        "datatype": (lambda: client.infer("affine", [asked(X.astype("f8"), "FP64")]), "INVALID_ARGUMENT", "expected datatype"),
        "file": (lambda: client.load_model("m", config="{}", files={"file:../x": b"x"}), "INVALID_ARGUMENT", "one file"),
        "late": (lambda: client.infer("slow", [asked(np.array([[2**60]]), "INT64")], timeout=50_000), "UNAVAILABLE", "deadline"),
    }
    for name, (call, status, sentence) in cases.items():
        with pytest.raises(InferenceServerException, match=sentence) as refused:
            call()
        assert refused.value.status() == f"StatusCode.{status}", name
    np.testing.assert_array_equal(client.infer("affine", [asked(X, "FP32")]).as_numpy("logits"), 2 * X)


def test_a_caller_that_gives_up_frees_the_model(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        client.infer("slow", [asked(np.array([[2**60]]), "INT64")], client_timeout=0.3, timeout=1_500_000)
    begun = time.monotonic()
    assert client.infer("slow", [asked(np.array([[3]]), "INT64")]).as_numpy("output").tolist() == [3]
    assert time.monotonic() - begun < 20


def test_a_stream_answers_each_request_in_turn_and_goes_on_after_an_error(client: Any) -> None:
    got: list[tuple[Any, Any]] = []
    client.start_stream(lambda result, error: got.append((result, error)))
    for number in range(3):
        client.async_stream_infer("affine", [asked(X + number, "FP32")], request_id=str(number))
    client.async_stream_infer("nobody", [asked(X, "FP32")])
    client.async_stream_infer("affine", [asked(X, "FP32")], request_id="last")
    client.stop_stream()
    assert [error is not None for _, error in got] == [False, False, False, True, False]
    assert [result.get_response().id for result, error in got if error is None] == ["0", "1", "2", "last"]
    np.testing.assert_array_equal(got[1][0].as_numpy("logits"), 2 * (X + 1))


def test_statistics_count_what_came_over_grpc(client: Any) -> None:
    before = client.get_inference_statistics("INT8", "1").model_stats[0].inference_stats.success.count
    client.infer("INT8", [asked(VALUES["INT8"], "INT8")])
    (told,) = client.get_inference_statistics("INT8").model_stats
    assert told.inference_stats.success.count == before + 1
    assert told.batch_stats[0].compute_infer.count >= 1


def test_a_request_writes_one_line_at_debug_with_the_id_that_its_caller_can_read_and_its_trace(
    client: Any, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, str]] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(FORMATS["json"]().format(record)))

    sink, trace = Sink(), "0af7651916cd43dd8448eb211c80319c"
    message = service_pb2.ModelInferRequest(model_name="nobody")
    logging.getLogger().addHandler(sink)
    try:
        with caplog.at_level(logging.DEBUG):
            client.infer("affine", [asked(X, "FP32")], headers={"x-request-id": "mine", "traceparent": f"00-{trace}-b7ad6b7169203331-01"})
            with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(
                    f"/{SERVICE}/ModelInfer",
                    request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                    response_deserializer=service_pb2.ModelInferResponse.FromString,
                )(message)
            with grpc.insecure_channel(address) as channel:
                stream = channel.stream_stream(
                    f"/{SERVICE}/ModelStreamInfer",
                    request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                    response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
                )
                assert len(list(stream(iter([message, message])))) == 2
    finally:
        logging.getLogger().removeHandler(sink)
    own = [line for line in lines if "gRPC" in line["message"]]
    assert [line["message"].rsplit(" after ")[0] for line in own] == ["gRPC ModelInfer OK", *["gRPC ModelInfer NOT_FOUND"] * 3]
    assert [line.get("trace_id") for line in own] == [trace, None, None, None]
    assert own[0]["request_id"] == "mine"
    assert ("x-request-id", own[1]["request_id"]) in [tuple(pair) for pair in refused.value.trailing_metadata()]
    assert len({line["request_id"] for line in own}) == 4
    assert not [line for line in lines if line["logger"].startswith("grpc")]


def test_with_keys_a_call_needs_one_of_the_right_scope(models: Any, listen: Any, tmp_path: Path) -> None:
    fill(tmp_path / "ws", models)
    _, secret = create_key(tmp_path / "keys", ["infer"])
    port = free_port()
    settings = Settings(workspace=tmp_path / "ws", worker="none", grpc_port=port, api_keys_file=tmp_path / "keys", device="cpu")
    with listen(settings), triton.InferenceServerClient(f"127.0.0.1:{port}") as own:
        assert own.is_server_live()
        with pytest.raises(InferenceServerException, match="key is needed"):
            own.infer("affine", [asked(X, "FP32")])
        with pytest.raises(InferenceServerException, match="not known"):
            own.infer("affine", [asked(X, "FP32")], headers={"authorization": "Bearer sn-wrong"})
        with pytest.raises(InferenceServerException, match="'admin'"):
            own.get_model_repository_index(headers={"authorization": f"Bearer {secret}"})
        assert own.infer("affine", [asked(X, "FP32")], headers={"authorization": f"Bearer {secret}"}).as_numpy("logits") is not None


def test_every_message_has_the_numbers_and_kinds_of_the_stock_clients_own() -> None:
    compared: set[str] = set()

    def compare(ours: Any, theirs: Any) -> None:
        if ours.full_name in compared:
            return
        compared.add(ours.full_name)
        known = {field.name: field for field in theirs.fields}
        for field in ours.fields:
            other = known[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), (
                f"{ours.name}.{field.name}"
            )
            if field.message_type:
                compare(field.message_type, other.message_type)
            if field.enum_type:
                assert {one.name: one.number for one in field.enum_type.values}.items() <= {
                    one.name: one.number for one in other.enum_type.values
                }.items()

    for name in MESSAGES:
        if name.endswith(("Request", "Response")) and not name.startswith("HealthCheck"):
            compare(CLASSES[name].DESCRIPTOR, getattr(service_pb2, name).DESCRIPTOR)
    assert {name for name in MESSAGES if f"inference.{name}" not in compared} == {"HealthCheckRequest", "HealthCheckResponse"}
