"""The rows of a job's data set, judged against the model that is to learn them."""

from pathlib import PurePath

import numpy as np

from app.jobs.attempt import Upload
from app.jobs.request import Hyperparameters
from app.registry.shelf import Shelf
from app.worker.failure import JobFailedError
from export.bundle import Manifest
from specnorm_core.data import DataError, Dataset, read


def load(blobs: Shelf, upload: Upload, manifest: Manifest, hyperparameters: Hyperparameters, *, param: str) -> Dataset:
    """Return the data set of an upload, its inputs in the shape that the model takes.

    Raises:
        JobFailedError: with the code ``bad_data``: what is wrong, where, and what was expected.
    """
    content = blobs.get(upload.digest)
    suffix = PurePath(upload.filename).suffix.lower()
    try:
        data = read(content, suffix)
    except DataError as error:
        raise JobFailedError("bad_data", f"{upload.filename}: {error}", param=param) from None
    problem = _judge(data, manifest, hyperparameters) or (_unlearnable(data) if param == "training_file" else None)
    if problem is not None:
        message, row = problem
        line = None if row is None else _line(content, suffix, row)
        where = "" if row is None else f"row {row + 1}: " if line is None else f"line {line}: "
        raise JobFailedError("bad_data", f"{upload.filename}: {where}{message}", param=param)
    shape = manifest.signature.inputs[0].shape[1:]
    return Dataset(np.ascontiguousarray(data.x.reshape(len(data.x), *shape)), data.y, data.digest)


def _judge(data: Dataset, manifest: Manifest, hyperparameters: Hyperparameters) -> tuple[str, int | None] | None:
    """Return what keeps the model from learning ``data``, with the row where it is one row, or None."""
    expected, got = manifest.signature.inputs[0].shape[1:], data.x.shape[1:]
    if got not in {expected, (int(np.prod(expected)),)}:
        numbers = f"give {int(np.prod(expected))} numbers per row, and the target"
        return f"the model takes inputs of shape {list(expected)}, the data set has {list(got)}: {numbers}", None
    outputs = manifest.signature.outputs[0].shape[-1]
    if hyperparameters.loss == "mse":
        return None if outputs == 1 else (f"the loss mse needs a model of one output, this one has {outputs}", None)
    if data.y.dtype.kind != "i":
        row = int(np.flatnonzero(data.y != np.floor(data.y))[0])
        return f"the loss {hyperparameters.loss} expects class labels, got the target {data.y[row]:g}: use the loss mse for values", row
    beyond = np.flatnonzero(data.y >= outputs)
    if beyond.size:
        row = int(beyond[0])
        return f"the model expects class labels from 0 to {outputs - 1}, got {int(data.y[row])}: leave the row out, or relabel it", row
    return None


def _unlearnable(data: Dataset) -> tuple[str, None] | None:
    """Return why nothing can be learned from ``data``, or None."""
    if len(data) < 2:
        return "the data set has one row: at least two are needed, of different targets", None
    if (data.y == data.y[0]).all():
        kind = "the class" if data.y.dtype.kind == "i" else "the target"
        return f"all {len(data)} rows have {kind} {data.y[0]:g}: add rows of others, or there is nothing to tell apart", None
    if (data.x == data.x[0]).all():
        return f"all {len(data)} rows have the same input but not the same target: check how the file was written", None
    return None


def _line(content: bytes, suffix: str, row: int) -> int | None:
    """Return the line (from 1) of a row of a text format, whose readers pass over empty lines."""
    if suffix not in {".csv", ".jsonl"}:
        return None
    filled = [number for number, text in enumerate(content.decode("utf-8-sig").splitlines(), 1) if text.strip()]
    return filled[row + (suffix == ".csv")]
