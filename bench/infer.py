"""Requests per second of the whole service over HTTP: a 64-128-128-10 network, FP32 rows, raw sockets as clients.

.venv/bin/python bench/infer.py [--seconds 3] [--connections 1,16,64] [--rows 1,64]
"""

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from app.db import connect
from app.inference.session import Session
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export import bundle

WIDTHS = (64, 128, 128, 10)


def network() -> tuple[bundle.Manifest, bytes]:
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}
    last = "input"
    for at, (wide, narrow) in enumerate(itertools.pairwise(WIDTHS)):
        final = at == len(WIDTHS) - 2
        weights[f"w{at}"] = (rng.standard_normal((wide, narrow)) / wide**0.5).astype(np.float32)
        weights[f"b{at}"] = np.zeros(narrow, np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{at}", f"b{at}"], ["logits" if final else f"h{at}"]))
        if not final:
            nodes.append(helper.make_node("Relu", [f"h{at}"], [f"r{at}"]))
        last = f"r{at}"
    nodes.append(helper.make_node("ReduceMax", ["logits"], ["certified_radius"], axes=[1], keepdims=0))
    shapes = {"input": [None, WIDTHS[0]], "logits": [None, WIDTHS[-1]], "certified_radius": [None]}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes, "g", [info["input"]], [info["logits"], info["certified_radius"]], [numpy_helper.from_array(w, n) for n, w in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    tensors = {
        name: bundle.Tensor(name=name, datatype="FP32", shape=tuple(-1 if size is None else size for size in shape))
        for name, shape in shapes.items()
    }
    manifest = bundle.Manifest(
        signature=bundle.Signature(
            inputs=(tensors["input"],), outputs=(tensors["logits"], tensors["certified_radius"]), rows_independent=True
        ),
        lipschitz=bundle.Lipschitz(bound=None, rigorous=False, method=None, reason="random weights"),
        origin="bench",
        files={bundle.MODEL: bundle.digest(model)},
    )
    return manifest, model


def request(rows: int, *, binary: bool) -> bytes:
    data = np.random.default_rng(1).random((rows, WIDTHS[0]), dtype=np.float32)
    entry: dict[str, Any] = {"name": "input", "shape": list(data.shape), "datatype": "FP32"}
    extra = b""
    if binary:
        raw = data.tobytes()
        entry["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        extra = f"Inference-Header-Content-Length: {len(text)}\r\n".encode()
        body = text + raw
    else:
        body = json.dumps({"inputs": [{**entry, "data": data.ravel().tolist()}]}).encode()
    head = b"POST /v2/models/bench/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n" + extra
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def client(port: int, payload: bytes, until: float, taken: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (start := time.perf_counter()) < until:
        writer.write(payload)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the service answered {head[:200]!r}")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(length)
        taken.append(time.perf_counter() - start)
    writer.close()


async def load(port: int, payload: bytes, connections: int, seconds: float) -> tuple[float, float, float]:
    await asyncio.gather(*(client(port, payload, time.perf_counter() + 0.3, []) for _ in range(connections)))
    taken: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(client(port, payload, start + seconds, taken) for _ in range(connections)))
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return len(taken) / (time.perf_counter() - start), float(p50), float(p99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--rows", default="1,64")
    options = parser.parse_args()
    manifest, model = network()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        registry = Registry(connect(workspace), Blobs(workspace / "blobs"))
        version = registry.publish("bench", manifest, {bundle.MODEL: model})
        registry.promote("bench", version, why="bench", who="bench")
        registry.database.dispose()
        session = Session(model, manifest, Settings(device="cpu", threads=1))
        one = np.zeros((1, WIDTHS[0]), np.float32)
        begun = time.perf_counter()
        for _ in range(5000):
            session.run({"input": one})
        print(f"in process, 1 row, session.run alone: {5000 / (time.perf_counter() - begun):.0f} runs/s")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "SPECNORM_WORKSPACE": folder,
            "SPECNORM_WORKER": "none",
            "SPECNORM_DEVICE": "cpu",
            "SPECNORM_THREADS": "1",
        }
        code = "import uvicorn; from app.main import create_app; from app.settings import Settings; "
        code += f"uvicorn.run(create_app(Settings()), port={port}, log_level='error', access_log=False)"
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as server:
            try:
                measure(server, port, options)
            finally:
                server.terminate()


def measure(server: "subprocess.Popen[bytes]", port: int, options: argparse.Namespace) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.05)
    for rows in map(int, options.rows.split(",")):
        for binary in (False, True):
            for connections in map(int, options.connections.split(",")):
                rate, p50, p99 = asyncio.run(load(port, request(rows, binary=binary), connections, options.seconds))
                kind = "binary" if binary else "JSON"
                print(f"{kind:6} {rows:3} rows {connections:3} connections: {rate:6.0f} requests/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms")
    status = Path(f"/proc/{server.pid}/status").read_text()
    print("RSS of the service:", next(line.split(":")[1].strip() for line in status.splitlines() if line.startswith("VmRSS")))


if __name__ == "__main__":
    main()
