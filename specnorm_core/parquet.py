"""Parquet files as arrays; the one module that needs pyarrow."""

import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from specnorm_core.data import LIMIT_VALUES, DataError


def arrays(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs ``(N, ...)`` and targets ``(N,)``: the columns ``input`` and ``target``, or one column per number and the target last.

    Raises:
        DataError: what keeps the file from being read, with the row where it is one.
    """
    table = _table(content)
    names = table.column_names
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"expected the columns input and target, or several columns of numbers, found {names}"[:200])
    if table.num_rows == 0:
        raise DataError("the data set holds no rows: at least two are needed")
    target = "target" if "target" in names else names[-1]
    features = [_array(table[name], name) for name in names if name != target]
    inputs = features[0] if len(features) == 1 and features[0].ndim > 1 else _side_by_side(features)
    return inputs, _array(table[target], target)


def _table(content: bytes) -> Any:
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        if sum(group.column(number).num_values for group in groups for number in range(group.num_columns)) <= LIMIT_VALUES:
            return file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError):
        raise DataError("not a Parquet file") from None
    raise DataError(f"the data set holds more than {LIMIT_VALUES} numbers")


def _side_by_side(columns: list[np.ndarray]) -> np.ndarray:
    if any(column.ndim != 1 for column in columns):
        raise DataError("expected one column input of lists, or several columns of one number each")
    return np.stack(columns, axis=1)


def _array(column: Any, name: str) -> np.ndarray:
    """Return a column of numbers, or of lists of them that are of one length all the way down."""
    part, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_list(part.type) or pa.types.is_large_list(part.type) or pa.types.is_fixed_size_list(part.type):
        lengths = compute.list_value_length(part).fill_null(-1).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero((lengths != lengths[0]) | (lengths <= 0))
        if odd.size:
            row = int(odd[0]) // math.prod(shape[1:]) + 1
            raise DataError(f"expected lists of equal length in the column {name!r}, none of them empty or missing", row=row)
        shape.append(int(lengths[0]))
        part = part.flatten()
    if not (pa.types.is_integer(part.type) or pa.types.is_floating(part.type)):
        raise DataError(f"expected numbers in the column {name!r}, got {part.type}"[:200])
    if part.null_count:
        first = int(np.flatnonzero(part.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"a value is missing in the column {name!r}", row=first // math.prod(shape[1:]) + 1)
    return np.array(part.to_numpy(zero_copy_only=False)).reshape(shape)  # a copy: the buffers of pyarrow cannot be written
