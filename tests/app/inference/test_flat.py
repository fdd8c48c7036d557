"""A request whose form is known reads as one whose form is not: same numbers, same refusals."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.inference.codec import Codec
from app.inference.flat import Found
from app.inference.request import Request
from export.bundle import InputDomain, Manifest

GOOD = '{"inputs": [{"name": "input", "shape": [%d, 3], "datatype": "FP32", "data": [%s]}]%s}'


@cache
def manifest(models: Any, bound: float | None, limit: float | None) -> Manifest:
    found: Manifest = models.affine(bound=bound, domain=InputDomain(minimum=limit and -limit, maximum=limit)).manifest
    return found


def codec(models: Any, bound: float | None = 1.0, limit: float | None = 100.0) -> Codec:
    return Codec("m", "1", manifest(models, bound, limit), max_rows=100)


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
@settings(max_examples=200, deadline=None)
def test_a_known_form_and_a_new_one_are_read_alike(models: Any, rows: int, texts: list[str], rest: str) -> None:
    known = codec(models)
    for form in ((1, "1, 2, 3", rest), (2, "1,2,3,4,5,6", rest), (1, "[1,2,3]", rest)):
        outcome(known, (GOOD % form).encode())
    for body in ((GOOD % (rows, ",".join(texts), rest)), (GOOD % (rows, f"[{','.join(texts)}]", rest))):
        assert outcome(known, body.encode()) == outcome(codec(models), body.encode())


ROWS = ["1, 2, 3", "0.5,-7,1e2", "101,0,0", "-0.0,1e-46,3"]
HOSTILE = ["1,2", "1,2,3,4", "", " ", "1e300,1,2,3", "1,2,3,1e300,4,5,6", "1,2,3,1e300", "1e300", "1,2,1e300", "1,2,1e300,3", "1e39,0,0"]
HOSTILE += ['1,"', '",2,3', "1,2,{", '{"a":1},2,3', "1,,2", ",1,2", "1,2,NaN", "3.4028235677973366e38,0,0", "1e400,0,0", "1,2,true", "null"]


@given(st.lists(st.sampled_from(ROWS + HOSTILE), min_size=2, max_size=5))
@settings(max_examples=200, deadline=None)
def test_requests_that_are_read_together_read_as_each_does_alone(models: Any, texts: list[str]) -> None:
    bodies = [(GOOD % (1, text, "")).encode() for text in texts]
    for kind in ((1.0, 100.0), (None, None)):
        known = codec(models, *kind)
        known.decode((GOOD % (1, "1,2,3", "")).encode())
        found = [Found(*one) for body in bodies if (one := known.find(body, 0, None))]
        together = known.together(found)
        if together is None:
            assert len(found) < 2 or any(text in HOSTILE for text in texts)
            continue
        array, flags = together
        for row, flag, body in zip(array, flags, bodies, strict=True):
            expected = outcome(codec(models, *kind), body)
            assert expected[0]["input"][1] == row.tobytes()
            assert expected[5] == flag


def test_requests_of_other_sizes_are_read_together_only_where_each_has_its_own_number_of_numbers(models: Any) -> None:
    known = codec(models)
    for rows, text in ((1, "1,2,3"), (2, "1,2,3,4,5,6")):
        known.decode((GOOD % (rows, text, "")).encode())

    def read(*requests: tuple[int, str]) -> Any:
        found = [known.find((GOOD % (rows, text, "")).encode(), 0, None) for rows, text in requests]
        return known.together([Found(*one) for one in found if one])

    array, _ = read((1, "1,2,3"), (2, "4,5,6,7,8,9"))
    assert array.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert read((1, "1,2"), (2, "3,4,5,6,7,8,9")) is None
    assert read((1, "1,2,3,4"), (2, "5,6,7,8,9")) is None
    assert read((1, "1,2,"), (2, "5,6,7,8,9,0")) is None


IDS = ['"a"', '""', '"a-b_c/d:e.f 1"', '"\\u0041"', '"a\\"b"', '"\u00e4"', "1", "null", '"%s"' % ("x" * 200)]
SHAPES = ['{"id":ID,REST', '{"id": ID, REST', "{REST", '{ "id":ID ,REST', '{"\\u0069d":ID,REST', '{"id":"first","id":ID,REST']
ENDS = [
    "}",
    ',"id":ID}',
    ', "id": ID}',
    ',"parameters":{"id":ID}}',
    ',"id":ID }',
    ',"id":ID,"x":1}',
    ',"\\u0069d":ID}',
    ',"id":"z","id":ID}',
]
REST = '"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [%s]}]'


@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(ENDS), st.sampled_from(IDS), st.sampled_from(ROWS)), max_size=6))
@settings(max_examples=200, deadline=None)
def test_an_id_wherever_it_stands_is_read_as_json_has_it(models: Any, requests: list[tuple[str, str, str, str]]) -> None:
    known = codec(models)
    for begin, end, identity, numbers in requests:
        body = (begin.replace("REST", REST % numbers) + end).replace("ID", identity).encode()
        assert outcome(known, body) == outcome(codec(models), body)


def test_requests_whose_ids_differ_are_of_one_form(models: Any) -> None:
    known = codec(models)
    known.decode(b'{"id":"first",' + (REST % "1,2,3").encode() + b"}")
    found = known.find(b'{"id":"second",' + (REST % "4,5,6").encode() + b"}", 0, None)
    assert found is not None
    assert found[1:] == (b"4,5,6", "second")
    assert known.find(b"{" + (REST % "4,5,6").encode() + b',"id":"third"}', 0, None) is not None


BINARY = '{"inputs": [{"name": "input", "shape": [%d, 3], "datatype": "FP32", "parameters": {"binary_data_size": %d}}]%s}'


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2),
            st.sampled_from([0, 0, 0, 1, -4]),
            st.lists(st.sampled_from([0.0, 1.0, -100.0, 100.5, np.inf, np.nan]), min_size=6, max_size=6),
            st.sampled_from(["", ', "id": "a"', ',"id":"b"', ', "id": "a", "x": 1', ', "parameters": {"binary_data_output": true}']),
        ),
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_binary_requests_of_a_known_form_are_read_like_new_ones(models: Any, requests: list[tuple[int, int, list[float], str]]) -> None:
    for kind in ((1.0, 100.0), (None, 100.0), (1.0, None)):
        known = codec(models, *kind)
        for rows, more, numbers, rest in requests:
            size = 12 * rows
            head = (BINARY % (rows, size, rest)).encode()
            body = head + (np.array(numbers, "<f4").tobytes() + b"xxxx")[: max(0, size + more)]
            assert wire_outcome(known, body, len(head)) == wire_outcome(codec(models, *kind), body, len(head))


def wire_outcome(of: Codec, body: bytes, json_bytes: int) -> Any:
    try:
        request = of.decode(body, json_bytes)
    except InvalidRequestError as error:
        return str(error)
    return request.inputs["input"].tobytes(), request.rows, request.wanted, request.id, request.out_of_range


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
