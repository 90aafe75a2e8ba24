"""Slice, Concat, Split, Tile and permutations by a kernel that copies boxes between strided places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div, offset_expression
from tactician.builtin_kernels.cuda.pieces import MovementError, Piece, pieces_of
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

PIECES_PER_LAUNCH = 16
"""Longer lists of pieces are done by several launches; each piece adds its index arithmetic to the kernel."""

WORDS = {1: "u8", 2: "u16", 4: "u32", 8: "u64", 16: "Pack<u64, 2>"}
"""C types that move this many bytes."""


@dataclass(frozen=True)
class StridedCopy(Tactic):
    """Copies boxes from inputs to outputs, in words as wide as their contiguous runs allow."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}"
        for name in ("Slice", "Concat", "Split", "Tile", "Transpose", "DepthToSpace", "SpaceToDepth")
    )
    target: ClassVar[str] = "cuda"

    threads: int = 256
    unroll: int = 1
    """Words of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield small blocks for small tensors, and more words per thread for large ones."""
        count = max((t.size for t in signature.outputs if t is not None and t.is_static), default=0)
        if count < int(device.facts["multiprocessors"]) * 2048:
            yield cls(128, 1)
            return
        yield cls(256, 1)
        yield cls(256, 2)
        yield cls(256, 4)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what is not static or has unknown starts, axes or the like."""
        return decline_movement(signature, lambda: pieces_of(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile one kernel for each group of pieces."""
        pieces = pieces_of(signature)
        tensor = signature.outputs[0]
        assert tensor is not None
        groups = [pieces[i : i + PIECES_PER_LAUNCH] for i in range(0, len(pieces), PIECES_PER_LAUNCH)]
        steps = [self._step(group, tensor.itemsize, device) for group in groups]

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            for step in steps:
                step(inputs, outputs, stream)

        return run

    def _step(self, pieces: list[Piece], itemsize: int, device: Any) -> Callable[..., None]:
        """Return the launch of one group of pieces."""
        sources = list(dict.fromkeys(p.input for p in pieces))
        targets = list(dict.fromkeys(p.output for p in pieces))
        source, grid = self.kernel(pieces, itemsize)
        launch = device.compile(source).launch
        threads = self.threads

        def step(inputs: Sequence[Any], outputs: Sequence[Any], stream: Any) -> None:
            launch(stream, grid, threads, *(inputs[i] for i in sources), *(outputs[i] for i in targets))

        return step

    def kernel(self, pieces: Sequence[Piece], itemsize: int) -> tuple[KernelSource, int]:
        """Return the source of the kernel that copies ``pieces``, and its number of blocks."""
        wide = [p.in_words(itemsize) for p in pieces]
        index = "u32" if all(_extent(p) <= MAX_INDEX_32 for p, _ in wide) else "u64"
        structs, dispatch, first = [], [], 0
        for k, (piece, word) in enumerate(wide):
            structs.append(_struct(k, piece, word, index))
            last = first + ceil_div(piece.count, self.threads * self.unroll)
            call = f"copy_piece<{k}>(s{piece.input}, d{piece.output}, blockIdx.x - {first}u);"
            dispatch.append(f"if (blockIdx.x < {last}u) {call}")
            first = last
        parameters = [f"const void* __restrict__ s{i}" for i in dict.fromkeys(p.input for p in pieces)]
        parameters += [f"void* __restrict__ d{i}" for i in dict.fromkeys(p.output for p in pieces)]
        body = "\n    else ".join(dispatch)
        kernel = (
            'extern "C" __global__ void __launch_bounds__(THREADS) strided_copy('
            f"{', '.join(parameters)}) {{\n    await_predecessors();\n    {body}\n}}\n"
        )
        types = f"typedef {index} Index;\n"
        text = "\n".join([read_source("common.cuh"), types, read_source("strided_copy.cu"), *structs, kernel])
        return KernelSource(text, "strided_copy", (("THREADS", self.threads), ("UNROLL", self.unroll))), first


TACTICS: list[type[Tactic]] = [StridedCopy]


def decline_movement(signature: OpSignature, plan: Callable[[], Any]) -> str | None:
    """Return why a movement kernel can't run ``signature``: shapes, types, or what ``plan`` raises."""
    if signature.body is not None:
        return "is for single operators"
    if not signature.is_static:
        return "needs static shapes"
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor is not None and (tensor.dtype == "string" or tensor.itemsize not in WORDS):
            return f"element type {tensor.dtype} is not supported"
    try:
        plan()
    except MovementError as reason:
        return str(reason)
    return None


def _extent(piece: Piece) -> int:
    """Return the largest offset that a piece reaches, or its number of words, whichever is more."""

    def reach(offset: int, strides: Sequence[int]) -> int:
        return offset + sum((n - 1) * s for n, s in zip(piece.shape, strides, strict=True) if s > 0)

    sides = ((piece.source_offset, piece.source_strides), (piece.target_offset, piece.target_strides))
    return max(piece.count, *(reach(*side) for side in sides))


def _struct(number: int, piece: Piece, word: int, index: str) -> str:
    sides = {
        "source": (piece.source_offset, piece.source_strides),
        "target": (piece.target_offset, piece.target_strides),
    }
    functions = [
        f"    static __device__ __forceinline__ Index {name}(Index i) "
        f"{{ return {offset}u + {offset_expression('i', piece.shape, strides, index)}; }}"
        for name, (offset, strides) in sides.items()
    ]
    head = f"template <> struct Piece<{number}> {{\n    typedef {WORDS[word]} Word;\n"
    return head + f"    static constexpr Index count = {piece.count}u;\n" + "\n".join(functions) + "\n};"
