"""The process that makes one attempt at one job: the only room of the service that may import torch and onnx."""
