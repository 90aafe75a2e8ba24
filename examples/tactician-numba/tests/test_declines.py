"""What no kernel does is declined, in words that say why."""

import numpy as np
import pytest
from running import DEVICE, normal
from tactician import OpSignature, TensorType
from tactician.testing import make_signature
from tactician_numba.convolution import DirectConv, PatchConv
from tactician_numba.elementwise import Arithmetic, Clip, Elementwise
from tactician_numba.products import DotProducts, RowUpdates
from tactician_numba.reductions import MaxPool, Mean
from tactician_numba.rows import LayerNormalization, Softmax


def call(op, *shapes, dtype="float32", version=20, **attributes):
    types = tuple(TensorType(dtype, shape) for shape in shapes)
    values = tuple(sorted(attributes.items()))
    return OpSignature(f"ai.onnx::{op}", version, values, types, types[:1], (None,) * len(types))


IMAGE = normal(1, 2, 6, 6)


@pytest.mark.parametrize(
    ("tactic", "signature", "words"),
    [
        (Elementwise(), call("Relu", (2, "n")), "needs static shapes"),
        (Elementwise(), call("Relu", (2, 3), dtype="float16"), "float32 only, and input 0 is float16"),
        (Elementwise(), call("Relu", (0, 3)), "an empty tensor: nothing to compute"),
        (Clip(), call("Clip", (3,), dtype="int8"), "float32 only, and input 0 is int8"),
        (Arithmetic(), call("Add", (3,), (3,), version=6), "broadcasting as before opset 7"),
        (Softmax(), call("Softmax", (2, 3), axis=0), "the last axis only"),
        (Softmax(), call("Softmax", ()), "a scalar has no axis"),
        (
            LayerNormalization(),
            call("LayerNormalization", (2, 6), (1,)),
            "the scale has 1 elements, a row has 6: it would be broadcast",
        ),
        (Mean(), call("ReduceMean", (2, 3), (1,)), "the axes are not constant"),
        (
            Mean(),
            make_signature("ReduceMean", [IMAGE, np.array([0, 2])], constants={1}),
            "axes [0, 2] do not lie next to each other",
        ),
        (
            Mean(),
            make_signature("ReduceMean", [IMAGE], {"noop_with_empty_axes": 1}),
            "no axis to reduce: a copy",
        ),
        (
            MaxPool(),
            make_signature("MaxPool", [IMAGE], {"kernel_shape": [2, 2]}, outputs=2),
            "the indices of maxima are not computed",
        ),
        (
            MaxPool(),
            make_signature("MaxPool", [normal(1, 2, 9)], {"kernel_shape": [2]}),
            "images only, not 1 spatial axes",
        ),
        (
            DirectConv(),
            make_signature("Conv", [normal(1, 2, 9), normal(3, 2, 3)]),
            "images only, not 1 spatial axes",
        ),
        (PatchConv(tile=0), make_signature("Conv", [IMAGE, normal(3, 2, 3, 3)]), "a tile of 0 pixels"),
        (DotProducts(tile=0), make_signature("MatMul", [normal(2, 3), normal(3, 4)]), "a tile of 0 columns"),
        (
            RowUpdates(),
            make_signature("Gemm", [normal(2, 3), normal(4, 3)], {"transB": 1}),
            "the second operand is transposed: its columns are no rows to add",
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else None,
)
def test_declined(tactic, signature, words):
    assert tactic.decline(signature, DEVICE) == words


@pytest.mark.parametrize("tactic", [PatchConv, DirectConv, DotProducts, RowUpdates, Elementwise])
def test_dynamic_shapes_have_candidates_that_decline(tactic):
    op = tactic.op if isinstance(tactic.op, str) else tactic.op[0]
    signature = call(op.partition("::")[2], ("n", 2, 6, 6), (3, 2, 3, 3))
    reasons = [one.decline(signature, DEVICE) for one in tactic.candidates(signature, DEVICE)]
    assert set(reasons) == {"needs static shapes"}


def test_threads_are_offered_only_where_they_can_pay():
    small, large = (make_signature("Relu", [normal(n)]) for n in (100, 100_000))
    assert [t.parallel for t in Elementwise.candidates(small, DEVICE)] == [False]
    assert {t.parallel for t in Elementwise.candidates(large, DEVICE)} == {False, True}
