"""The run path: a session over an engine, without ONNX and without a compiler."""
