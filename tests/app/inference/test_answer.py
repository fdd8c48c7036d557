"""What is written once for all rows of a run is, byte for byte, what is written for each alone."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.errors import InvalidRequestError
from app.inference.codec import Codec
from app.inference.outputs import Joined, Outputs
from app.inference.request import Request
from export.bundle import InputDomain

NUMBERS = [0.0, -0.0, 1.5, -3e38, 1e-45, 0.1]


@pytest.fixture(scope="module")
def codec(models: Any) -> Codec:
    manifest = models.affine(domain=InputDomain(minimum=-10.0, maximum=16.0), labels=("100 %", "%s", "z")).manifest
    return Codec("100%", "7", manifest, max_rows=100)


def request(rows: int = 1, **top: Any) -> bytes:
    data = {"name": "input", "shape": [rows, 3], "datatype": "FP32", "data": [1.0] * (3 * rows)}
    return json.dumps({"inputs": [data], **top}).encode()


def encoded(codec: Codec, request: Request, outputs: Outputs) -> Any:
    try:
        return codec.encode(request, outputs)
    except InvalidRequestError as error:
        return str(error)


@given(
    arrays(np.float32, (4, 3), elements=st.sampled_from([float(np.float32(number)) for number in NUMBERS])),
    st.sampled_from([None, None, None, np.nan, np.inf]),
    st.sampled_from([(0, 1), (2, 3), (3, 4), (0, 2), (1, 4)]),
    st.tuples(st.booleans(), st.sampled_from([None, "a", 'quoted "%d"', "ä"])),
)
@settings(max_examples=100, deadline=None)
def test_an_answer_from_a_shared_run_is_that_of_a_run_alone(
    codec: Codec, logits: np.ndarray, odd: float | None, rows: tuple[int, int], flags: tuple[bool, str | None]
) -> None:
    (begin, end), (outside, identity) = rows, flags
    if odd is not None:
        logits[2, 1] = odd
    arrays = {"logits": logits, "certified_radius": np.arange(4, dtype=np.float32)}
    alone = {name: array[begin:end] for name, array in arrays.items()}
    shared = Joined(arrays, divisible=True).part(begin, end)
    for asked in ({}, {"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "logits", "parameters": {"classification": 2}}]}):
        own = codec.decode(request(end - begin, **asked))._replace(id=identity, out_of_range=outside)
        expected = encoded(codec, own, alone)
        assert encoded(codec, own, shared) == expected
        if "parameters" in asked:
            assert codec.raw(own, shared, {}) == expected


def test_heads_of_binary_answers_are_kept_apart_by_what_they_say(codec: Codec) -> None:
    heads: dict[object, bytes] = {}
    arrays = {"logits": np.zeros((4, 3), np.float32), "certified_radius": np.zeros(4, np.float32)}
    for _ in range(2):
        for rows in (1, 2):
            for outside in (False, True):
                own = codec.decode(request(rows, parameters={"binary_data_output": True}))._replace(out_of_range=outside)
                part = Joined(arrays, divisible=True).part(0, rows)
                assert codec.raw(own, part, heads) == codec.encode(own, {name: array[:rows] for name, array in arrays.items()})


def test_a_run_with_a_row_that_json_cannot_say_refuses_that_row_alone(codec: Codec) -> None:
    arrays = {"logits": np.array([[1, 2, 3], [np.nan, 0, 0]], np.float32), "certified_radius": np.zeros(2, np.float32)}
    joined = Joined(arrays, divisible=True)
    assert codec.rows(joined, False) is None
    own = codec.decode(request())
    assert json.loads(codec.encode(own, joined.part(0, 1)).body)["outputs"][0]["data"] == [1, 2, 3]
    with pytest.raises(InvalidRequestError, match="ask for binary data"):
        codec.encode(own, joined.part(1, 2))
