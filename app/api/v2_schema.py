"""The OpenAPI text of ``/v2``, which the raw application cannot derive by itself."""

from typing import Any, Final

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_DATATYPES: Final = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
_ERRORS: Final = {
    "400": "Not what was expected; the sentence says what was.",
    "401": "A key is needed.",
    "403": "The key lacks the scope, or a page of another origin asks.",
    "404": "No such model, version or route.",
    "408": "The body did not arrive in time.",
    "413": "The body is larger than the limit.",
    "415": "The Content-Encoding is neither gzip nor deflate.",
    "429": "Too many rows wait; try again after Retry-After.",
    "503": "It cannot be served now; try again after Retry-After.",
}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SHAPE: Final = _array({"type": "integer", "minimum": 0, "maximum": 2**31 - 1})
_DATA: Final = {"type": "array", "items": {}, "description": "Row-major, flat or nested as the shape."}
_DURATION: Final = _object({"count": _COUNT, "ns": _COUNT}, "count", "ns")

SCHEMAS: Final[dict[str, Any]] = {
    "V2Error": _object({"error": _TEXT}, "error"),
    "V2Parameters": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    "V2TensorMetadata": _object(
        {"name": _TEXT, "datatype": {"enum": _DATATYPES}, "shape": _array({"type": "integer", "minimum": -1})}, "name", "datatype", "shape"
    ),
    "V2Input": _object(
        {"name": _TEXT, "datatype": {"enum": _DATATYPES}, "shape": _SHAPE, "parameters": _ref("V2Parameters"), "data": _DATA},
        "name",
        "datatype",
        "shape",
    ),
    "V2RequestedOutput": _object({"name": _TEXT, "parameters": _ref("V2Parameters")}, "name"),
    "V2Output": _object(
        {"name": _TEXT, "datatype": {"enum": _DATATYPES}, "shape": _SHAPE, "parameters": _ref("V2Parameters"), "data": _DATA},
        "name",
        "datatype",
        "shape",
    ),
    "V2InferRequest": _object(
        {
            "id": _TEXT,
            "parameters": _ref("V2Parameters"),
            "inputs": _array(_ref("V2Input")),
            "outputs": _array(_ref("V2RequestedOutput")),
        },
        "inputs",
    ),
    "V2InferResponse": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": {
                "type": "object",
                "description": "`lipschitz_bound`, or `lipschitz_reason` where there is none; `input_out_of_range` where it is.",
                "properties": {
                    "model_digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    "lipschitz_bound": {"type": "number"},
                    "lipschitz_reason": _TEXT,
                    "input_out_of_range": {"const": True},
                },
                "required": ["model_digest"],
            },
            "outputs": _array(_ref("V2Output")),
        },
        "model_name",
        "model_version",
        "parameters",
        "outputs",
    ),
    "V2ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}, "name", "version", "extensions"),
    "V2ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _array(_TEXT),
            "platform": _TEXT,
            "inputs": _array(_ref("V2TensorMetadata")),
            "outputs": _array(_ref("V2TensorMetadata")),
            "properties": {"type": "object", "additionalProperties": _TEXT},
        },
        "name",
        "platform",
        "inputs",
        "outputs",
    ),
    "V2ModelConfig": {
        **_object({"name": _TEXT, "platform": _TEXT, "backend": _TEXT, "max_batch_size": _COUNT}, "name", "platform", "max_batch_size"),
        "additionalProperties": True,
    },
    "V2Statistics": _object(
        {
            "model_stats": _array(
                _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": {"type": "object", "additionalProperties": _DURATION},
                        "response_stats": {"type": "object"},
                        "batch_stats": _array({"type": "object"}),
                        "memory_usage": _array({"type": "object"}),
                    },
                    "name",
                    "version",
                    "inference_stats",
                )
            )
        },
        "model_stats",
    ),
    "V2Index": _array(
        _object(
            {"name": _TEXT, "version": _TEXT, "state": {"enum": ["READY", "UNAVAILABLE", "LOADING"]}, "reason": _TEXT},
            "name",
            "version",
            "state",
            "reason",
        )
    ),
}


def _operation(method: str, summary: str, answer: dict[str, Any], *, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    where = {"model": _NAME, "version": r"^[1-9][0-9]*$"}
    operation: dict[str, Any] = {
        "tags": ["inference"],
        "summary": summary,
        "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
            for name, pattern in where.items()
            if f"{{{name}}}" in path
        ],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{
                status: {"description": text, "content": {"application/json": {"schema": _ref("V2Error")}}}
                for status, text in _ERRORS.items()
            },
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": "$ref" in body, "content": {"application/json": {"schema": body}}}
    return {method: operation}


def openapi() -> dict[str, Any]:
    """Return the paths and the component schemas of ``/v2``, to be merged into the whole document."""
    empty = {"type": "object"}
    paths: dict[str, dict[str, Any]] = {}

    def add(method: str, path: str, summary: str, answer: dict[str, Any], body: dict[str, Any] | None = None) -> None:
        paths[path] = _operation(method, summary, answer, path=path, body=body)

    add("get", "/v2", "Server metadata", _ref("V2ServerMetadata"))
    add("get", "/v2/health/live", "Whether the process lives", _object({"live": {"const": True}}, "live"))
    told = {"type": "object", "additionalProperties": _TEXT, "description": "By model, why another version than the live one answers."}
    add(
        "get",
        "/v2/health/ready",
        "Whether every model is ready",
        _object({"live": {"const": True}, "ready": {"const": True}, "problems": told}, "ready"),
    )
    add("get", "/v2/models/stats", "Statistics of all models", _ref("V2Statistics"))
    for base, which in (("/v2/models/{model}", "the live version"), ("/v2/models/{model}/versions/{version}", "one version")):
        add("get", base, f"Metadata of {which}", _ref("V2ModelMetadata"))
        add("get", f"{base}/ready", f"Whether {which} is ready", _object({"name": _TEXT, "ready": {"const": True}}, "name", "ready"))
        add("get", f"{base}/config", f"Configuration of {which}", _ref("V2ModelConfig"))
        add("get", f"{base}/stats", f"Statistics of {which}", _ref("V2Statistics"))
        add("post", f"{base}/infer", f"Inference by {which}", _ref("V2InferResponse"), _ref("V2InferRequest"))
    add("post", "/v2/repository/index", "All versions and their states", _ref("V2Index"), _object({"ready": {"type": "boolean"}}))
    add("post", "/v2/repository/models/{model}/load", "Read the promoted version again, or take in the file that comes along", empty, empty)
    add("post", "/v2/repository/models/{model}/unload", "Serve the model no more until it is loaded", empty, empty)
    return {"paths": paths, "components": {"schemas": SCHEMAS}}
