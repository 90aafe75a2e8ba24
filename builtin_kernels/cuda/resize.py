"""Resize by nearest neighbours or linear interpolation, over any dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tactician.builtin_kernels.cuda.indexing import ceil_div, index_type
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.softmax import T_NAMES
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

_TRANSFORMS = ("asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel")
_NEAREST = ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")


@dataclass(frozen=True)
class Resize(Tactic):
    """One thread for each element of the output."""

    op: ClassVar[str] = "ai.onnx::Resize"
    target: ClassVar[str] = "cuda"

    threads: int = 256

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline cubic and antialiased interpolation, cropping, and sizes for some axes only."""
        if not signature.is_static:
            return "needs static shapes"
        tensor = signature.input(0)
        if signature.body is not None or tensor is None or tensor.dtype not in T_NAMES:
            return f"element type {tensor and tensor.dtype} is not supported"
        if signature.version < 11:
            return "needs opset 11 or newer"
        if signature.attribute("mode", "nearest") not in ("nearest", "linear"):
            return f"mode '{signature.attribute('mode')}' is not supported"
        if signature.attribute("coordinate_transformation_mode", "half_pixel") not in _TRANSFORMS:
            return f"coordinates '{signature.attribute('coordinate_transformation_mode')}' are not supported"
        for name in ("antialias", "exclude_outside", "axes"):
            if signature.attribute(name):
                return f"'{name}' is not supported"
        if signature.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            return "a kept aspect ratio is not supported"
        return None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for these extents."""
        x, y = signature.inputs[0], signature.outputs[0]
        assert x is not None
        assert y is not None
        if y.size == 0:
            return lambda inputs, outputs, workspace, stream: None
        types = {
            "T": T_NAMES[x.dtype],
            "A": "double" if x.dtype == "float64" else "float",
            "Index": index_type(x.size, y.size),
        }
        names = {name.upper(): k for k, name in enumerate((*_TRANSFORMS, *_NEAREST))}
        macros: dict[str, int | str] = {
            **names,
            "TRANSFORM": str(signature.attribute("coordinate_transformation_mode", "half_pixel")).upper(),
            "NEAREST": str(signature.attribute("nearest_mode", "round_prefer_floor")).upper(),
            "LINEAR": int(signature.attribute("mode", "nearest") == "linear"),
            "RANK": max(len(x.dims), 1),
            "INPUT": ", ".join(map(str, x.dims or (1,))),
            "OUTPUT": ", ".join(map(str, y.dims or (1,))),
            "COUNT": f"{y.size}u",
            "THREADS": self.threads,
        }
        launch = device.compile(specialise("resize", "resize.cu", types, macros, "rows.cuh")).launch
        grid, threads = ceil_div(y.size, self.threads), self.threads
        scales = signature.input(2)
        has_scales = scales is not None and scales.size > 0

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], inputs[2] if has_scales else None, outputs[0])

        return run


TACTICS: list[type[Tactic]] = [Resize]
