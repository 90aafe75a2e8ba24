"""tactician as an ONNX backend: what the ONNX project's own conformance suite drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType
from tactician.builder import build
from tactician.config import BuilderConfig
from tactician.runtime.session import Session

TARGETS = {DeviceType.CPU: "cpu", DeviceType.CUDA: "cuda"}


class TacticianRep(BackendRep):
    """A prepared model."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run on ``inputs``: arrays in the order of the model's inputs, or by name."""
        if not isinstance(inputs, Mapping):
            values = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
            names = [spec.name for spec in self.session.inputs]
            inputs = dict(zip(names, values, strict=False))
        return tuple(self.session.run(inputs).values())


class TacticianBackend(Backend):
    """Builds and runs ONNX models; ``CPU`` and ``CUDA`` are the targets of these names."""

    # a process for each of thousands of small models would take longer than all of them
    config = BuilderConfig(avg_timing_iterations=1, use_timing_cache=False, max_candidates=1, isolate=False)
    """How models are built: correctness is asked for, not speed, so one checked candidate is enough."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TacticianRep:
        """Build ``model`` for ``device``."""
        return TacticianRep(Session(build(model, cls.config, target=TARGETS[Device(device).type])))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Build ``model`` and run it once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Build a model of one node and run it once."""
        arrays = [np.asarray(x) for x in inputs]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in zip(node.input, arrays, strict=True)
        ]
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = onnx.helper.make_graph([node], "node", values, results)
        return cls.run_model(onnx.helper.make_model(graph), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether ``device`` is there."""
        from tactician.plugins.manager import load_plugins

        name = TARGETS.get(Device(device).type)
        target = load_plugins(cls.config).targets.get(name or "")
        return target is not None and target.unavailable() is None
