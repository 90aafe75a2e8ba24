"""Trains the quick start's network and writes it as digits.onnx; PyTorch is needed for this alone.

    pip install torch scikit-learn onnx onnxscript
    python examples/digits/train.py

Takes some 15 seconds on two CPU cores; seeded, so that the same versions train the same weights. The
exporter's own optimizer stays off: the file keeps its batch norms and shape arithmetic, for tactician's
passes to fold.
"""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import torch
from data import split
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, pad, relu

MODEL = Path(__file__).with_name("digits.onnx")
EPOCHS = 40
BATCH = 64
OPSET = 18


class ResidualBlock(nn.Module):
    """y = relu(x + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = relu(self.bn1(self.conv1(x)))
        return relu(x + self.bn2(self.conv2(y)))


class DigitNet(nn.Module):
    """A residual CNN in small: 8 x 8 x 32 channels, then 4 x 4 x 64, then the average over space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block1 = ResidualBlock(32)
        self.down = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.block2 = ResidualBlock(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block2(self.down(self.block1(self.stem(x))))
        return self.head(adaptive_avg_pool2d(y, 1).flatten(1))


def train(model: DigitNet, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Minimise cross-entropy by AdamW with a one-cycle schedule, on images shifted by up to one pixel."""
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs=EPOCHS, steps_per_epoch=steps)
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        total = 0.0
        for batch in order[: steps * BATCH].split(BATCH):
            loss = cross_entropy(model(shifted(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}  loss {total / steps:.4f}")
    model.eval()


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Return ``images`` moved by -1, 0 or 1 pixels in each direction, with zeros coming in."""
    dy, dx = torch.randint(0, 3, (2,)).tolist()
    return pad(images, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


def export(model: DigitNet) -> None:
    """Write the network with a symbolic batch dimension; batch norms stay nodes of their own."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    proto = program.model_proto
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, MODEL)


def strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter records of the machine and source lines that it ran on."""
    for holder in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        del holder.metadata_props[:]
        holder.doc_string = ""


def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    (images, labels), (held_out, held_out_labels) = split()
    model = DigitNet()
    train(model, torch.from_numpy(images), torch.from_numpy(labels))
    with torch.no_grad():
        correct = (model(torch.from_numpy(held_out)).argmax(1).numpy() == held_out_labels).sum()
    export(model)
    print(f"held-out accuracy {correct / len(held_out_labels):.4f} ({correct} of {len(held_out_labels)})")
    print(f"wrote {MODEL.name} ({MODEL.stat().st_size} bytes) in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
