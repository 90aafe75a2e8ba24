"""Channels-last convolutions: the operator, what the kernel's producer asks for, its code, and what it declines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx.parser
import pytest
from conv_nhwc_cases import SMALL, ConvCase, conv, resnet50
from im2col_walk import im2col, problem_of, standard, tiled
from signatures import make_signature
from tactician import BuilderConfig, Session, build
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.builtin_kernels.cuda.im2col import Im2col
from tactician.builtin_kernels.nhwc import CONV, infer_conv
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

import ptx_interpreter
from ptx_device import InterpretedKernel, PtxDevice
from sass import LDL, STL, opcodes
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin
from tactician.builtin_kernels.cuda.conv_wgmma import ConvWgmma, product_shape

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def _operators() -> None:
    load_plugins(BuilderConfig(plugins=("builtin",)))


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in SMALL if c.shape[0]])
def test_the_operator_is_onnx_s_in_another_layout(case: ConvCase) -> None:
    inputs = case.inputs()
    signature = make_signature(CONV, inputs, case.attributes, version=1)
    (wide,) = reference_for(signature)([a.astype(np.float64) for a in inputs])
    np.testing.assert_allclose(wide, standard(case, inputs), rtol=1e-9, atol=1e-9)
    (narrow,) = reference_for(signature)(inputs)
    assert narrow.dtype == case.dtype
    np.testing.assert_allclose(narrow.astype(np.float64), wide, rtol=0.02, atol=0.02)
    assert infer_conv(signature) == [TensorType(str(narrow.dtype), narrow.shape)]


def test_inference_leaves_open_what_nobody_knows() -> None:
    x, w = TensorType("float16", ("n", 8, "w", 16)), TensorType("float16", (24, 3, 3, 16))
    signature = OpSignature(CONV, 1, (("strides", (2, 1)),), (x, w), (None,), (None, None))
    assert infer_conv(signature) == [TensorType("float16", ("n", 3, None, 24))]
    unknown = signature.bound((TensorType("float16", None), w), (None,))
    assert infer_conv(unknown) == [TensorType("float16", None)]
    for wrong in (TensorType("float16", (24, 9, 9, 16)), TensorType("float16", (24, 3, 16))):
        with pytest.raises(ValueError, match="doesn't fit|no convolution"):
            infer_conv(signature.bound((x, wrong), (None,)))


def test_a_model_of_it_runs() -> None:
    case = conv(2, 6, 5, 8, 16, 3, 3, stride=2, dtype=np.dtype(np.float32))
    text = """<ir_version: 9, opset_import: ["": 22, "tactician.nhwc": 1]>
        agraph (float[n, 6, 5, 8] x, float[16, 3, 3, 8] w, float[16] b) => (float[n, p, q, 16] y)
        { y = tactician.nhwc.Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) }"""
    inputs = case.inputs()
    config = BuilderConfig(target="cpu", plugins=("builtin",), use_timing_cache=False)
    engine = build(onnx.parser.parse_model(text), config)
    (y,) = Session(engine, plugins=["builtin"]).run(dict(zip("xwb", inputs, strict=True))).values()
    np.testing.assert_allclose(y, standard(case, inputs), rtol=1e-4, atol=1e-4)


LOADS = """
extern "C" __global__ void loads(const TensorMap* map_a, const TensorMap* map_b) {
    Place own;
    own.m = blockIdx.x % CLUSTER_M, own.n = blockIdx.x / CLUSTER_M % CLUSTER_N;
    for (u32 tile = blockIdx.x / (CLUSTER_M * CLUSTER_N); tile < TILES; tile += gridDim.x / (CLUSTER_M * CLUSTER_N))
        for (u32 box = 0; box < STEPS * DEPTH; box++)
            load_step(0, BLOCK_M * LINE, map_a, map_b, tile * STEPS * DEPTH + box, tile_place(tile, own.m, own.n), own, box, 1, 1);
}
"""
"""Asks for all that the producer would, with the number of a box in place of its barrier."""
MAP_A, MAP_B = 1 << 20, 2 << 20
"""Stand for the addresses of tensor maps."""


class Recorder:
    """Writes the copies of TMA down instead of making them: (block, to, map, coordinates, barrier, offsets)."""

    def __init__(self) -> None:
        self.copies: list[tuple[int, int, int, tuple[int, ...], int, tuple[int, ...]]] = []

    def __call__(self, run: Any, instruction: Any, lanes: Any) -> None:
        number = np.arange(run.count)[lanes]

        def values(text: str, kind: str = "u32") -> list[Array]:
            names = [t.strip() for t in text.split(",")]
            return [run.get(name, kind, number).astype(np.int64) for name in names]

        found = re.search(r"\[(.+?)\], \[(.+?), <(.+?)>\], \[(.+?)\](?:, <(.+?)>)?", instruction.text)
        assert found is not None, instruction.text
        to, barrier = (values(found[i])[0] for i in (1, 4))
        tensor, coordinates = run.get(found[2], "u64", number), values(found[3], "s32")
        offsets = values(found[5], "u16") if "im2col" in instruction.parts else []
        for i, lane in enumerate(number):
            at, tap = (tuple(int(v[i]) for v in several) for several in (coordinates, offsets))
            self.copies.append((int(run.block[lane]), int(to[i]), int(tensor[i]), at, int(barrier[i]), tap))


def asked_for(source: KernelSource, blocks: int) -> list[Any]:
    """Return the copies that the blocks' producers start."""
    recorder, known = Recorder(), dict(ptx_interpreter._STEPS)
    device = PtxDevice(90)
    kernel = InterpretedKernel(KernelSource(source.text + LOADS, "loads"), device.memory, 90)
    try:
        ptx_interpreter.add_steps({"cp": recorder})
        kernel.launch(None, blocks, 1, MAP_A, MAP_B)
    finally:
        ptx_interpreter._STEPS.update(known)
    return recorder.copies


TILES = [
    ConvWgmma(64, 64, 2, 1),
    ConvWgmma(64, 64, 2, 1, depth=4),
    ConvWgmma(128, 64, 2, 2, cluster_m=2),
    ConvWgmma(128, 128, 2, 2, cluster_n=2, band=2),
    ConvWgmma(128, 128, 2, 2, cluster_m=2, cluster_n=2),
]


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in SMALL if c.shape[0]])
def test_the_producer_brings_pixels_and_filters(case: ConvCase) -> None:
    for tactic in TILES:
        brought = products(tactic, case)
        x, w, *_ = (a.astype(np.float64) for a in case.inputs())
        expected = standard(replace(case, bias=False), [x, w])
        np.testing.assert_allclose(brought, expected.reshape(brought.shape), atol=1e-9, err_msg=str(tactic))


def products(tactic: ConvWgmma, case: ConvCase) -> Array:
    """Multiply what the producers bring to each tile; slices that no block brings are NaN."""
    _, problem = problem_of(case)
    walk = Im2col.of(problem)
    x, w = (a.astype(np.float64) for a in case.inputs()[:2])
    flat = x.reshape(-1, problem.channels)
    m, n, sharers = tactic.block_m, tactic.block_n, (tactic.cluster_m, tactic.cluster_n)
    stages: dict[tuple[int, int, int], tuple[Array, Array]] = {}
    for block, to, tensor, at, step, offsets in asked_for(
        tactic.source(problem), 2 * sharers[0] * sharers[1]
    ):
        own_m, own_n = block % sharers[0], block // sharers[0] % sharers[1]
        kind, row = ("a", to // 128) if tensor == MAP_A else ("b", to // 128 - m)
        if kind == "a" and problem.is_pointwise:
            rows = tiled(flat[None], at, (1, m // sharers[1], 64))
        elif kind == "a":
            rows = im2col(x, walk, at, (offsets[0], offsets[1]), (m // sharers[1], 64))
        else:
            rows = tiled(w.reshape(problem.filters, -1, problem.channels), at, (n // sharers[0], 1, 64))
        others = range(sharers[0]) if kind == "b" else range(sharers[1])
        for other in others:
            place = (step, other, own_n) if kind == "b" else (step, own_m, other)
            stage = stages.setdefault(place, (np.full((m, 64), np.nan), np.full((n, 64), np.nan)))
            stage[kind == "b"][row : row + len(rows.reshape(-1, 64))] = rows.reshape(-1, 64)
    return summed(tactic, problem, stages)


def summed(tactic: ConvWgmma, problem: ConvProblem, stages: dict[Any, tuple[Array, Array]]) -> Array:
    """Add the products of all steps of all tiles up, with the tiles in the order of tile_order.cuh."""
    boxes = -(-product_shape(problem).boxes // tactic.depth) * tactic.depth
    m, n = tactic.block_m * tactic.cluster_m, tactic.block_n * tactic.cluster_n
    tall, wide = -(-problem.pixels // m), -(-problem.filters // n)
    result = np.zeros((tall * m, wide * n))
    for (step, own_m, own_n), (a, b) in stages.items():
        tile = step // boxes
        band = tile // (tactic.band * wide)
        height = min(tall - band * tactic.band, tactic.band)
        left = tile - band * tactic.band * wide
        row = (band * tactic.band + left % height) * m + own_m * tactic.block_m
        column = left // height * n + own_n * tactic.block_n
        result[row : row + tactic.block_m, column : column + tactic.block_n] += a @ b.T
    return result[: problem.pixels, : problem.filters]


HGMMA = 0x9F0
"""Opcode of wgmma on 16-bit elements."""


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("layer", resnet50(1))
def test_compiles_without_spills(compile_device: Callable[[str], Any], layer: str, batch: int) -> None:
    device, case = compile_device("sm_90a"), resnet50(batch)[layer]
    signature, problem = problem_of(case)
    tactics = list(ConvWgmma.candidates(signature, device))
    assert len(tactics) > 3
    for tactic in tactics[:: 1 if batch == 1 and layer == "4 3x3" else 4]:
        assert tactic.decline(signature, device) is None
        cubin, resources = compile_cubin(tactic.source(problem), "sm_90a", report=True)
        assert resources is not None
        said = f"{tactic}: {resources}"
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, said
        assert not resources.warnings, said
        found = opcodes(cubin)
        # every box of k is multiplied by one instruction for each 16 of its channels and 64 of the consumer's rows
        rows = tactic.block_m // (tactic.consumers if tactic.cooperative else 1) // 64
        assert found[HGMMA] % (rows * tactic.depth * -(-min(problem.channels, 64) // 16)) == 0, said
        assert found[HGMMA] > 0, said
        assert found[LDL] == found[STL] == 0, said


def call(
    shape: tuple[int, ...], filters: tuple[int, ...], dtype: str = "float16", **attributes: Any
) -> OpSignature:
    """Return the signature of a convolution without a bias."""
    types = TensorType(dtype, shape), TensorType(dtype, filters)
    values = tuple(sorted(attributes.items()))
    signature = OpSignature(CONV, 1, values, types, (None,), (None, None))
    return signature.bound(types, tuple(infer_conv(signature)))


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (call((1, 8, 8, 16), (8, 3, 3, 16), "float32"), "no float32"),
        (call((1, 8, 8, 16), (8, 3, 3, 8), group=2), "one group"),
        (call((1, 8, 8, 12), (8, 3, 3, 12)), "12 channels don't fill"),
        (call((1, 8, 8, 16), (12, 3, 3, 16)), "12 filters don't fill"),
        (call((1, 8, 8, 0), (8, 3, 3, 0)), "1 groups"),
        (call((1, 8, 16), (8, 3, 16)), "two dimensions"),
        (call((1, 6, 8, 8, 16), (8, 3, 3, 3, 16)), "two dimensions"),
        (call((1, 40, 40, 16), (8, 3, 3, 16), strides=(9, 1)), "strides of (9, 1)"),
        (call((1, 40, 40, 16), (8, 3, 3, 16), pads=(129, 0, 0, 0)), "(-129, 0)"),
        (call((1, 300, 40, 16), (8, 3, 3, 16), dilations=(65, 1)), "(-130, -2)"),
        (call((1, 300, 40, 16), (8, 3, 3, 16), dilations=(128, 1), pads=(0, 0, 128, 0)), "the last tap"),
        (call((1, "h", 8, 16), (8, 3, 3, 16)), "static"),  # type: ignore[arg-type]  # a symbolic height
    ],
)
def test_declines(compile_device: Callable[[str], Any], signature: OpSignature, reason: str) -> None:
    assert reason in (ConvWgmma().decline(signature, compile_device("sm_90a")) or "")


def test_declines_what_does_not_fit(compile_device: Callable[[str], Any]) -> None:
    device, signature = compile_device("sm_90a"), call((1, 14, 14, 64), (64, 3, 3, 64))
    assert ConvWgmma().decline(signature, device) is None
    assert "compute capability" in (ConvWgmma().decline(signature, compile_device("sm_80")) or "")
    for tactic, reason in (
        (ConvWgmma(block_n=320), "256 columns"),
        (ConvWgmma(64), "can't share"),
        (ConvWgmma(cooperative=False, split_k=2), "don't split"),
        (ConvWgmma(cluster_m=4, split_k=4), "a cluster has"),
        (ConvWgmma(cluster_m=3), "equal parts"),
        (ConvWgmma(split_k=8, depth=2), "5 steps"),
        (ConvWgmma(128, 256, 2, split_k=2), "no room for the sums"),
        (ConvWgmma(stages=8), "shared memory"),
        (ConvWgmma(stages=1), "shared memory"),
        (ConvWgmma(128, 256, 2, blocks=2), "don't fit into"),
    ):
        assert reason in (tactic.decline(signature, device) or ""), tactic


def test_an_empty_batch_launches_nothing(compile_device: Callable[[str], Any]) -> None:
    signature, device = call((0, 8, 8, 16), (8, 3, 3, 16)), compile_device("sm_90a")
    (tactic,) = ConvWgmma.candidates(signature, device)
    tactic.prepare(signature, device)([None, None], [None], None, None)
