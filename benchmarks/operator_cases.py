"""The calls that the operator benchmark times: signatures, inputs on the GPU, references, operations and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from tactician.signature import OpSignature, TensorType

ONNX = "ai.onnx::"
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.int64: "int64"}


@dataclass(frozen=True)
class OperatorCase:
    """One call: how to make its inputs, and what comes out in float32 or better.

    ``weight`` is the input that an engine finds in device memory and not in the cache: copies of it are rotated.
    """

    name: str
    op: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    output: tuple[int, ...]
    reference: Callable[..., torch.Tensor]
    attributes: tuple[tuple[str, object], ...] = ()
    version: int = 13
    operations: float = 0.0
    weight: int | None = None
    constants: tuple[tuple[int, ...] | None, ...] = field(default=())
    tolerance: float = 5e-3
    numerics: frozenset[str] = frozenset()
    """Marks of ``Tactic.numerics`` that candidates may have."""

    def signature(self) -> OpSignature:
        """Return the signature that the builder would ask the registry for."""
        name = NAMES[self.dtype]
        inputs = tuple(TensorType(name, s) for s in self.shapes)
        return OpSignature(
            self.op if "::" in self.op else ONNX + self.op,
            self.version,
            self.attributes,
            inputs,
            (TensorType(name, self.output),),
            (None,) * len(inputs),
        )

    def inputs(self) -> list[torch.Tensor]:
        """Return fresh random inputs on the GPU."""
        return [torch.randn(s, device="cuda", dtype=torch.float32).to(self.dtype) for s in self.shapes]

    @property
    def bytes(self) -> int:
        """The fewest bytes that the call moves: each input read once, each output written once."""
        count = sum(_size(s) for s in (*self.shapes, self.output))
        return count * torch.empty((), dtype=self.dtype).element_size()


def gemm(
    m: int, n: int, k: int, dtype: torch.dtype = torch.float16, trans_b: bool = False, batch: int = 1
) -> OperatorCase:
    """Return a product with weights of [k, n], or, as Gemm, of [n, k]; a batch multiplies two activations."""
    name = f"{NAMES[dtype]} {f'{batch} x ' if batch > 1 else ''}{m}x{n}x{k}{' NT' if trans_b else ''}"
    a, b, d = (m, k), (n, k) if trans_b else (k, n), (m, n)
    if batch > 1:
        a, b, d = (batch, *a), (batch, *b), (batch, *d)
    return OperatorCase(
        name,
        "Gemm" if trans_b else "MatMul",
        (a, b),
        dtype,
        d,
        lambda x, y: x.float() @ (y.float().T if trans_b else y.float()),
        (("transB", 1),) if trans_b else (),
        operations=2.0 * batch * m * n * k,
        weight=1 if batch == 1 else None,
        tolerance=1e-2 if dtype == torch.bfloat16 else 5e-3,
    )


def gemm_cases() -> Iterable[OperatorCase]:
    """Yield 40 products: of the models of the whole-model benchmark, and cubes."""
    yield from (gemm(n, n, n) for n in (1024, 2048, 4096, 8192))
    yield from (gemm(n, n, n, torch.bfloat16) for n in (1024, 2048, 4096, 8192))
    for m, hidden in (
        (128, 768),
        (197, 768),
        (512, 768),
        (4096, 768),
        (6304, 768),
    ):  # BERT, ViT, GPT-2, batch 1 and more
        yield from (
            gemm(m, n, k)
            for n, k in ((3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden))
        )
    for m in (512, 4096):  # Llama
        yield from (
            gemm(m, n, k)
            for n, k in ((4096, 4096), (1024, 4096), (11008, 4096), (4096, 11008))
            if (m, n, k) != (4096,) * 3
        )
    yield gemm(32, 1000, 2048, trans_b=True)
    yield gemm(128, 1000, 2048, trans_b=True)
    yield gemm(128, 128, 64, batch=384)
    yield gemm(128, 64, 128, batch=384)
    yield gemm(512, 512, 64, batch=12)


def small_m_cases() -> Iterable[OperatorCase]:
    """Yield products of 1, 4 and 16 rows, which are bound by reading the weights."""
    for m in (1, 4, 16):
        for n, k in ((4096, 4096), (11008, 4096), (4096, 11008)):
            yield gemm(m, n, k)
            yield gemm(m, n, k, trans_b=True)


def ffma_cases() -> Iterable[OperatorCase]:
    """Yield large products in float32, without tf32."""
    for n in (2048, 4096):
        yield gemm(n, n, n, torch.float32)
    yield gemm(2048, 2048, 2048, torch.float32, trans_b=True)


def memory_cases() -> Iterable[OperatorCase]:
    """Yield memory-bound calls on 256 MiB and more."""
    half, rows = torch.float16, 16384
    square = (rows, 8192)
    yield OperatorCase("add", "Add", (square, square), half, square, lambda x, y: x.float() + y.float())
    yield OperatorCase("relu", "Relu", (square,), half, square, lambda x: x.float().relu())
    yield OperatorCase(
        "gelu", "Gelu", (square,), half, square, lambda x: torch.nn.functional.gelu(x.float()), version=20
    )
    yield OperatorCase("relu float32", "Relu", ((rows, 4096),), torch.float32, (rows, 4096), torch.relu)
    for width in (1024, 8192):
        shape = (rows * 8192 // width, width)
        yield OperatorCase(
            f"layer norm {width}", "LayerNormalization", (shape, (width,), (width,)), half, shape,
            lambda x, s, b: torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), s.float(), b.float()),
            version=17,
        )  # fmt: skip
        yield OperatorCase(
            f"softmax {width}", "Softmax", (shape,), half, shape, lambda x: x.float().softmax(-1)
        )
    yield OperatorCase(
        "softmax 128", "Softmax", ((rows * 64, 128),), half, (rows * 64, 128), lambda x: x.float().softmax(-1)
    )
    for name, axes, output in (("rows", (1,), (rows,)), ("columns", (0,), (8192,))):
        yield OperatorCase(
            f"reduce sum of {name}", "ReduceSum", (square,), half, output,
            lambda x, axes=axes: x.float().sum(axes), (("axes", axes), ("keepdims", 0)), 11,
        )  # fmt: skip
    yield OperatorCase(
        "transpose", "Transpose", (square,), half, square[::-1], lambda x: x.T, (("perm", (1, 0)),)
    )
    image = (64, 256, 128, 128)
    yield OperatorCase(
        "NCHW to NHWC",
        "Transpose",
        (image,),
        half,
        (64, 128, 128, 256),
        lambda x: x.permute(0, 2, 3, 1),
        (("perm", (0, 2, 3, 1)),),
    )
    heads = (64, 1024, 16, 128)
    yield OperatorCase(
        "heads",
        "Transpose",
        (heads,),
        half,
        (64, 16, 1024, 128),
        lambda x: x.permute(0, 2, 1, 3),
        (("perm", (0, 2, 1, 3)),),
    )


def attention_cases() -> Iterable[OperatorCase]:
    """Yield attention without and with a causal mask, as the models have it and from short to long sequences."""
    shapes = [(4, 32, 2048, 128, 0), (8, 12, 384, 64, 0), (1, 12, 128, 64, 0), (8, 12, 512, 64, 1)]
    shapes += [
        (max(1, 16384 // s), 2048 // d, s, d, c)
        for d in (64, 128)
        for s in (128, 512, 2048, 8192)
        for c in (0, 1)
    ]
    for batch, heads, length, size, causal in shapes:
        shape = (batch, heads, length, size)
        yield OperatorCase(
            f"b{batch} h{heads} s{length} d{size}{' causal' if causal else ''}", "Attention", (shape,) * 3, torch.float16, shape,
            lambda q, k, v, causal=causal: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=bool(causal)
            ),
            (("is_causal", causal),), 23, operations=4.0 * batch * heads * length * length * size / (1 + causal),
        )  # fmt: skip


def conv(
    batch: int, channels: int, size: int, filters: int, kernel: int, stride: int = 1, depthwise: bool = False
) -> OperatorCase:
    """Return a square convolution of channels-last tensors with a bias, padded by half its kernel."""
    inner, out = 1 if depthwise else channels, (size - 1) // stride + 1
    attributes = (
        ("group", channels if depthwise else 1),
        ("pads", (kernel // 2,) * 4),
        ("strides", (stride,) * 2),
    )

    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x, w = (t.permute(0, 3, 1, 2).float() for t in (x, w))
        groups = channels if depthwise else 1
        y = torch.nn.functional.conv2d(x, w, b.float(), stride, kernel // 2, 1, groups)
        return y.permute(0, 2, 3, 1)

    kind = "depthwise " if depthwise else ""
    return OperatorCase(
        f"b{batch} {kind}{channels}x{size}x{size} {filters} {kernel}x{kernel}{' s2' if stride == 2 else ''}",
        "tactician.nhwc::Conv",
        ((batch, size, size, channels), (filters, kernel, kernel, inner), (filters,)),
        torch.float16,
        (batch, out, out, filters),
        reference,
        attributes,
        version=1,
        operations=2.0 * batch * out * out * filters * inner * kernel * kernel,
        weight=1,
    )


def resnet50_layers() -> Iterable[tuple[int, int, int, int, int, bool]]:
    """Yield the convolutions of ResNet-50 (version 1.5) in order, as ``conv`` takes them; the image has 8 channels."""
    yield 8, 224, 64, 7, 2, False
    channels, size = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            yield channels, size, width, 1, 1, False
            yield width, size, width, 3, stride, False
            if not block:
                yield channels, size, 4 * width, 1, stride, False
            size //= stride
            yield width, size, 4 * width, 1, 1, False
            channels = 4 * width


def mobilenet_v2_layers() -> Iterable[tuple[int, int, int, int, int, bool]]:
    """Yield the convolutions of MobileNetV2 in order, as ``conv`` takes them; the image has 8 channels."""
    yield 8, 224, 32, 3, 2, False
    channels, size = 32, 112
    for expansion, filters, blocks, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            stride, wide = first if not block else 1, channels * expansion
            if expansion > 1:
                yield channels, size, wide, 1, 1, False
            yield wide, size, wide, 3, stride, True
            size //= stride
            yield wide, size, filters, 1, 1, False
            channels = filters
    yield channels, size, 1280, 1, 1, False


def conv_cases() -> Iterable[OperatorCase]:
    """Yield every distinct layer of ResNet-50 and of MobileNetV2 for 1, 32 and 128 images."""
    layers = dict.fromkeys([*resnet50_layers(), *mobilenet_v2_layers()])
    yield from (conv(batch, *layer) for batch in (1, 32, 128) for layer in layers)


GROUPS: dict[str, Callable[[], Iterable[OperatorCase]]] = {
    "gemm": gemm_cases,
    "small_m": small_m_cases,
    "ffma": ffma_cases,
    "memory": memory_cases,
    "attention": attention_cases,
    "conv": conv_cases,
}
"""Groups of cases by name."""


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
