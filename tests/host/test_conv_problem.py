"""The geometry of convolutions and pooling, held against ONNX's own evaluator, and the choice among kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.reference
import pytest
from convolution_cases import CONVOLUTIONS, POOLING, conv, layer
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_bound_cases import Case, normal
from signatures import make_signature
from tactician.builtin_kernels.cuda.batch_norm import BatchNorm
from tactician.builtin_kernels.cuda.conv_depthwise import ConvDepthwise
from tactician.builtin_kernels.cuda.conv_direct import ConvDirect
from tactician.builtin_kernels.cuda.conv_implicit_gemm import ConvImplicitGemm
from tactician.builtin_kernels.cuda.conv_implicit_gemm_ffma import ConvImplicitGemmFfma
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, GeometryError, conv_problem, window_of
from tactician.builtin_kernels.cuda.conv_stages import best, cost, splits
from tactician.builtin_kernels.cuda.cudnn_conv import CudnnConv
from tactician.builtin_kernels.cuda.cudnn_plan import LibraryError, parse_plan, plan_name
from tactician.builtin_kernels.cuda.pooling import PoolPlanes, PoolWindows
from tactician.signature import OpSignature, TensorType

Array = np.ndarray[Any, Any]


def signature_of(case: Case) -> OpSignature:
    return make_signature(case.op, case.inputs, case.attributes)


def by_geometry(problem: ConvProblem, x: Array, w: Array, b: Array | None) -> Array:
    """Convolve as conv.cuh numbers elements: pixel's corner plus tap's offset, where the tap is inside."""
    window = problem.window
    flat = x.reshape(problem.batch, problem.groups, problem.channels, window.in_size).astype(np.float64)
    filters = w.reshape(problem.groups, problem.filters, problem.channels, window.taps).astype(np.float64)
    y = np.zeros((problem.batch, problem.groups, problem.filters, window.out_size))
    rows = np.array([1, *window.size[:0:-1]]).cumprod()[::-1]  # elements from one d, h, w to the next
    leaves = window.leaves()
    for p, place in enumerate(itertools.product(*map(range, window.out))):
        start = [o * s - b for o, s, b in zip(place, window.strides, window.before, strict=True)]
        for t, tap in enumerate(itertools.product(*map(range, window.kernel))):
            at = [s + k * d for s, k, d in zip(start, tap, window.dilations, strict=True)]
            inside = [not leaves[i] or 0 <= a < window.size[i] for i, a in enumerate(at)]
            if all(inside):
                y[..., p] += np.einsum("ngc,gmc->ngm", flat[..., int(np.dot(at, rows))], filters[..., t])
    if b is not None:
        y += b.reshape(problem.groups, problem.filters, 1)
    return y.reshape(problem.batch, -1, *window.out[-x.ndim + 2 :])


def by_onnx(case: Case) -> Array:
    names = ["x", "w", "b"][: len(case.inputs)]
    node = onnx.helper.make_node(case.op, names, ["y"], **case.attributes)
    empty = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in (*names, "y")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", empty[:-1], empty[-1:]))
    feeds = {n: a.astype(np.float64) for n, a in zip(names, case.inputs, strict=True) if a is not None}
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(y)


PLAIN = [
    c
    for c in CONVOLUTIONS
    if "auto_pad" not in c.attributes and all(a is not None and a.size for a in c.inputs)
]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(PLAIN)])
def test_offsets_against_onnx(case: Case) -> None:
    problem = conv_problem(signature_of(case))
    assert isinstance(problem, ConvProblem), problem
    x, w, *b = [a for a in case.inputs if a is not None]
    expected = by_onnx(case)
    result = by_geometry(problem, x, w, b[0] if b else None)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    draw = [
        data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))
        for low, high in ((1, 7), (1, 3), (1, 3), (1, 2))
    ]
    size, kernel, strides, dilations = draw
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    room = [n + pads[i] + pads[i + rank] for i, n in enumerate(size)]
    size = [n + max(0, (k - 1) * d + 1 - r) for n, k, d, r in zip(size, kernel, dilations, room, strict=True)]
    groups = data.draw(st.integers(1, 2))
    case = conv(
        (2, 2 * groups, *size), (3 * groups, 2, *kernel), strides=strides, dilations=dilations, pads=pads, group=groups
    )  # fmt: skip
    problem = conv_problem(signature_of(case))
    assert isinstance(problem, ConvProblem), problem
    x, w, b = case.inputs
    assert x is not None
    assert w is not None
    np.testing.assert_allclose(by_geometry(problem, x, w, b), by_onnx(case), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]), st.integers(0, 3), st.booleans(),
)  # fmt: skip
def test_windows_against_reference(
    size: int, kernel: int, stride: int, dilation: int, auto: str, pad: int, ceil: bool
) -> None:
    span = (kernel - 1) * dilation + 1
    attributes: dict[str, Any] = {
        "kernel_shape": [kernel], "strides": [stride], "dilations": [dilation], "auto_pad": auto, "ceil_mode": int(ceil)
    }  # fmt: skip
    if auto == "NOTSET":
        attributes["pads"] = [min(pad, span - 1), min(pad // 2, span - 1)]
    if span > size:
        size += span  # a window has to fit
    signature = make_signature("MaxPool", [normal(1, 1, size)], attributes)
    (out,) = [t.dims[2] for t in signature.outputs if t is not None]
    assert window_of(signature, [kernel], [size]).out == (1, 1, out)


def changed(case: Case, **fields: Any) -> OpSignature:
    signature = signature_of(case)
    return OpSignature(
        **{name: fields.get(name, getattr(signature, name)) for name in OpSignature.__dataclass_fields__}
    )


REFUSED: list[tuple[Callable[[], OpSignature], str]] = [
    (
        lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), outputs=(TensorType("float32", (1, 2, 4, 4)),)),
        "gives",
    ),
    (
        lambda: changed(
            conv((1, 4, 5, 5), (2, 4, 3, 3)), inputs=(TensorType("float32", ("N", 4, 5, 5)),) * 2
        ),
        "static",
    ),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("group", 3),)), "groups"),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("pads", (1, 1)),)), "pads"),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("strides", (0, 1)),)), "strides"),
    (
        lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("kernel_shape", (2, 3)),)),
        "kernel_shape",
    ),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("auto_pad", "SOME"),)), "auto_pad"),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), attributes=(("dilations", (3, 3)),)), "fit"),
    (lambda: changed(conv((1, 4, 5, 5), (2, 4, 3, 3)), body=b"x"), "no convolution"),
    (lambda: signature_of(Case("Relu", [normal(1, 1, 3, 3), normal(1, 1, 3, 3)][:1])), "no convolution"),
]


@pytest.mark.parametrize(("make", "word"), REFUSED, ids=[w for _, w in REFUSED])
def test_refused_with_a_reason(
    make: Callable[[], OpSignature], word: str, compile_device: Callable[[str], Any]
) -> None:
    signature = make()
    reason = conv_problem(signature)
    assert isinstance(reason, str)
    assert word in reason
    device = compile_device("sm_90a")
    for cls in (ConvDirect, ConvImplicitGemm, ConvImplicitGemmFfma, ConvDepthwise, CudnnConv):
        answers = [t.decline(signature, device) for t in cls.candidates(signature, device)]
        fused = ["is no operator with others behind it"] if signature.body is not None else [reason]
        assert answers in ([reason], fused)


def test_too_large_is_refused() -> None:
    x, w = TensorType("float32", (1, 64, 8192, 8192)), TensorType("float32", (64, 64, 1, 1))
    reason = conv_problem(OpSignature("ai.onnx::Conv", 11, (), (x, w), (x,), (None, None)))
    assert isinstance(reason, str)
    assert "31 bits" in reason


def test_four_dimensions_are_refused() -> None:
    signature = signature_of(Case("MaxPool", [normal(1, 1, 3, 3)], {"kernel_shape": [2, 2]}))
    with pytest.raises(GeometryError, match="4 dimensions"):
        window_of(signature, (1, 1, 1, 1), (3, 3, 3, 3))


def test_without_a_driver_cudnn_declines(compile_device: Callable[[str], Any]) -> None:
    signature = signature_of(layer(1, 8, 8, 8, 3))
    device = compile_device("sm_90a")
    assert [t.decline(signature, device) for t in CudnnConv.candidates(signature, device)] == [
        "cuDNN needs a GPU and its driver"
    ]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("eng0", (0, "")),
        ("eng41_k2=0_k13=1_k27=4", (41, "tile_size:0,tilek:1,tile_cga_m:4")),
        ("eng28_k2=4_k3=0", (28, "tile_size:4,k3:0")),
    ],
)
def test_plan_names(name: str, plan: tuple[int, str]) -> None:
    assert parse_plan(name) == plan
    assert plan_name(*plan) == name


def test_unreadable_plans_are_refused() -> None:
    with pytest.raises(LibraryError, match="no engine"):
        parse_plan("plan 3")
    with pytest.raises(LibraryError, match="form"):
        plan_name(3, "tile_size=0")


def test_splits_fill_the_gpu() -> None:
    small, large = (
        conv_problem(signature_of(c)) for c in (layer(1, 512, 7, 512, 3), layer(4, 64, 56, 64, 3))
    )
    assert isinstance(small, ConvProblem)
    assert isinstance(large, ConvProblem)
    assert splits(small, 128, 128, 32, 132) == [1, 16]
    assert splits(large, 64, 64, 32, 132) == [1]
    tiles = [ConvImplicitGemm(64, 64, 32), ConvImplicitGemm(64, 64, 32, split_k=8)]
    assert best(small, tiles, 132, 1) == tiles[1:]
    assert best(large, tiles, 132, 1) == tiles[:1]
    assert cost(small, tiles[1], 132) < cost(small, tiles[0], 132) / 4


def test_every_candidate_accepts(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_80")
    classes = (
        ConvDirect,
        ConvImplicitGemm,
        ConvImplicitGemmFfma,
        ConvDepthwise,
        PoolWindows,
        PoolPlanes,
        BatchNorm,
    )
    for case in CONVOLUTIONS + POOLING:
        signature = signature_of(case)
        served = [cls for cls in classes if cls.serves(signature.op)]
        accepted = 0
        for cls in served:
            reasons = [t.decline(signature, device) for t in cls.candidates(signature, device)]
            assert len(set(reasons)) == 1, (case, reasons)
            accepted += None in reasons
        assert accepted >= 1, case


def test_pooling_declines(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_80")
    indices = make_signature("MaxPool", [normal(1, 1, 4, 4)], {"kernel_shape": [2, 2]}, outputs=2)
    assert "indices" in str(PoolWindows().decline(indices, device))
    whole = make_signature("GlobalAveragePool", [normal(1, 2, 4, 4)])
    wrong = whole.bound(whole.inputs, (TensorType("float32", (1, 2)),))
    assert "the output is" in str(PoolPlanes().decline(wrong, device))


def test_batch_norm_declines(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_80")
    kind, channels = TensorType("float32", (2, 3, 4)), TensorType("float32", (3,))
    inputs, outputs, constants = (kind, *(channels,) * 4), (kind,), (None,) * 5

    def reason(
        inputs: Any = inputs, outputs: Any = outputs, version: int = 15, **attributes: int
    ) -> str | None:
        values = tuple(attributes.items())
        return BatchNorm().decline(
            OpSignature("ai.onnx::BatchNormalization", version, values, inputs, outputs, constants), device
        )

    assert reason() is None
    assert "statistics" in str(reason(training_mode=1))
    assert "statistics" in str(reason(outputs=(kind, channels, channels)))
    assert "each element" in str(reason(spatial=0, version=7))
    assert "3 channels" in str(reason(inputs=(kind, *(TensorType("float32", (4,)),) * 4)))
