"""Decompositions into gathers, and of what the shape of a result says: places, slices, paddings and axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from decomposing import (
    Feeds,
    check,
    decomposed,
    model,
    run_onnxruntime,
    run_reference,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=25, deadline=None, derandomize=True)
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


MODES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)


@st.composite
def resizes(draw: st.DrawFn) -> tuple[Feeds, Feeds, dict[str, Any]]:
    mode = draw(st.sampled_from(["linear", "cubic", "nearest"]))
    x = normal(1, 2, draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    axes = draw(st.sampled_from([None, [2, 3], [3, 2], [3]]))
    chosen = range(4) if axes is None else axes
    sizes = [draw(st.integers(1, 9)) if a > 1 else x.shape[a] for a in chosen]
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(MODES)),
    }
    if axes is not None:
        attributes["axes"] = axes
    if mode == "nearest":
        attributes["nearest_mode"] = draw(
            st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
        )
    else:
        attributes |= {"antialias": draw(st.integers(0, 1)), "exclude_outside": draw(st.integers(0, 1))}
    roi = None
    if attributes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        assume(not attributes.get("antialias") and not attributes.get("exclude_outside"))
        roi = np.array([0.21 * (a > 1) for a in chosen] + [1.17 if a > 1 else 1 for a in chosen], np.float32)
        attributes["extrapolation_value"] = 3.0
    scales = np.array([s / x.shape[a] for a, s in zip(chosen, sizes, strict=True)], np.float32)
    if draw(st.booleans()) and all(int(s * x.shape[a]) for a, s in zip(chosen, scales, strict=True)):
        return {"x": x}, {"roi": roi, "scales": scales}, attributes
    if axes is not None and roi is None:
        attributes["keep_aspect_ratio_policy"] = draw(
            st.sampled_from(["stretch", "not_larger", "not_smaller"])
        )
    return {"x": x}, {"roi": roi, "scales": None, "sizes": np.array(sizes, np.int64)}, attributes


@settings(FEW, max_examples=40)
@given(resizes(), st.booleans())
def test_resize(case: tuple[Feeds, Feeds, dict[str, Any]], constant: bool) -> None:
    feeds, constants, attributes = case
    proto = model("Resize", feeds, constants, **attributes)
    if not constant:
        shape = run_reference(proto, feeds)[0].shape
        feeds = {**feeds, **constants}
        proto = model("Resize", feeds, shape=shape, **attributes)
    expected = run_reference(proto, feeds)
    assume(0 not in expected[0].shape)  # sizes that a kept aspect ratio rounds to nothing
    count = decomposed(proto)[1]
    if count:
        check(proto, feeds, expected, run_reference, rtol=1e-4, atol=1e-5)
    else:
        assert expected[0].shape == feeds["x"].shape


def test_places_and_weights_are_constants() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    network, _ = decomposed(
        model("Resize", {"x": normal(1, 3, 8, 9)}, {"roi": None, "scales": scales}, mode="cubic")
    )
    assert [n.op_type for n in network.graph if n.op_type != "Reshape"] == ["Gather", "Mul", "ReduceSum"] * 2


@pytest.mark.parametrize(
    ("dims", "axes", "keepdims"),
    [
        ((3, 2, 2), [1], 1), ((3, 2, 2), [-2, 0], 1), ((3, 2, 2), [0], 0), ((3, 2, 4), [1], 0), ((3, 1, 4), [2], 0),
        ((3, 1, 4), [1], 1), ((3, 2, 2), [], 1), ((3, 2, 2), [], 0), ((2, 0, 4), [1], 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceL2", "ReduceMax", "ReduceProd", "ReduceLogSumExp"])
def test_axes_that_the_shape_gives(
    op_type: str, dims: tuple[int, ...], axes: list[int], keepdims: int
) -> None:
    if op_type == "ReduceMax" and 0 in dims:
        return  # there is no largest of none
    feeds = {"x": normal(*dims), "axes": np.array(axes, np.int64)}
    wanted = np.sum(feeds["x"], tuple(axes) or None, keepdims=bool(keepdims))
    proto = model(op_type, feeds, keepdims=keepdims, shape=wanted.shape)
    check(proto, feeds, run_reference, run_reference)


@pytest.mark.parametrize("axes", [[1], [2], [-1], [-2]])
@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceL2", "ReduceMax"])
def test_axes_that_are_chosen_at_run_time(op_type: str, axes: list[int]) -> None:
    feeds = {"x": normal(3, 2, 2), "axes": np.array(axes)}
    check(model(op_type, feeds, keepdims=0, shape=(3, 2)), feeds, run_reference, run_reference)


def test_axes_that_the_shape_does_not_give() -> None:
    feeds = {"x": normal(2, 2, 2, 2, 2), "axes": np.array([1])}
    assert decomposed(model("ReduceSum", feeds, keepdims=0, shape=(2, 2, 2, 2)))[1] == 0  # too many choices
    feeds = {"x": normal(3, 2, 2), "axes": np.array([1])}
    assert decomposed(model("ReduceSum", feeds, keepdims=1, shape=(3, 1, 2), noop_with_empty_axes=1))[1] == 0


def test_shapes_of_what_elementwise_operators_read() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 21]> g (float[3, 4] x, int64[1] axes) => (float[3, 1] y)
        { [r] s = ReduceSum (x, axes) [a] a = Abs (s) [l] y = Sqrt (a) }"""
    )
    feeds = {"x": normal(3, 4), "axes": np.array([1])}
    network = check(proto, feeds, run_reference)
    assert [n.name for n in network.graph] == ["r", "a", "l"]


@st.composite
def slices(draw: st.DrawFn) -> Feeds:
    x = normal(*draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    axes = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim, unique=True))
    place, step = st.integers(-7, 7), st.sampled_from([-2, -1, 1, 2])
    starts, ends, steps = ([draw(kind) for _ in axes] for kind in (place, place, step))
    signs = [a - x.ndim * draw(st.integers(0, 1)) for a in axes]
    kinds = {"starts": starts, "ends": ends, "axes": signs, "steps": steps}
    return {"x": x} | {
        name: np.array(v, draw(st.sampled_from([np.int32, np.int64]))) for name, v in kinds.items()
    }


@settings(FEW, max_examples=40)
@given(slices())
def test_slices_that_are_known_at_run_time(feeds: Feeds) -> None:
    index = [slice(None)] * feeds["x"].ndim
    names = ("starts", "ends", "axes", "steps")
    for start, end, axis, step in zip(*(feeds[name].tolist() for name in names), strict=True):
        size = feeds["x"].shape[axis]
        # of a negative step, what lies before the beginning includes the first element
        last = None if step < 0 and end < -size else end
        index[axis] = slice(start, last, step)
    wanted = feeds["x"][tuple(index)]
    assume(wanted.size)
    for name in ("ends", "axes", "steps"):
        feeds = {**feeds, name: feeds[name].astype(feeds["starts"].dtype)}
    check(model("Slice", feeds, shape=wanted.shape), feeds, [wanted], run_reference)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(("pads", "axes"), [([1, 2, 2, 1], None), ([2, 1], [-1]), ([-1, 1, 2, -1], [1, 0])])
@pytest.mark.parametrize("value", [None, 3.0])
def test_padding_that_is_known_at_run_time(
    mode: str, pads: list[int], axes: Any, value: float | None
) -> None:
    if value is not None and mode != "constant":
        return  # it is not read
    feeds = {
        "x": normal(4, 5), "pads": np.array(pads), "value": None if value is None else np.array(value, np.float32),
        "axes": None if axes is None else np.array(axes),
    }  # fmt: skip
    shape, half = [4, 5], len(pads) // 2
    for begin, end, axis in zip(pads[:half], pads[half:], axes or [0, 1], strict=True):
        shape[axis] += begin + end
    proto = model("Pad", feeds, mode=mode, shape=shape)
    check(proto, feeds, run_reference if min(pads) >= 0 else run_onnxruntime)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_grid_sample(mode: str, padding: str, aligned: int, rank: int) -> None:
    if mode == "cubic" and rank == 3:
        return  # ONNX's reference takes a second
    feeds = {"x": normal(2, 2, *range(3, 3 + rank)), "grid": 1.5 * normal(2, *range(2, 2 + rank), rank)}
    proto = model("GridSample", feeds, mode=mode, padding_mode=padding, align_corners=aligned)
    check(proto, feeds, run_reference, rtol=1e-3, atol=1e-4)
