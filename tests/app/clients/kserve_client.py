"""What KServe's own client does with a service: `python kserve_client.py HTTP_URL GRPC_ADDRESS`, where kserve is installed."""

import asyncio
import sys
from collections.abc import Awaitable

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = np.array([[1, 2.5, -3]], np.float32)


def asked(model: str, array: np.ndarray, datatype: str, *, binary: bool, outputs: list[str] | None = None) -> InferRequest:
    given = InferInput("input", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    wanted = [RequestedOutput(name, parameters={"binary_data": binary}) for name in outputs or []]
    return InferRequest(model, [given], request_outputs=wanted or None)


async def refusal(call: Awaitable[object]) -> str:
    """What an error of the service reads like; this environment has no pytest."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return str(error)
    return "it was answered"


async def over_http(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "affine")
    assert not await client.is_model_ready(url, "nobody")
    for binary in (True, False):
        for outputs in (None, ["logits"]):
            request = asked("affine", X, "FP32", binary=binary, outputs=outputs)
            answer = await client.infer(url, request, model_name="affine")
            assert answer.model_name == "affine"
            assert answer.id  # it makes one itself, and gets it back
            np.testing.assert_array_equal(answer.outputs[0].as_numpy(), 2 * X)
            assert answer.parameters["lipschitz_bound"] == 1.0
    half = np.array([[0.5, -1, 2]], np.float16)
    answer = await client.infer(url, asked("half", half, "FP16", binary=True, outputs=["output"]), model_name="half")
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), half)
    for model, array, sentence in (("affine", X[:, :2], "expected shape"), ("nobody", X, "no model")):
        assert sentence in await refusal(client.infer(url, asked(model, array, "FP32", binary=False), model_name=model))
    await client.close()


async def over_grpc(address: str) -> None:
    client = InferenceGRPCClient(address)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("affine")
    given = InferInput("input", [1, 3], "FP32")
    given.set_data_from_numpy(X, binary_data=True)
    answer = await client.infer(InferRequest("affine", [given]))
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), 2 * X)
    await client.close()


if __name__ == "__main__":
    asyncio.run(over_http(sys.argv[1]))
    asyncio.run(over_grpc(sys.argv[2]))
    sys.stdout.write("as it should be\n")
