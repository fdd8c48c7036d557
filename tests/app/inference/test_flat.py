"""A request whose form is known reads as one whose form is not: same numbers, same refusals."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.inference.codec import Codec, Request
from export.bundle import InputDomain

GOOD = '{"inputs": [{"name": "input", "shape": [%d, 3], "datatype": "FP32", "data": [%s]}]%s}'


def codec(models: Any) -> Codec:
    artifact = models.affine(domain=InputDomain(minimum=-100.0, maximum=100.0))
    return Codec("m", "1", artifact.manifest, max_rows=100)


def outcome(of: Codec, body: bytes) -> Any:
    try:
        request: Request = of.decode(body)
    except InvalidRequestError as error:
        return str(error)
    return ({name: (array.dtype, array.tobytes(), array.shape) for name, array in request.inputs.items()}, *request[1:])


@pytest.fixture
def practised(models: Any) -> Codec:
    practised = codec(models)
    forms = ((1, "1, 2, 3", ""), (2, "1,2,3,4,5,6", ""), (1, "[1,2,3]", ""), (1, "1,2,3", ', "outputs": [{"name": "logits"}]'))
    for rows, text, rest in forms:
        practised.decode((GOOD % (rows, text, rest)).encode())
    return practised


NUMBERS = ["1", "-0.0", "1e-46", "3.4028235677973366e38", "3.4028234e38", "1e39", "1e400", "0.1", "101", "-101", "100.0000001"]
NUMBERS += ["18446744073709551616", "NaN", "null", "true", '"1"', "[1]", "01", "1.", "-", "{}", "", "1]", '"]"', "1 2"]


@given(st.integers(0, 2), st.lists(st.sampled_from(NUMBERS), max_size=7), st.sampled_from(["", ', "id": "a"', ', "x": "["', "x"]))
@settings(max_examples=300, deadline=None)
def test_a_known_form_and_a_new_one_are_read_alike(models: Any, rows: int, texts: list[str], rest: str) -> None:
    known = codec(models)
    for form in ((1, "1, 2, 3", rest), (2, "1,2,3,4,5,6", rest), (1, "[1,2,3]", rest)):
        outcome(known, (GOOD % form).encode())
    for body in ((GOOD % (rows, ",".join(texts), rest)), (GOOD % (rows, f"[{','.join(texts)}]", rest))):
        assert outcome(known, body.encode()) == outcome(codec(models), body.encode())


def test_numbers_are_rounded_as_numpy_rounds_them(practised: Codec) -> None:
    for row in np.random.default_rng(0).standard_normal((200, 3)) * 10.0 ** np.random.default_rng(1).integers(-44, 38, (200, 1)):
        request = practised.decode((GOOD % (1, ", ".join(map(repr, row.tolist())), "")).encode())
        assert request.inputs["input"].tobytes() == row.astype(np.float32).tobytes()


def test_a_known_form_keeps_what_was_asked_for_and_flags_what_is_out_of_range(practised: Codec) -> None:
    request = practised.decode((GOOD % (1, "1,2,101", ', "outputs": [{"name": "logits"}]')).encode())
    assert [wanted.tensor.name for wanted in request.wanted] == ["logits"]
    assert request.out_of_range
    assert not practised.decode((GOOD % (1, "1,2,100", "")).encode()).out_of_range


def test_a_bracket_in_a_string_is_no_array(models: Any) -> None:
    body = json.dumps({"inputs": [{"data": [1, 2, 3], "shape": [1, 3], "datatype": "FP32", "name": "input", "parameters": {"x": "[4]"}}]})
    one = codec(models)
    for text in (body, body.replace("[4]", "[7,8,9]")):
        assert one.decode(text.encode()).inputs["input"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("text", ["1, 2, 1e39", "1, 2, -3.4028235677973366e38", "1, 2", "1, 2, 3, 4"])
def test_what_a_new_form_refuses_a_known_one_refuses(practised: Codec, text: str) -> None:
    with pytest.raises(InvalidRequestError):
        practised.decode((GOOD % (1, text, "")).encode())


def test_another_array_than_the_data_is_never_taken_for_it(models: Any) -> None:
    body = '{"inputs": [{"name": "input", "datatype": "FP32", "data": [1, 2, 3], "shape": [%s]}]}'
    one = codec(models)
    for _ in range(2):
        assert one.decode((body % "1, 3").encode()).inputs["input"].tolist() == [[1, 2, 3]]
    with pytest.raises(InvalidRequestError):
        one.decode((body % "7, 8, 9").encode())
