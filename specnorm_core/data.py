"""Data sets: the digits that scikit-learn ships, and JSONL, CSV, NPZ and (with pyarrow) Parquet files; otherwise numpy only.

A reader judges every row and names the line of the first bad one. Nothing is ever unpickled.
"""

import csv
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_VALUES = 2**28
"""Most numbers in one data set: 1 GiB of float32."""


class DataError(ValueError):
    """A data set cannot be used; ``line`` or, of a format without lines, ``row`` (from 1) is where, when that is one place."""

    def __init__(self, message: str, line: int | None = None, *, row: int | None = None) -> None:
        where = "" if line is row is None else f"row {row}: " if line is None else f"line {line}: "
        super().__init__(where + message)
        self.line = line
        self.row = row


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs ``x (N, *shape)`` float32, targets ``y (N,)`` int64 classes or float32 values, and the sha256 that names the content."""

    x: np.ndarray
    y: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.x)

    @property
    def classes(self) -> int:
        """The number of classes: the largest label and one."""
        return int(self.y.max()) + 1

    def subset(self, rows: np.ndarray) -> "Dataset":
        """Return the given rows; the digest stays that of the whole."""
        return Dataset(self.x[rows], self.y[rows], self.digest)

    def split(self, fraction: float, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """Return (the rest, ``fraction`` of the rows), drawn by ``seed``."""
        order = np.random.default_rng(seed).permutation(len(self))
        cut = len(self) - round(len(self) * fraction)
        return self.subset(order[:cut]), self.subset(order[cut:])


def assemble(inputs: Any, targets: Any) -> Dataset:
    """Return the data set of these rows, judged.

    Raises:
        DataError: no rows; a value that is not finite; targets that are no classes and no numbers.
    """
    x = np.asarray(inputs, dtype=np.float32)
    y = np.asarray(targets)
    if x.ndim and len(x) == 0:
        raise DataError("the data set holds no rows: at least two are needed")
    if x.ndim < 2 or x[0].size == 0:
        raise DataError(f"an input must be a non-empty list of numbers; the inputs have shape {x.shape}")
    if y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{len(x)} inputs need {len(x)} targets of one number each, got targets of shape {y.shape}")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1) | ~np.isfinite(y.astype(np.float64)))
    if bad.size:
        raise DataError("a value is NaN, infinite, or too large for float32", row=int(bad[0]) + 1)
    if np.all(y == np.floor(y)):
        negative = np.flatnonzero(y < 0)
        if negative.size:
            raise DataError(f"a class label must be an integer from 0, got {y[negative[0]]:g}", row=int(negative[0]) + 1)
        y = y.astype(np.int64)
    else:
        y = y.astype(np.float32)
    content = hashlib.sha256(repr((x.shape, y.dtype.str)).encode())
    content.update(np.ascontiguousarray(x).tobytes())
    content.update(np.ascontiguousarray(y).tobytes())
    return Dataset(x, y, content.hexdigest())


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _numbers(value: Any) -> Any:
    """Return ``value`` (a number or nested lists of them) as an array, refusing everything else that numpy would take."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, bool) or not isinstance(item, int | float):
            raise DataError(f"expected a number, got {str(item)[:40]!r}")
    try:
        return np.asarray(value, dtype=np.float64)
    except OverflowError:
        raise DataError("a value is NaN, infinite, or too large for float32") from None
    except ValueError:
        raise DataError("expected lists of equal length all the way down") from None


def _rows(rows: Iterable[tuple[int, Any, Any]]) -> Dataset:
    """Return the data set of ``(line, input, target)`` rows, whose inputs must share one shape."""
    inputs: list[np.ndarray] = []
    targets: list[float] = []
    lines: list[int] = []
    for line, value, target in rows:
        try:
            x, y = _numbers(value), _numbers(target)
        except DataError as error:
            raise DataError(str(error), line) from None
        if inputs and x.shape != inputs[0].shape:
            raise DataError(f"the input has shape {x.shape}, those before it {inputs[0].shape}", line)
        if x.ndim == 0 or x.size == 0 or y.ndim != 0:
            raise DataError("expected an input that is a list of numbers and a target that is one number", line)
        if len(inputs) * x.size > LIMIT_VALUES:
            raise DataError(f"the data set holds more than {LIMIT_VALUES} numbers", line)
        with np.errstate(over="ignore"):
            single = x.astype(np.float32)
        if not (np.isfinite(single).all() and math.isfinite(float(y))):
            raise DataError("a value is NaN, infinite, or too large for float32", line)
        inputs.append(single)
        targets.append(float(y))
        lines.append(line)
    if not inputs:
        raise DataError("the data set holds no rows: at least two are needed")
    negative = next((i for i, y in enumerate(targets) if y < 0 and float(y).is_integer()), None)
    if negative is not None and all(float(y).is_integer() for y in targets):
        raise DataError(f"a class label must be an integer from 0, got {targets[negative]:g}", lines[negative])
    return assemble(np.stack(inputs), np.asarray(targets))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text", content[: error.start].count(b"\n") + 1) from None


def read_jsonl(content: bytes) -> Dataset:
    """Read lines of ``{"input": [...], "target": ...}``; empty lines are passed over."""

    def rows() -> Iterable[tuple[int, Any, Any]]:
        for line, text in enumerate(_text(content).splitlines(), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value is out of range or nested too deep"
                raise DataError(f"not valid JSON ({reason})", line) from None
            if not isinstance(row, dict) or "input" not in row or "target" not in row:
                raise DataError('expected an object {"input": [...], "target": ...}', line)
            yield line, row["input"], row["target"]

    return _rows(rows())


def read_csv(content: bytes) -> Dataset:
    """Read a CSV file with a header; the target is the column ``target``, or else the last."""

    def rows() -> Iterable[tuple[int, Any, Any]]:
        reader = csv.reader(io.StringIO(_text(content)))
        try:
            header = next(reader, None)
            if header is None or len(header) < 2:
                raise DataError("expected a header of at least two columns", 1)
            _judge_header(header)
            at = header.index("target") if "target" in header else len(header) - 1
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"expected {len(header)} columns as in the header, got {len(row)}", reader.line_num)
                try:
                    values = [_number(cell) for cell in row]
                except ValueError as error:
                    raise DataError(f"{str(error)[:80]}", reader.line_num) from None
                yield reader.line_num, values[:at] + values[at + 1 :], values[at]
        except csv.Error as error:
            raise DataError(f"not valid CSV ({error})", reader.line_num) from None

    return _rows(rows())


def _number(cell: str) -> float:
    if "_" in cell:  # as in Python's own source, but in no file of data
        raise ValueError(f"could not convert string to float: {cell[:40]!r}")
    return float(cell)


def _judge_header(header: list[str]) -> None:
    if header.count("target") > 1:
        raise DataError("the header has more than one column 'target'", 1)
    try:
        numbers = [_number(cell) for cell in header]
    except ValueError:
        return
    if numbers[-1] - numbers[0] != len(header) - 1 or numbers != sorted(numbers) or numbers[0] not in {0, 1}:  # else names as pandas gives
        raise DataError("expected a header, got a row of numbers, which would be lost: put the names of the columns above it", 1)


def _judge_claims(archive: zipfile.ZipFile) -> None:
    """Refuse an array whose head claims more numbers than come after it: room for them would be made first."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    for entry in archive.infolist():
        with archive.open(entry) as stream:
            read_head = readers.get(np.lib.format.read_magic(stream))
            if read_head is None:
                continue
            shape, _, dtype = read_head(stream)
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise DataError(f"{entry.filename[:40]} claims {math.prod(shape)} numbers, and does not hold them")


def read_npz(content: bytes) -> Dataset:
    """Read arrays ``x (N, ...)`` and ``y (N,)``; object arrays (pickle) and archives that unpack to too much are refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > 16 * LIMIT_VALUES:
                raise DataError(f"the archive unpacks to {unpacked} bytes, more than {16 * LIMIT_VALUES}")
            _judge_claims(archive)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            missing = sorted({"x", "y"} - set(arrays.files))
            if missing:
                raise DataError(f"expected the arrays x and y, found {sorted(arrays.files)}")
            x, y = arrays["x"], arrays["y"]
    except DataError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError):
        raise DataError("not an NPZ file of plain numeric arrays (object arrays are never read)") from None
    if x.dtype.kind not in "buif" or y.dtype.kind not in "buif":
        raise DataError(f"expected numeric arrays, got x of {x.dtype} and y of {y.dtype}")
    with np.errstate(over="ignore"):
        return assemble(x, y)


def read_parquet(content: bytes) -> Dataset:
    """Read a column ``input`` of lists and a column ``target``, or, as of a CSV file, one column per number; pyarrow reads it."""
    try:
        from specnorm_core.parquet import arrays  # noqa: PLC0415  # an extra
    except ImportError:
        raise DataError("a .parquet file is read by the package pyarrow, which is not installed: pip install 'specnorm[parquet]'") from None
    with np.errstate(over="ignore"):
        return assemble(*arrays(content))


FORMATS: dict[str, Callable[[bytes], Dataset]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".npz": read_npz,
    ".parquet": read_parquet,
}


def read(content: bytes, suffix: str) -> Dataset:
    """Return the data set in ``content``, of the format that ``suffix`` (as ``.csv``) names.

    Raises:
        DataError: no such format, or a row that cannot be used; the sentence says what, and where.
    """
    if suffix.lower() not in FORMATS:
        raise DataError(f"a data set must be a file of {', '.join(sorted(FORMATS))}; got {suffix or 'no suffix'!r}")
    return FORMATS[suffix.lower()](content)


def load(source: str | Path) -> Dataset:
    """Return the data set ``digits`` (1,797 real images of 8 x 8 pixels from 0 to 16), or that of a file.

    Raises:
        DataError: as :func:`read`; or there is no such file.
    """
    if str(source) == "digits":
        from sklearn.datasets import load_digits  # noqa: PLC0415  # scikit-learn takes a second to import

        digits = load_digits()
        return assemble(digits.data, digits.target)
    path = Path(source)
    try:
        return read(path.read_bytes(), path.suffix)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
