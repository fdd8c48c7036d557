"""The peer: what somebody writes who serves an ONNX model with FastAPI and pydantic, and knows both.

Bodies are models, the endpoint is a coroutine (a thread per request is slower for a model this small), uvloop and
httptools, no access log, one thread in ONNX Runtime. No keys, limits or metrics: in its favour.

python bench/inference/plain.py MODEL.onnx PORT
"""

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def application(path: str) -> FastAPI:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    app = FastAPI()

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.post("/v2/models/{model}/infer")
    async def infer(model: str, request: InferRequest) -> InferResponse:
        feed = {tensor.name: np.array(tensor.data, dtype=np.float32).reshape(tensor.shape) for tensor in request.inputs}
        try:
            results = session.run(names, feed)
        except Exception as error:
            raise HTTPException(400, str(error)) from None
        outputs = [
            Tensor(name=name, shape=list(array.shape), datatype="FP32", data=array.ravel().tolist())
            for name, array in zip(names, results, strict=True)
        ]
        return InferResponse(model_name=model, model_version="1", id=request.id, outputs=outputs)

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="error", access_log=False)
