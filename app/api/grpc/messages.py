"""The messages of the protocol's gRPC side, as a table of its field numbers; from it their classes are made.

Only names, numbers and kinds reach the wire, so this is the whole definition. ``*`` marks what is repeated, ``{}`` a map
from strings, ``?`` one of the choices of a parameter. What is not listed here is skipped when it is received.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]  # has no stubs here

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"

ENUMS: Final[dict[str, tuple[str, ...]]] = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16", "TYPE_INT32",
        "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
    "Serving": ("UNKNOWN", "SERVING", "NOT_SERVING"),
}  # fmt: skip

MESSAGES: Final[dict[str, str]] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool=1",
    "ModelReadyRequest": "name:string=1 version:string=2",
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:string*=3",
    "ModelMetadataRequest": "name:string=1 version:string=2",
    "ModelMetadataResponse": "name:string=1 versions:string*=2 platform:string=3 inputs:TensorMetadata*=4 outputs:TensorMetadata*=5",
    "TensorMetadata": "name:string=1 datatype:string=2 shape:int64*=3",
    "InferParameter": "bool_param:bool?=1 int64_param:int64?=2 string_param:string?=3 double_param:double?=4 uint64_param:uint64?=5",
    "InferTensorContents": (
        "bool_contents:bool*=1 int_contents:int32*=2 int64_contents:int64*=3 uint_contents:uint32*=4 uint64_contents:uint64*=5"
        " fp32_contents:float*=6 fp64_contents:double*=7 bytes_contents:bytes*=8"
    ),
    "ModelInferRequest": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:InferParameter{}=4 inputs:InferInputTensor*=5"
        " outputs:InferRequestedOutputTensor*=6 raw_input_contents:bytes*=7"
    ),
    "InferInputTensor": "name:string=1 datatype:string=2 shape:int64*=3 parameters:InferParameter{}=4 contents:InferTensorContents=5",
    "InferRequestedOutputTensor": "name:string=1 parameters:InferParameter{}=2",
    "ModelInferResponse": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:InferParameter{}=4 outputs:InferOutputTensor*=5"
        " raw_output_contents:bytes*=6"
    ),
    "InferOutputTensor": "name:string=1 datatype:string=2 shape:int64*=3 parameters:InferParameter{}=4",
    "ModelStreamInferResponse": "error_message:string=1 infer_response:ModelInferResponse=2",
    "ModelConfigRequest": "name:string=1 version:string=2",
    "ModelConfigResponse": "config:ModelConfig=1",
    "ModelConfig": (
        "name:string=1 platform:string=2 max_batch_size:int32=4 input:ModelInput*=5 output:ModelOutput*=6"
        " instance_group:ModelInstanceGroup*=7 default_model_filename:string=8 dynamic_batching:ModelDynamicBatching=11"
        " parameters:ModelParameter{}=14 backend:string=17"
    ),
    "ModelParameter": "string_value:string=1",
    "ModelInput": "name:string=1 data_type:DataType=2 dims:int64*=4",
    "ModelOutput": "name:string=1 data_type:DataType=2 dims:int64*=3",
    "ModelInstanceGroup": "count:int32=2 kind:Kind=4",
    "ModelDynamicBatching": "",
    "ModelStatisticsRequest": "name:string=1 version:string=2",
    "ModelStatisticsResponse": "model_stats:ModelStatistics*=1",
    "ModelStatistics": (
        "name:string=1 version:string=2 last_inference:uint64=3 inference_count:uint64=4 execution_count:uint64=5"
        " inference_stats:InferStatistics=6 batch_stats:InferBatchStatistics*=7 memory_usage:MemoryUsage*=8"
    ),
    "InferStatistics": (
        "success:StatisticDuration=1 fail:StatisticDuration=2 queue:StatisticDuration=3 compute_input:StatisticDuration=4"
        " compute_infer:StatisticDuration=5 compute_output:StatisticDuration=6 cache_hit:StatisticDuration=7 cache_miss:StatisticDuration=8"
    ),
    "InferBatchStatistics": (
        "batch_size:uint64=1 compute_input:StatisticDuration=2 compute_infer:StatisticDuration=3 compute_output:StatisticDuration=4"
    ),
    "StatisticDuration": "count:uint64=1 ns:uint64=2",
    "MemoryUsage": "type:string=1 id:int64=2 byte_size:uint64=3",
    "RepositoryIndexRequest": "repository_name:string=1 ready:bool=2",
    "RepositoryIndexResponse": "models:ModelIndex*=1",
    "ModelIndex": "name:string=1 version:string=2 state:string=3 reason:string=4",
    "ModelRepositoryParameter": "bool_param:bool?=1 int64_param:int64?=2 string_param:string?=3 bytes_param:bytes?=4",
    "RepositoryModelLoadRequest": "repository_name:string=1 model_name:string=2 parameters:ModelRepositoryParameter{}=3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name:string=1 model_name:string=2 parameters:ModelRepositoryParameter{}=3",
    "RepositoryModelUnloadResponse": "",
    "HealthCheckRequest": "service:string=1",
    "HealthCheckResponse": "status:Serving=1",
}

_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_KINDS: Final = {
    name: getattr(_FIELD, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="specnorm/inference.proto", package=PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            _add(message, field)
    return file


def _add(message: Any, text: str) -> None:
    name, _, rest = text.partition(":")
    kind, _, number = rest.partition("=")
    field = message.field.add(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
    if kind.endswith("{}"):
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add(entry, "key:string=1")
        _add(entry, f"value:{kind.removesuffix('{}')}=2")
        field.label, field.type = _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
        return
    if kind.endswith("*"):
        field.label = _FIELD.LABEL_REPEATED
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    kind = kind.rstrip("*?")
    if kind in _KINDS:
        field.type = _KINDS[kind]
    else:
        field.type = _FIELD.TYPE_ENUM if kind in ENUMS else _FIELD.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


_POOL: Final = descriptor_pool.DescriptorPool()  # of our own: a client in the same process has its own messages of these names
_POOL.Add(_file())

CLASSES: Final[dict[str, Any]] = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES
}
"""The class of every message by its name."""
