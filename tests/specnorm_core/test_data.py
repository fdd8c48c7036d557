import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from specnorm_core import parquet as pq
from specnorm_core.data import DataError, load, read

GOOD = {
    ".jsonl": b'{"input": [1, 2.5], "target": 0}\n\n{"input": [3, 4], "target": 1}\n',
    ".csv": b"a,b,target\n1,2.5,0\n3,4,1\n",
}


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", sorted(GOOD))
def test_text_formats_give_the_rows_they_hold(suffix):
    data = read(GOOD[suffix], suffix)
    assert data.x.tolist() == [[1, 2.5], [3, 4]]
    assert data.y.tolist() == [0, 1]
    assert data.y.dtype == np.int64
    assert data.classes == 2


def test_the_digest_names_the_content_whatever_the_format():
    digests = {read(GOOD[suffix], suffix).digest for suffix in GOOD}
    digests.add(read(npz(x=np.array([[1, 2.5], [3, 4]], np.float32), y=np.array([0, 1])), ".npz").digest)
    assert len(digests) == 1


def test_a_target_column_need_not_be_the_last():
    assert read(b"target,a\n1,5\n0,6\n", ".csv").y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("suffix", "content", "line", "words"),
    [
        (".jsonl", b'{"input": [1], "target": 0}\n{"input": [1], "target"', 2, "not valid JSON"),
        (".jsonl", b'{"input": [1], "target": 0}\n[1, 2]\n', 2, "expected an object"),
        (".jsonl", b'{"input": [1], "target": 0}\n\n{"input": [1, 2], "target": 0}\n', 3, r"shape \(2,\), those before it \(1,\)"),
        (".jsonl", b'{"input": [NaN], "target": 0}\n', 1, "not valid JSON"),
        (".jsonl", b'{"input": [1e39], "target": 0}\n', 1, "too large for float32"),
        (".jsonl", b'{"input": [true], "target": 0}\n', 1, "expected a number, got 'True'"),
        (".jsonl", b'{"input": ["1"], "target": 0}\n', 1, "expected a number"),
        (".jsonl", b'{"input": [1], "target": -1}\n', 1, "integer from 0, got -1"),
        (".jsonl", b'{"input": ' + b"[" * 100000 + b"\n", 1, "not valid JSON"),
        (".jsonl", b'{"input": [' + b"9" * 5000 + b'], "target": 0}\n', 1, "JSON|too large|equal length"),
        (".jsonl", b'{"input": [1], "target": 0}\n\xff\xfe\n', 2, "not UTF-8"),
        (".csv", b"a,target\n1,0\n1\n", 3, "expected 2 columns as in the header, got 1"),
        (".csv", b"a,target\n1,0\nx,0\n", 3, "could not convert"),
        (".csv", b"a,target\nnan,0\n", 2, "NaN"),
        (".csv", b"a,target\n1_0,0\n", 2, "could not convert"),
        (".csv", b"5.5,0\n1,0\n2,1\n", 1, "expected a header, got a row of numbers"),
        (".csv", b"1,0\n0,1\n", 1, "expected a header, got a row of numbers"),
        (".csv", b"target,a,target\n1,0,1\n", 1, "more than one column 'target'"),
        (".jsonl", b'{"input": [1' + b"0" * 400 + b'], "target": 0}\n', 1, "too large for float32"),
    ],
)
def test_a_bad_row_is_named_by_its_line(suffix, content, line, words):
    with pytest.raises(DataError, match=words) as caught:
        read(content, suffix)
    assert caught.value.line == line
    assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".npz"])
def test_an_empty_file_is_refused(suffix):
    with pytest.raises(DataError):
        read(b"", suffix)


def test_object_arrays_are_never_unpickled(tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (canary.write_text, ("gone",))

    hostile = npz(x=np.array([Payload()], dtype=object), y=np.zeros(1))
    canary.unlink(missing_ok=True)
    for content in (hostile, pickle.dumps(Payload())):
        with pytest.raises(DataError, match="object arrays are never read"):
            read(content, ".npz")
    assert not canary.exists()


def test_columns_may_be_named_by_their_numbers_as_pandas_does():
    assert read(b"0,1,2\n5,6,0\n7,8,1\n", ".csv").x.tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize("arrays", [{"x": np.float32(1), "y": np.float32(1)}, {"x": np.ones((2, 3)), "y": np.float32(1)}])
def test_a_single_number_is_no_array_of_rows(arrays):
    with pytest.raises(DataError, match="shape"):
        read(npz(**arrays), ".npz")


def test_an_array_that_claims_more_than_it_holds_is_refused_before_room_is_made_for_it():
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**50, 64)})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", head.getvalue())
    with pytest.raises(DataError, match="does not hold them"):
        read(stream.getvalue(), ".npz")


def test_unknown_formats_list_the_known():
    with pytest.raises(DataError, match=r"\.csv, \.jsonl, \.npz, \.parquet; got '\.pkl'"):
        read(b"", ".pkl")


def test_digits_are_the_real_ones():
    data = load("digits")
    assert data.x.shape == (1797, 64)
    assert (data.x.min(), data.x.max(), data.classes) == (0, 16, 10)


def parquet_of(**columns):
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def test_a_parquet_file_holds_lists_or_a_column_per_number_and_what_is_read_can_be_written():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    lists = read(parquet_of(input=list(x), target=[0, 1, 0, 1]), ".parquet")
    flat = read(parquet_of(a=x[:, 0], b=x[:, 1], c=x[:, 2], target=[0, 1, 0, 1]), ".parquet")
    last = read(parquet_of(a=x[:, 0], b=x[:, 1], c=x[:, 2], label=[0, 1, 0, 1]), ".parquet")
    assert lists.digest == flat.digest == last.digest
    np.testing.assert_array_equal(lists.x, x)
    assert all(array.flags.writeable for array in (lists.x, lists.y))


def test_a_parquet_file_keeps_the_shape_of_nested_lists():
    image = np.arange(2 * 3 * 4, dtype=np.float64).reshape(2, 3, 4)
    data = read(parquet_of(input=image.tolist(), target=[0.5, 1.5]), ".parquet")
    np.testing.assert_array_equal(data.x, image)
    assert data.y.dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"input": [[1.0], [1.0, 2.0]], "target": [0, 1]}, "row 2: expected lists of equal length"),
        ({"input": [[[1.0], [2.0]], [[1.0], None]], "target": [0, 1]}, "row 2: expected lists of equal length"),
        ({"input": [[1.0, 2.0], [3.0, None]], "target": [0, 1]}, "row 2: a value is missing in the column 'input'"),
        ({"input": [[1.0], [2.0]], "target": [0, None]}, "row 2: a value is missing in the column 'target'"),
        ({"input": [[1.0], [2.0]], "target": [0, -1]}, "row 2: a class label must be an integer from 0"),
        ({"input": ["a", "b"], "target": [0, 1]}, "expected numbers in the column 'input', got string"),
        ({"input": [[1.0], [2.0]], "more": [1, 2], "target": [0, 1]}, "expected one column input of lists"),
        ({"target": [0, 1]}, "expected the columns input and target"),
        ({"input": pa.array([], pa.list_(pa.float32())), "target": pa.array([], pa.int64())}, "holds no rows"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_says_why(columns, told):
    with pytest.raises(DataError, match=told):
        read(parquet_of(**columns), ".parquet")


def test_a_parquet_file_of_too_many_numbers_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(pq, "LIMIT_VALUES", 1000)
    content = parquet_of(input=[[0.0] * 10] * 100, target=[0] * 100)
    with pytest.raises(DataError, match="more than 1000 numbers"):
        read(content, ".parquet")


def test_without_pyarrow_a_parquet_file_is_refused_with_what_to_install():
    code = "import sys; sys.modules['pyarrow'] = None\nfrom specnorm_core.data import read\nread(b'', '.parquet')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'specnorm[parquet]'" in done.stderr.splitlines()[-1]
