"""Signatures for tests: made of real arrays, with output types as the ONNX reference computes them."""

from tactician.testing.calls import make_signature as make_signature
