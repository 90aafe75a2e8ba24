"""What convolution kernels share: sources, the choice of tiles, and the stages before and after an implicit GEMM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.conv_problem import FLOATS, ConvProblem
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise

MAX_PART_BYTES = 1 << 28
"""Memory, in bytes, that the partial sums of a split convolution may take."""

MAX_SPLITS = 16
MIN_STEPS = 4
"""Parts that k is split into at most, and steps that each of them has at least."""

LOAD_COST = 32
"""A guess at what loading one element into shared memory costs, in products."""

_THREADS = 256


class Tile(Protocol):
    """The fields that the tiles of all implicit GEMMs have."""

    @property
    def block_m(self) -> int:
        """Filters of a tile."""

    @property
    def block_n(self) -> int:
        """Pixels of a tile."""

    @property
    def block_k(self) -> int:
        """Steps of k in shared memory."""

    @property
    def split_k(self) -> int:
        """Blocks that share a tile."""


AnyTile = TypeVar("AnyTile", bound=Tile)


def conv_source(
    name: str, problem: ConvProblem, macros: Mapping[str, int | str], *files: str
) -> KernelSource:
    """Return kernel ``name`` for ``problem``: the geometry's header and the epilogue, then ``files``."""
    double: dict[str, int | str] = {"DOUBLE": 1} if problem.dtype == "float64" else {}
    types = {"T": FLOATS[problem.dtype]}
    epilogue, all_macros = problem.epilogue, {**problem.macros(), **double, **macros}
    head = specialise(name, "wide.cuh", types, all_macros, *epilogue.headers)
    return KernelSource("\n".join([head.text, epilogue.text(), read_source("conv.cuh", *files)]), name)


def best(problem: ConvProblem, tiles: Iterable[AnyTile], multiprocessors: int, most: int) -> list[AnyTile]:
    """Return up to ``most`` of ``tiles``, those with the lowest cost by a simple guess first."""
    return sorted(dict.fromkeys(tiles), key=lambda tile: cost(problem, tile, multiprocessors))[:most]


def cost(problem: ConvProblem, tile: Tile, multiprocessors: int) -> float:
    """Return a guess at the time of ``tile``, in products of one multiprocessor.

    Waves of blocks, times what a block loads and multiplies; sums in parts are written and read once more.
    """
    waves = ceil_div(problem.tiles(tile.block_m, tile.block_n) * tile.split_k, multiprocessors)
    steps = ceil_div(ceil_div(problem.depth, tile.block_k), tile.split_k)
    step = tile.block_k * (tile.block_m * tile.block_n + LOAD_COST * (tile.block_m + tile.block_n))
    parts = 0 if tile.split_k == 1 else 2 * problem.outputs * tile.split_k / multiprocessors
    return waves * steps * step + LOAD_COST * parts


def splits(problem: ConvProblem, block_m: int, block_n: int, block_k: int, multiprocessors: int) -> list[int]:
    """Return the numbers of parts of k worth timing: one, and what fills the GPU where tiles are few."""
    tiles, steps = problem.tiles(block_m, block_n), ceil_div(problem.depth, block_k)
    wanted = min(multiprocessors // max(tiles, 1), steps // MIN_STEPS, MAX_SPLITS)
    return [1, wanted] if wanted > 1 and part_bytes(problem, wanted) <= MAX_PART_BYTES else [1]


def decline_split(problem: ConvProblem, tile: Tile) -> str | None:
    """Return why k can't be split into as many parts as ``tile`` says, or None."""
    steps = ceil_div(problem.depth, tile.block_k)
    if tile.split_k > max(steps, 1):
        return f"{steps} steps of k can't be split into {tile.split_k} parts"
    needed = part_bytes(problem, tile.split_k)
    return None if needed <= MAX_PART_BYTES else f"partial sums would take {needed} bytes"


def part_bytes(problem: ConvProblem, split_k: int) -> int:
    """Return the bytes of the partial sums."""
    return 0 if split_k == 1 else split_k * problem.outputs * (8 if problem.dtype == "float64" else 4)


def adder(problem: ConvProblem, split_k: int, device: Any) -> Callable[..., None]:
    """Return a function ``(stream, parts, bias, y, *read)`` that adds up the parts of a split convolution, if it is split.

    ``read`` is what the epilogue reads.
    """
    if split_k == 1:
        return lambda stream, parts, bias, y, *read: None
    macros: dict[str, int | str] = {"ADD_PARTS": 1, "SPLITS": f"{split_k}u"}
    kernel = device.compile(conv_source("add_parts", problem, macros, "conv_stages.cu"))
    grid = ceil_div(problem.outputs, _THREADS)

    def add(stream: Any, parts: Any, bias: Any, y: Any, *read: Any) -> None:
        kernel.launch(stream, grid, _THREADS, parts, bias, y, *read)

    return add


def packer(
    problem: ConvProblem, pitch: int, channel_pitch: int, device: Any
) -> Callable[[Any, Any, Any], None]:
    """Return a function ``(stream, filters, packed)`` that writes the filters as rows of ``pitch`` elements.

    With ``channel_pitch`` other than 0 a row holds one tap after the other, each of that many channels.
    """
    macros: dict[str, int | str] = {
        "PACK_FILTERS": 1,
        "PITCH": f"{pitch}u",
        "TAP_MAJOR": int(channel_pitch > 0),
        "CHANNEL_PITCH": f"{max(channel_pitch, 1)}u",
    }
    kernel = device.compile(conv_source("pack_filters", problem, macros, "conv_stages.cu"))
    grid = ceil_div(problem.groups * problem.filters * pitch, _THREADS)

    def pack(stream: Any, filters: Any, packed: Any) -> None:
        kernel.launch(stream, grid, _THREADS, filters, packed)

    return pack


def operands(problem: ConvProblem, inputs: Sequence[Any]) -> tuple[Any, Any, Any, list[Any]]:
    """Return the input, the filters, the bias or None, and what the epilogue reads, of a node's inputs."""
    call = problem.call
    if call is None:
        return inputs[0], inputs[1], bias_of(inputs), []
    x, w, bias = call.places(3)
    return inputs[x], inputs[w], None if bias < 0 else inputs[bias], [inputs[i] for i in call.reads]


def bias_of(inputs: Sequence[Any]) -> Any:
    """Return the bias of a convolution's inputs, or None."""
    return inputs[2] if len(inputs) > 2 else None


def nothing(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
    """Launch nothing: there is no result to write."""
