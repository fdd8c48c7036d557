"""The Open Inference Protocol over gRPC: the extra `grpc`, on the same core as its HTTP side."""
