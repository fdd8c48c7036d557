"""The hot path: protocol codec, batching, one ONNX Runtime session a version, and what is live. It knows no HTTP and no SQL."""
