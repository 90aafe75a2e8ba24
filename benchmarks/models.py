"""The models that the benchmarks run, written in plain torch with seeded random weights, and their export to ONNX."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from language_models import BertBase, Gpt2, Llama
from torch import nn
from vision_models import MobileNetV2, ResNet50, VisionTransformer

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (ResNet50, (3, 224, 224)),
    "mobilenet_v2": (MobileNetV2, (3, 224, 224)),
    "vit_b16": (VisionTransformer, (3, 224, 224)),
    "bert_base": (BertBase, (128,)),
    "gpt2": (Gpt2, (512,)),
    "llama4": (Llama, (512,)),
}
"""By name: how a model is made, and the shape of its input behind the batch; one number stands for tokens."""


def make(name: str, batch: int = 1) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the model called ``name``, one of ``MODELS``, and one input for it."""
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; there are {', '.join(MODELS)}")
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind()
    # untrained batch norms would let the activations grow from block to block
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    size = (batch, *shape)
    return model.eval(), (torch.randint(0, 30000, size) if len(shape) == 1 else torch.randn(size),)


def export(
    name: str, path: Path, batch: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """Write the ONNX file of model ``name`` to ``path`` and return the inputs that it was exported with."""
    model, inputs = make(name, batch)
    model = model.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    with torch.inference_mode():
        torch.onnx.export(model, inputs, str(path), dynamo=True, verbose=False, external_data=False)
    return inputs


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
