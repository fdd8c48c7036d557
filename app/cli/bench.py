"""`specnorm bench`: a served model under load, on this machine, beside ONNX Runtime in this process."""

import asyncio
import json
import math
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from app.cli import load, output
from app.cli.remote import Service, Url
from app.cli.workspace import Workspace, registry
from app.cli.workspace import settings as read_settings
from app.errors import InvalidRequestError, SpecnormError, UnavailableError

VARIETY = 16  # different requests, sent in turn
FLOATS = {"FP32": "f4", "FP64": "f8"}
ZEROS = {"BOOL": "?", **{f"{sign}INT{bits}": f"{'u' if sign else 'i'}{bits // 8}" for sign in ("", "U") for bits in (8, 16, 32, 64)}}
COLUMNS = ("data", "rows", "connections", "requests_per_s", "rows_per_s", "p50_ms", "p99_ms", "of_in_process")


def bench(
    *,
    model: Annotated[str, typer.Option("--model", help="Name of the model.")],
    url: Url = None,
    connections: Annotated[str, typer.Option(help="How many connections at once, one case each.")] = "1,16,64",
    rows: Annotated[str, typer.Option(help="Rows of a request, one case each.")] = "1,64",
    binary: Annotated[bool | None, typer.Option("--binary/--json-data", help="Binary or JSON data; without it both.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a case.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="File for a plot, .png or .svg (needs specnorm[plots]).")] = None,
    workspace: Workspace = None,
    as_json: output.Json = False,
) -> None:
    """Measure a running service with your model. The limit in process is measured where the workspace here holds the same file."""
    service = Service(url)
    told = service.get(f"/v2/models/{quote(model)}")
    free = any(-1 in tensor["shape"] for tensor in told["inputs"])
    counts = _counts(rows) if free else [1]  # a model of fixed shapes has no rows to vary
    limits = {count: _limit(told, count, seconds, workspace) for count in counts}
    measured = []
    for kind in (True, False) if binary is None else (binary,):
        for count in counts:
            payloads = [_request(service.url, told, count, number, binary=kind) for number in range(VARIETY)]
            for at_once in _counts(connections):
                case = _case("binary" if kind else "JSON", count, at_once)
                output.note(f"· {case}: {seconds:g} s")
                found = asyncio.run(load.run(_target(service.url), payloads, connections=at_once, seconds=seconds))
                if found.failures:
                    raise UnavailableError(f"{case}: {len(found.failures)} requests failed, the first with {found.failures[0]}")
                measured.append(_row(found, count, at_once, limits[count], binary=kind))
    if plot is not None:
        _plot(measured, model, plot)
        output.note(f"plot written to {plot}")
    output.show(measured, COLUMNS, as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command()(bench)


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"expected counts such as 1,16,64, got {text!r}")
    return [int(word) for word in words]


def _row(found: load.Load, rows: int, connections: int, limit: float | None, *, binary: bool) -> dict[str, Any]:
    return {
        "data": "binary" if binary else "JSON",
        "rows": rows,
        "connections": connections,
        "requests_per_s": round(found.rate, 1),
        "rows_per_s": round(found.rate * rows, 1),
        "p50_ms": round(1e3 * found.percentile(50), 3),
        "p99_ms": round(1e3 * found.percentile(99), 3),
        "in_process_rows_per_s": limit and round(limit, 1),
        "of_in_process": limit and f"{100 * found.rate * rows / limit:.0f} %",
    }


def _target(url: str) -> load.Target:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return load.Target(parts.hostname or "", parts.port or (443 if secure else 80), ssl.create_default_context() if secure else None)


def _feed(told: dict[str, Any], rows: int, number: int) -> Iterator[tuple[str, str, Any]]:
    """Give name, datatype and numbers for every input: between 0 and 1, free dimensions as long as there are rows."""
    import numpy as np  # noqa: PLC0415 - a tenth of a second that only this command needs

    rng = np.random.default_rng(number)
    for tensor in told["inputs"]:
        name, datatype = tensor["name"], tensor["datatype"]
        shape = [rows if size == -1 else size for size in tensor["shape"]]
        if datatype in FLOATS:
            yield name, datatype, rng.random(shape).astype(FLOATS[datatype])
        elif datatype in ZEROS:
            yield name, datatype, np.zeros(shape, ZEROS[datatype])
        else:
            known = ", ".join(sorted((*FLOATS, *ZEROS)))
            raise InvalidRequestError(f"Input {name!r} is {datatype}; inputs are made up here for {known} only.")


def _request(url: str, told: dict[str, Any], rows: int, number: int, *, binary: bool) -> bytes:
    inputs, blobs = [], []
    for name, datatype, array in _feed(told, rows, number):
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            blobs.append(array.tobytes())
        else:
            entry["data"] = array.ravel().tolist()
        inputs.append(entry)
    document = {"inputs": inputs, **({"parameters": {"binary_data_output": True}} if binary else {})}
    text = json.dumps(document).encode()
    parts = urlsplit(url)
    lines = [f"POST {parts.path}/v2/models/{quote(told['name'])}/infer HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"Authorization: Bearer {key}"] if (key := os.environ.get("SPECNORM_API_KEY")) else []
    lines += [f"Inference-Header-Content-Length: {len(text)}"] if binary else []
    body = b"".join((text, *blobs))
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _limit(told: dict[str, Any], rows: int, seconds: float, workspace: Path | None) -> float | None:
    """Return the rows/s of one thread of ONNX Runtime, None where the file that is served is not in the workspace."""
    import onnxruntime as ort  # noqa: PLC0415 - as above

    from export.bundle import MODEL  # noqa: PLC0415 - as above

    properties = told["properties"]
    try:
        models = registry(read_settings(workspace=workspace).workspace)
        manifest = models.manifest(told["name"], properties["version"])
        content = models.file(told["name"], properties["version"], MODEL)
    except SpecnormError:
        return None
    if manifest.model_digest != properties["model_digest"]:
        return None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {name: array for name, _, array in _feed(told, rows, 0)}
    session.run(None, feed)
    output.note(f"· in process, {rows} rows: {seconds:g} s")
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        session.run(None, feed)
        runs += 1
    return rows * runs / (time.perf_counter() - begun)


def _case(data: str, rows: int, connections: int) -> str:
    return f"{data}, {rows} row{'s' * (rows != 1)}, {connections} connection{'s' * (connections != 1)}"


def _plot(measured: Sequence[dict[str, Any]], model: str, path: Path) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        raise UnavailableError("A plot needs matplotlib: install specnorm[plots].") from None
    figure = Figure(figsize=(8, 1 + 0.4 * len(measured)), layout="constrained")
    axes = figure.subplots()
    rates = [row["rows_per_s"] for row in measured]
    bars = axes.barh([_case(row["data"], row["rows"], row["connections"]) for row in measured], rates)
    axes.bar_label(bars, fmt="{:,.0f}", padding=4)
    most = max(*rates, *[row["in_process_rows_per_s"] or 0.0 for row in measured])
    if min(rates) > 0:  # one row for each request gives a hundredth of what sixty-four give, and is to be seen beside them
        axes.set_xscale("log")
        axes.set_xlim(10 ** math.floor(math.log10(min(rates)) - 0.3), 4 * most)
    for at, row in enumerate(measured):
        if row["in_process_rows_per_s"]:
            axes.plot(row["in_process_rows_per_s"], at, "k|", markersize=14)
    axes.invert_yaxis()
    axes.set(xlabel="rows per second, on a logarithmic scale; | is ONNX Runtime in process", title=model)
    figure.savefig(path)
