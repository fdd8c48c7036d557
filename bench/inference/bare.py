"""The least that can answer: a protocol under uvloop that reads nothing of a request, which the load has to send in one piece.

python bench/inference/bare.py constant|run MODEL.onnx PORT
"""

import asyncio
import sys

import numpy as np
import onnxruntime as ort
import uvloop

BODY = b'{"outputs":[{"name":"logits","data":[' + b",".join([b"-0.12345678"] * 10) + b"]}]}"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Bare(asyncio.Protocol):
    def __init__(self, session: ort.InferenceSession | None) -> None:
        self._session = session
        self._row = {"input": np.zeros((1, 64), np.float32)}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        if self._session is not None:
            self._session.run(None, self._row)
        self._transport.write(ANSWER)


async def main(what: str, path: str, port: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) if what == "run" else None
    server = await asyncio.get_running_loop().create_server(lambda: Bare(session), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
