"""Products of 8-bit integers and of fp8 on Hopper's tensor cores: wgmma on tiles that the tensor memory accelerator brings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.gemm_problem import FLOATS, nothing
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.product_8bit import (
    FORMS,
    LINE_ELEMENTS,
    PRODUCTS,
    EightBitProduct,
    product_8bit,
)
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.builtin_kernels.cuda.tensor_map import ALIGNMENT, mapper
from tactician.builtin_kernels.cuda.transpose import TransposeTiled
from tactician.builtin_kernels.cuda.wgmma import multiply_8bit_text
from tactician.builtin_kernels.cuda.wgmma_tile import (
    LINE_BYTES,
    WARPGROUP,
    ProductShape,
    WgmmaTile,
    most_promising,
)
from tactician.builtin_kernels.cuda.wgmma_tile import LINE_ELEMENTS as BOX_ROWS
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic

REGISTERS_OF_MULTIPROCESSOR = 65536
CONSUMER_REGISTERS = {1: 255, 2: 232, 3: 160}
"""Registers of a consumer's thread, by consumers, where one block has a multiprocessor to itself."""
OTHER_REGISTERS = 40
"""Registers of a consumer's thread beside its sums."""
MOST_PARTS = 4
"""Parts of k whose sums several consumers add up as integers: more take a register too many."""
PROMOTED_CANDIDATES = 5
"""Tiles with promoted sums that are proposed for one product."""


@dataclass(frozen=True)
class GemmWgmma8bit(WgmmaTile, Tactic):
    """Tiles of a ring of stages; sums of integers in int32, those of fp8 in what the tensor cores have, or promoted.

    Tensor cores add products of fp8 up with some 14 bits, as the library's fast accumulation does. With ``promote``
    their sums are added up in float32 after every so many steps of k; after each one, errors are less than those of
    operands of 8 bits by far.
    """

    op: ClassVar[tuple[str, ...]] = PRODUCTS
    target: ClassVar[str] = "cuda"
    fused_forms = FORMS

    promote: int = 0
    """Steps of k, 128 times ``depth`` each, after which sums go to float32 registers; 0 for never."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what a model of waves and steps takes to be fastest, best first; then the same with promoted sums."""
        product, found = product_8bit(signature), list(cls.search_space(signature, device))
        if isinstance(product, str) or len(found) < 2:
            yield from found
            return
        for promoted, most in ((False, len(found)), (True, PROMOTED_CANDIDATES)):
            tiles = [t for t in found if bool(t.promote) == promoted]
            best = most_promising(tiles, product_shape(product), int(device.facts["multiprocessors"]))
            yield from best[:most]

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield all tiles that fit the shape, with as many stages as shared memory holds; those of fp8 promoted too."""
        product = product_8bit(signature)
        if isinstance(product, str) or product.gemm.is_empty or product.gemm.k == 0:
            yield cls()
            return
        tiles = list(cls.tiles_for(product_shape(product), int(device.facts["multiprocessors"])))
        if product.is_integer:
            tiles = [tile for tile in tiles if tile.consumers == 1 or tile.split_k <= MOST_PARTS]
        elif product.boxes > 1:
            tiles += [replace(tile, promote=1) for tile in tiles if tile.depth == 1]
        yield from [t for t in tiles if t.decline(signature, device) is None] or [cls()]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline other GPUs than Hopper, operands that aren't of 8 bits, and rows that TMA can't address."""
        product = product_8bit(signature)
        if isinstance(product, str):
            return product
        if device.facts["arch"] != "sm_90a":
            return f"is for compute capability 9.0; the GPU has {device.facts['compute_capability']}"
        if product.gemm.k == 0:
            return "there is nothing to add up"
        if product.gemm.k % ALIGNMENT:
            return f"rows of operands are of {product.gemm.k} bytes, not of whole {ALIGNMENT}"
        if product.gemm.n * product.result_bytes % ALIGNMENT:
            return f"rows of d are of {product.gemm.n} {product.result}, not of whole {ALIGNMENT} bytes"
        if self.promote and product.is_integer:
            return f"sums of {product.a.dtype} are exact, and not promoted"
        if self.promote and 2 * self._sums() + OTHER_REGISTERS > self._registers():
            return f"{self._sums()} sums of a thread don't fit twice into {self._registers()} registers"
        if (
            reason := None
            if product.gemm.trans_b
            else self._transposition(product).decline(_turned(product), device)
        ):
            return reason
        return self.decline_fields(product_shape(product), int(device.facts["shared_bytes_per_block"]))

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the bytes of b with k contiguous, where it is not stored so."""
        product = product_8bit(signature)
        assert isinstance(product, EightBitProduct), product
        return 0 if product.gemm.trans_b or product.gemm.is_empty else math.prod(_of_b(product))

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return whether sums are kept in less than float32."""
        product = product_8bit(signature)
        if isinstance(product, str) or product.is_integer:
            return frozenset()
        is_promoted = self.promote * self.depth == 1 or product.boxes == 1
        return frozenset(() if is_promoted else {"reduced-accumulator"})

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape; maps of the tensors are made when addresses are first seen."""
        product = product_8bit(signature)
        assert isinstance(product, EightBitProduct), product
        if product.gemm.is_empty:
            return nothing
        turn = (
            None if product.gemm.trans_b else self._transposition(product).prepare(_turned(product), device)
        )
        kernel, shape = device.compile(self.source(product)), product_shape(product)
        grid = self.grid(shape, int(device.facts["multiprocessors"]))
        threads, shared = self.threads(), self.shared_bytes(shape.vectors)
        map_a, map_b, map_d = self._mappers(product)
        a, b, others = product.a.input, product.b.input, (product.a.scale, product.b.scale, product.bias)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            right = inputs[b] if turn is None else _turned_b(product, workspace)
            if turn is not None:
                turn([inputs[b]], [right], None, stream)
            maps = map_a(inputs[a]), map_b(right), map_d(outputs[0])
            rest = (None if i is None else inputs[i] for i in others)
            kernel.launch(stream, grid, threads, *maps, *rest, outputs[0], shared_bytes=shared)

        return run

    def _sums(self) -> int:
        """Return the sums of a consumer's thread."""
        return self.block_m * self.block_n // (WARPGROUP * (self.consumers if self.cooperative else 1))

    def _registers(self) -> int:
        """Return the registers of a consumer's thread."""
        if self.blocks == 1:
            return CONSUMER_REGISTERS[self.consumers]
        return REGISTERS_OF_MULTIPROCESSOR // (self.threads() * self.blocks)

    def source(self, product: EightBitProduct) -> KernelSource:
        """Return the kernel for ``product``."""
        c_types = FLOATS | {"int32": "i32"}
        sums = "i32" if product.is_integer else "float"
        types = {
            "T": c_types[product.result],
            "Operand": "u8",
            "Sum": sums,
            "Value": "i32" if product.has_raw_sums else "float",
            "ScaleA": c_types[product.a.scale_dtype],
            "ScaleB": c_types[product.b.scale_dtype],
        }
        macros = _macros(product) | self.macros() | {"PROMOTE": f"{self.promote}u"}
        head = specialise("gemm_wgmma_8bit", "tile_order.cuh", types, macros, "hopper.cuh")
        multiply = multiply_8bit_text(self.block_n, product.a.dtype, product.b.dtype)
        body = read_source("wgmma_8bit.cuh", "wgmma_tiles.cuh", "gemm_wgmma_8bit.cu")
        return KernelSource("\n".join([head.text, multiply, body]), "gemm_wgmma_8bit")

    def _mappers(self, product: EightBitProduct) -> tuple[Any, Any, Any]:
        gemm = product.gemm
        rows_a, rows_b = self.block_m // self.cluster_n, self.block_n // self.cluster_m
        batch_a = gemm.batch if gemm.stride_a else 1
        return (
            mapper((batch_a, gemm.m, gemm.k), (1, rows_a, LINE_ELEMENTS)),
            mapper(_of_b(product), (1, rows_b, LINE_ELEMENTS)),
            mapper((gemm.batch, gemm.m, gemm.n), (1, BOX_ROWS, LINE_BYTES // product.result_bytes)),
        )

    def _transposition(self, product: EightBitProduct) -> TransposeTiled:
        """Return what makes k contiguous in b."""
        return next(iter(TransposeTiled.candidates(_turned(product), None)))


TACTICS: list[type[Tactic]] = [GemmWgmma8bit]


def product_shape(product: EightBitProduct) -> ProductShape:
    """Return what a product comes to in tiles: tensor cores multiply twice as many elements of 8 bits as of 16."""
    used = min(product.gemm.k, LINE_ELEMENTS) // 2
    gemm = product.gemm
    vectors = max(1, (gemm.bias == "row") + (not product.has_raw_sums))
    return ProductShape(gemm.m, gemm.n, product.boxes, used, gemm.batch, vectors, product.result_bytes)


def _macros(product: EightBitProduct) -> dict[str, int | str]:
    return replace(product.gemm, trans_b=True).macros() | {
        "SEGMENTS": "1u",
        "SEGMENT": "K",
        "BATCH": f"{product.gemm.batch}u",
        "BIAS_ROW": int(product.gemm.bias == "row"),
        "RAW_SUMS": int(product.has_raw_sums),
        "HAS_SCALE_A": int(product.a.scale is not None),
        "HAS_SCALE_B": int(product.b.scale is not None),
        "SCALE_COLUMNS": int(product.b.scaling == "columns"),
        "RELU": int(product.relu),
    }


def _of_b(product: EightBitProduct) -> tuple[int, int, int]:
    """Return the shape of b with k contiguous."""
    return product.gemm.batch if product.gemm.stride_b else 1, product.gemm.n, product.gemm.k


def _turned(product: EightBitProduct) -> OpSignature:
    """Return the call that makes k contiguous in b."""
    batch, n, k = _of_b(product)
    before, after = (TensorType("uint8", dims) for dims in ((batch, k, n), (batch, n, k)))
    return OpSignature("ai.onnx::Transpose", 13, (("perm", (0, 2, 1)),), (before,), (after,), (None,))


def _turned_b(product: EightBitProduct, workspace: DeviceTensor) -> DeviceTensor:
    return replace(workspace, shape=_of_b(product), dtype="uint8")
