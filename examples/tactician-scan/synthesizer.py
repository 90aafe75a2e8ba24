"""The model that the example runs: an additive synthesizer, as in DDSP (Engel et al., 2020), as ONNX.

    audio[b, t] = sum over h of amplitude[b, h, t] * sin(h * sum over s <= t of frequency[b, s])

Its cumulative sum over time is a chain of additions: there ``tactician_scan`` has something to offer.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SAMPLE_RATE = 16_000
HARMONICS = 32


def synthesizer(harmonics: int = HARMONICS) -> onnx.ModelProto:
    """Return the model.

    Inputs are ``frequency`` float32[batch, 1, samples], in radians per sample, and ``amplitude``
    float32[batch, harmonics, samples]; the output is ``audio`` float32[batch, samples].
    """
    number = np.arange(1, harmonics + 1, dtype=np.float32).reshape(1, harmonics, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["frequency", "harmonic"], ["frequencies"], name="frequencies"),
            helper.make_node("CumSum", ["frequencies", "time"], ["phases"], name="phases"),
            helper.make_node("Sin", ["phases"], ["waves"], name="oscillators"),
            helper.make_node("Mul", ["waves", "amplitude"], ["voices"], name="voices"),
            helper.make_node("ReduceSum", ["voices", "harmonic_axis"], ["audio"], name="mix", keepdims=0),
        ],
        "synthesizer",
        [
            helper.make_tensor_value_info("frequency", TensorProto.FLOAT, ["batch", 1, "samples"]),
            helper.make_tensor_value_info("amplitude", TensorProto.FLOAT, ["batch", harmonics, "samples"]),
        ],
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", "samples"])],
        [
            numpy_helper.from_array(number, "harmonic"),
            numpy_helper.from_array(np.array(-1), "time"),
            numpy_helper.from_array(np.array([1]), "harmonic_axis"),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="tactician example"
    )
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model


def note(seconds: float = 0.5, harmonics: int = HARMONICS) -> dict[str, np.ndarray]:
    """Return the inputs for one note: 110 Hz with vibrato, harmonics that fade like a plucked string's."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = 110 * 2 ** (0.02 * np.sin(2 * np.pi * 5 * time))
    number = np.arange(1, harmonics + 1)[:, None]
    amplitude = np.exp(-number * time) / number
    return {
        "frequency": (2 * np.pi * hertz / SAMPLE_RATE).astype(np.float32)[None, None],
        "amplitude": amplitude.astype(np.float32)[None],
    }


def exact(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the same audio, float64[batch, samples], computed in double precision."""
    frequency, amplitude = (inputs[name].astype(np.float64) for name in ("frequency", "amplitude"))
    number = np.arange(1, amplitude.shape[1] + 1)[:, None]
    return (amplitude * np.sin(np.cumsum(frequency * number, axis=-1))).sum(axis=1)
