import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.errors import InvalidRequestError
from app.inference.codec import Codec
from app.inference.tensors import DTYPES, from_json, to_json
from export.bundle import InputDomain


def codec(artifact: Any, *, max_rows: int = 1000) -> Codec:
    return Codec("m", "7", artifact.manifest, max_rows=max_rows)


@pytest.fixture
def affine(models: Any) -> Codec:
    return codec(models.affine(domain=InputDomain(minimum=-10.0, maximum=16.0), labels=("x", "y", "z")))


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3], **changes}


def request(*inputs: Any, **top: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [entry()], **top}).encode()


def test_a_flat_a_nested_and_a_binary_request_are_the_same(affine: Codec) -> None:
    text = request(entry(data=None, parameters={"binary_data_size": 12}))
    binary = affine.decode(text + np.array([1, 2.5, -3], np.float32).tobytes(), len(text))
    for body in (request(entry()), request(entry(data=[[1, 2.5, -3]]))):
        np.testing.assert_array_equal(affine.decode(body).inputs["input"], binary.inputs["input"])
    assert binary.inputs["input"].dtype == np.float32
    assert binary.inputs["input"].shape == (1, 3)


def test_what_clients_add_is_tolerated(affine: Codec) -> None:
    body = request(id="ü", model_name="m", parameters={"priority": 1, "own": "x", "sequence_start": True}, outputs=None)
    assert affine.decode(body).id == "ü"


def test_the_timeout_is_in_microseconds_and_zero_means_none(affine: Codec) -> None:
    assert affine.decode(request(parameters={"timeout": 1500})).timeout == 0.0015
    assert affine.decode(request(parameters={"timeout": 0})).timeout is None


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty body"),
    "not JSON": (b"{", "not JSON"),
    "array": (b"[]", "expected a JSON object, got an array"),
    "number": (b"1", "got an integer"),
    "null": (b"null", "got null"),
    "NaN": (request(entry(data=[float("nan"), 1, 2])), "not JSON"),
    "infinity by exponent": (request(entry()).replace(b"2.5", b"1e999"), "not JSON"),
    "5,000 digits": (request(entry()).replace(b"2.5", b"9" * 5000), "not JSON"),
    "deep nesting": (request(entry(data=None)).replace(b"null", b"[" * 50_000 + b"]" * 50_000), "not JSON"),
    "nesting that parses": (request(entry(data=None)).replace(b"null", b"[" * 200 + b"]" * 200), "nested as shape"),
    "lone surrogate": (request(id="\ud800"), "not JSON"),
    "id is a number": (request(id=5), "expected id to be a string, got an integer"),
    "no inputs": (b"{}", "expected inputs to be an array of tensors, got none"),
    "inputs is an object": (b'{"inputs": {}}', "got an object"),
    "inputs is empty": (b'{"inputs": []}', "missing: ['input']"),
    "input is a string": (request("x"), "expected every input to be an object, got a string"),
    "unknown name": (request(entry(name="inptu")), "expected an input of ['input'], got 'inptu'"),
    "name is an array": (request(entry(name=[])), "got an array"),
    "twice": (request(entry(), entry()), "given twice"),
    "other datatype": (request(entry(datatype="FP64")), "expected datatype FP32, got 'FP64'"),
    "lower-case datatype": (request(entry(datatype="fp32")), "got 'fp32'"),
    "no datatype": (request({"name": "input", "shape": [1, 3], "data": [1, 2, 3]}), "got null"),
    "datatype is an object": (request(entry(datatype={})), "got an object"),
    "no shape": (request({"name": "input", "datatype": "FP32", "data": [1, 2, 3]}), "array of integers"),
    "shape is a number": (request(entry(shape=3)), "array of integers"),
    "negative": (request(entry(shape=[-1, 3])), "array of integers from 0"),
    "two negatives": (request(entry(shape=[-1, -3])), "array of integers from 0"),
    "shape of floats": (request(entry(shape=[1.0, 3])), "array of integers"),
    "shape of booleans": (request(entry(shape=[True, 3])), "array of integers"),
    "shape that wraps": (request(entry(shape=[2**62, 4])), "array of integers"),
    "shape beyond 64 bits": (request(entry(shape=[2**64, 3])), "array of integers"),
    "other width": (request(entry(shape=[1, 2], data=[1, 2])), "expected shape [-1, 3] (-1 is free), got [1, 2]"),
    "other rank": (request(entry(shape=[3])), "got [3]"),
    "100 dimensions": (request(entry(shape=[1] * 100)), "got 100 dimensions"),
    "too few": (request(entry(data=[1, 2])), "holds 3 elements, data has 2"),
    "too many": (request(entry(data=[1, 2, 3, 4])), "data has 4"),
    "huge shape, little data": (request(entry(shape=[2**31 - 1, 3])), "at most 1000 rows, got 2147483647"),
    "large shape, little data": (request(entry(shape=[1000, 3])), "holds 3000 elements, data has 3"),
    "ragged": (request(entry(shape=[2, 3], data=[[1, 2, 3], [4, 5]])), "nested as shape [2, 3]"),
    "nested otherwise": (request(entry(data=[[1], [2], [3]])), "nested as shape"),
    "data is missing": (request({"name": "input", "shape": [1, 3], "datatype": "FP32"}), "expected data to be an array, got null"),
    "data is an object": (request(entry(data={})), "got an object"),
    "boolean as number": (request(entry(data=[1, True, 3])), "FP32 data is a number, not a boolean"),
    "string as number": (request(entry(data=["1", 2, 3])), "not a string"),
    "null as number": (request(entry(data=[None, 2, 3])), "not null"),
    "array as number": (request(entry(data=[1, [2], 3])), "not an array"),
    "too large for FP32": (request(entry(data=[1e39, 2, 3])), "outside the range of FP32"),
    "parameters is an array": (request(parameters=[]), "expected parameters to be an object"),
    "nested parameter": (request(parameters={"a": {"b": 1}}), "'a' to be a string, number or boolean, got an object"),
    "negative timeout": (request(parameters={"timeout": -1}), "microseconds"),
    "timeout is a boolean": (request(parameters={"timeout": True}), "microseconds"),
    "shared memory": (request(entry(parameters={"shared_memory_region": "x"})), "shared memory is not served"),
    "size without a header": (request(entry(data=None, parameters={"binary_data_size": 12})), "header"),
    "outputs is an object": (request(outputs={}), "expected outputs to be an array"),
    "output is a string": (request(outputs=["logits"]), "expected every output to be an object"),
    "unknown output": (request(outputs=[{"name": "nope"}]), "expected an output of ['certified_radius', 'logits'], got 'nope'"),
    "output twice": (request(outputs=[{"name": "logits"}, {"name": "logits"}]), "asked for twice"),
    "binary_data is a number": (request(outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), "boolean"),
    "classification is negative": (request(outputs=[{"name": "logits", "parameters": {"classification": -1}}]), "count of classes"),
    "classification is a text": (request(outputs=[{"name": "logits", "parameters": {"classification": "2"}}]), "count of classes"),
    "a million arrays": (request(entry(data=None)).replace(b"null", b"[" + b"[]," * 2**20 + b"[]]"), "send the data flat"),
    "too many rows": (request(entry(shape=[1001, 3], data=[0] * 3003)), "at most 1000 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_what_was_expected(affine: Codec, case: str) -> None:
    body, sentence = BAD[case]
    with pytest.raises(InvalidRequestError) as caught:
        affine.decode(body)
    assert sentence in str(caught.value)
    orjson.dumps(str(caught.value))  # a message can always be sent
    assert len(str(caught.value)) < 400


def binary(size: Any, payload: bytes, **changes: Any) -> tuple[bytes, int]:
    text = request({**entry(parameters={"binary_data_size": size}), "data": None, **changes})
    return text + payload, len(text)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (binary(12, b"\0" * 11), "11 bytes are left"),
        (binary(12, b"\0" * 13), "take 12 bytes of binary data, the body has 13"),
        (binary(8, b"\0" * 8), "takes 12 bytes, binary data has 8"),
        (binary(-4, b"\0" * 12), "count of bytes, got an integer, -4"),
        (binary(12.0, b"\0" * 12), "count of bytes, got a number"),
        (binary(True, b"\0" * 12), "count of bytes, got a boolean"),
        (binary("12", b"\0" * 12), "count of bytes, got a string"),
        (binary(2**63, b"\0" * 12), "12 bytes are left"),
        (binary(12, b"\0" * 12, data=[1, 2, 3]), "both data and binary_data_size"),
        ((b"{}", 3), "is 3, but the body has 2 bytes"),
        (binary(12, np.array([1, np.nan, 1], np.float32).tobytes()), "NaN or infinite"),
        (binary(12, np.array([1, -np.inf, 1], np.float32).tobytes()), "NaN or infinite"),
    ],
)
def test_bad_binary_data_is_refused(affine: Codec, body: tuple[bytes, int], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        affine.decode(*body)
    assert sentence in str(caught.value)


def test_nan_reaches_a_model_without_a_bound(models: Any) -> None:
    own = codec(models.affine(bound=None))
    assert np.isnan(own.decode(*binary(12, np.array([1, np.nan, 1], np.float32).tobytes())).inputs["input"]).any()


def test_a_raw_body_is_the_one_row_of_the_one_input(models: Any, affine: Codec) -> None:
    decoded = affine.decode(np.array([1, 2, 3], np.float32).tobytes(), 0)
    assert decoded.inputs["input"].tolist() == [[1, 2, 3]]
    assert all(wanted.binary for wanted in decoded.wanted)
    free = codec(models.identity("INT32", -1, -1)).decode(np.arange(5, dtype=np.int32).tobytes(), 0)
    assert free.inputs["input"].shape == (1, 5)
    for own, body in [
        (affine, b"\0" * 11),
        (affine, b""),
        (codec(models.two_inputs()), b""),
        (codec(models.identity("BYTES", -1, 2)), b"x"),
    ]:
        with pytest.raises(InvalidRequestError):
            own.decode(body, 0)


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("BOOL", [True, False], [1, 0]),
        ("UINT8", [0, 255], [0, 256]),
        ("INT8", [-128, 127], [1.5, 1]),
        ("UINT64", [0, 2**64 - 1], [-1, 0]),
        ("INT64", [-(2**63), 2**63 - 1], [2**63, 0]),
        ("FP64", [1e300, 1], ["1", 1]),
        ("BYTES", ["ü", ""], [1, "x"]),
    ],
)
def test_each_datatype_takes_its_own_elements_and_no_others(models: Any, datatype: str, good: list[Any], bad: list[Any]) -> None:
    own = codec(models.identity(datatype, -1, 2))
    decoded = own.decode(request(entry(datatype=datatype, shape=[1, 2], data=good)))
    assert decoded.inputs["input"].tolist() == [good]
    answer = json.loads(own.encode(decoded, {"output": decoded.inputs["input"]}).body)
    assert answer["outputs"][0] == {"name": "output", "datatype": datatype, "shape": [1, 2], "data": good}
    with pytest.raises(InvalidRequestError):
        own.decode(request(entry(datatype=datatype, shape=[1, 2], data=bad)))


def test_half_precision_is_binary_only(models: Any) -> None:
    own = codec(models.identity("FP16", -1, 1))
    with pytest.raises(InvalidRequestError, match="use binary data"):
        own.decode(request(entry(datatype="FP16", shape=[1, 1], data=[1])))
    decoded = own.decode(*binary(2, np.array([1.5], np.float16).tobytes(), datatype="FP16", shape=[1, 1]))
    with pytest.raises(InvalidRequestError, match="ask for binary data"):
        own.encode(decoded, {"output": decoded.inputs["input"]})


def test_binary_strings_and_booleans_are_checked(models: Any) -> None:
    own = codec(models.identity("BYTES", -1))
    good = struct.pack("<I", 2) + "ü".encode() + struct.pack("<I", 0)
    assert own.decode(*binary(len(good), good, datatype="BYTES", shape=[2])).inputs["input"].tolist() == ["ü", ""]
    for raw in (good[:-1], good + b"\1", struct.pack("<I", 2**32 - 1) + b"x", struct.pack("<I", 1) + b"\xff", good + good):
        with pytest.raises(InvalidRequestError):
            own.decode(*binary(len(raw), raw, datatype="BYTES", shape=[2]))
    with pytest.raises(InvalidRequestError, match="0 or 1"):
        codec(models.identity("BOOL", -1)).decode(*binary(2, b"\1\2", datatype="BOOL", shape=[2]))


def test_inputs_must_have_the_same_number_of_rows(models: Any) -> None:
    rows = [{"name": name, "datatype": "FP32", "shape": [count, 2], "data": [0] * 2 * count} for name, count in (("a", 1), ("b", 2))]
    with pytest.raises(InvalidRequestError, match=r"same number of rows, got \[1, 2\]"):
        codec(models.two_inputs()).decode(request(*rows))
    with pytest.raises(InvalidRequestError, match=r"missing: \['b'\]"):
        codec(models.two_inputs()).decode(request(rows[0]))


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    return {"logits": np.array([[1, 2.5, -3]], np.float32), "certified_radius": np.array([2.5], np.float32)}


def test_an_answer_names_its_version_and_carries_the_bound(affine: Codec, models: Any, outputs: dict[str, np.ndarray]) -> None:
    answer = json.loads(affine.encode(affine.decode(request(id="a")), outputs).body)
    digest = models.affine().manifest.model_digest
    assert answer == {
        "model_name": "m",
        "model_version": "7",
        "id": "a",
        "parameters": {"lipschitz_bound": 1.0, "model_digest": digest},
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [1, 2.5, -3]},
            {"name": "certified_radius", "datatype": "FP32", "shape": [1], "data": [2.5]},
        ],
    }
    assert "id" not in json.loads(affine.encode(affine.decode(request()), outputs).body)


def test_without_a_bound_the_answer_says_why(models: Any, outputs: dict[str, np.ndarray]) -> None:
    own = codec(models.affine(bound=None))
    parameters = json.loads(own.encode(own.decode(request()), outputs).body)["parameters"]
    assert parameters["lipschitz_reason"] == "Softsign is not known"
    assert "lipschitz_bound" not in parameters


@pytest.mark.parametrize(("number", "flagged"), [(16, False), (16.001, True), (-10, False), (-10.001, True)])
def test_an_input_outside_the_stated_range_is_flagged(affine: Codec, outputs: dict[str, np.ndarray], number: float, flagged: bool) -> None:
    decoded = affine.decode(request(entry(data=[0, number, 0])))
    parameters = json.loads(affine.encode(decoded, outputs).body)["parameters"]
    assert parameters.get("input_out_of_range", False) is flagged


@given(arrays(np.uint32, (1, 3), elements=st.integers(0, 2**32 - 1)))
def test_fp32_reads_back_to_the_same_bits(bits: np.ndarray) -> None:
    numbers = bits.view(np.float32)
    if not np.isfinite(numbers).all():
        return
    text = orjson.dumps(to_json(numbers, "FP32", name="x"), option=orjson.OPT_SERIALIZE_NUMPY)
    assert from_json(json.loads(text), "FP32", (1, 3), name="x").tobytes() == numbers.tobytes()


def test_a_number_that_json_cannot_say_is_refused_with_advice(affine: Codec, outputs: dict[str, np.ndarray]) -> None:
    outputs["logits"][0, 1] = np.nan
    with pytest.raises(InvalidRequestError, match="ask for binary data"):
        affine.encode(affine.decode(request()), outputs)
    encoded = affine.encode(affine.decode(request(parameters={"binary_data_output": True})), outputs)
    assert np.isnan(np.frombuffer(encoded.body[encoded.json_bytes :], np.float32)).sum() == 1


def test_outputs_come_as_they_were_asked_for(affine: Codec, outputs: dict[str, np.ndarray]) -> None:
    asked = [{"name": "certified_radius", "parameters": {"binary_data": False}}, {"name": "logits"}]
    encoded = affine.encode(affine.decode(request(parameters={"binary_data_output": True}, outputs=asked)), outputs)
    radius, logits = json.loads(encoded.body[: encoded.json_bytes])["outputs"]
    assert radius == {"name": "certified_radius", "datatype": "FP32", "shape": [1], "data": [2.5]}
    assert logits == {"name": "logits", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    assert np.frombuffer(encoded.body[encoded.json_bytes :], np.float32).tolist() == [1, 2.5, -3]


def test_classification_gives_the_best_first(affine: Codec, outputs: dict[str, np.ndarray]) -> None:
    asked = [{"name": "logits", "parameters": {"classification": 2}}, {"name": "certified_radius", "parameters": {"classification": 9}}]
    logits, radius = json.loads(affine.encode(affine.decode(request(outputs=asked)), outputs).body)["outputs"]
    assert logits == {"name": "logits", "datatype": "BYTES", "shape": [1, 2], "data": ["2.5:1:y", "1.0:0:x"]}
    assert radius["data"] == ["2.5:0"]


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BYTES"}))
def test_binary_tensors_come_back_byte_for_byte(models: Any, datatype: str) -> None:
    own = codec(models.identity(datatype, -1, 4))
    raw = np.array([0, 1, 1, 0]).astype(DTYPES[datatype]).tobytes()
    text = request(
        {"name": "input", "shape": [1, 4], "datatype": datatype, "parameters": {"binary_data_size": len(raw)}},
        parameters={"binary_data_output": True},
    )
    decoded = own.decode(text + raw, len(text))
    encoded = own.encode(decoded, {"output": decoded.inputs["input"]})
    assert encoded.body[encoded.json_bytes :] == raw


def test_no_row_at_all_is_a_request(affine: Codec) -> None:
    assert affine.decode(request(entry(shape=[0, 3], data=[]))).rows == 0
