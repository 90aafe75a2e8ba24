"""ONNX Runtime's kernels as tactics: bound buffers, packed weights, declines, and loading without ONNX."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from models import bert_encoder, resnet50
from onnx import TensorProto, helper
from signatures import make_signature
from tactician.builtin_kernels.cpu import onnxruntime_node, onnxruntime_session
from tactician.builtin_kernels.cpu.onnxruntime_node import MAX_BINDINGS, OnnxRuntime
from tactician.builtin_kernels.cpu.onnxruntime_session import PythonSession
from tactician.builtin_kernels.cpu.target import CpuDevice
from tactician.errors import TacticError
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Artifacts
from tactician.signature import Blob, OpSignature, TensorType

DEVICE = CpuDevice()
RNG = np.random.default_rng(11)
Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def outputs_of(signature: OpSignature) -> list[Any]:
    """Return poisoned outputs."""
    return [None if t is None else np.full(t.dims, 97, t.numpy_dtype) for t in signature.outputs]


def run(tactic: OnnxRuntime, signature: OpSignature, inputs: list[Any]) -> list[Array]:
    assert tactic.decline(signature, DEVICE) is None
    outputs = outputs_of(signature)
    assert tactic.prepare(signature, DEVICE)(inputs, outputs, None, None) is None
    return [o for o in outputs if o is not None]


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


CONV = [normal(1, 16, 14, 14), normal(24, 16, 3, 3), normal(24)]
PADS = {"pads": [1, 1, 1, 1]}

CASES: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "Conv": ("Conv", CONV, PADS, 1),
    "MatMul": ("MatMul", [normal(3, 5, 8), normal(8, 6)], {}, 1),
    "Gemm": ("Gemm", [normal(3, 8), normal(6, 8), normal(6)], {"transB": 1}, 1),
    "Softmax": ("Softmax", [normal(3, 8)], {}, 1),
    "LayerNormalization": ("LayerNormalization", [normal(2, 3, 8), normal(8), normal(8)], {}, 3),
    "Clip": ("Clip", [normal(9), None, np.array(0.3, np.float32)], {}, 1),
    "Identity": ("Identity", [normal(9)], {}, 1),
    "Less": ("Less", [normal(3, 4), normal(4)], {}, 1),
    "Gather": ("Gather", [normal(5, 3), np.array([4, 0], np.int64)], {}, 1),
    "Scalar": ("Add", [normal(), normal()], {}, 1),
    "Empty": ("Relu", [normal(0, 3)], {}, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_written_in_place(name: str) -> None:
    op, inputs, attributes, outputs = CASES[name]
    signature = make_signature(op, inputs, attributes, 17, (), outputs)
    wide = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    expected = reference_for(signature)(wide)
    for actual, reference in zip(run(OnnxRuntime(), signature, inputs), expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-5)


def test_known_constants_need_not_be_floats_or_inputs() -> None:
    x, shape = normal(4, 6), np.array([3, 8], np.int64)
    signature = make_signature("Reshape", [x, shape], {}, 21, constants=[1])
    np.testing.assert_array_equal(run(OnnxRuntime(), signature, [x, shape])[0], x.reshape(3, 8))


def test_weights_are_offered_packed_where_kernels_pack_them() -> None:
    constant = make_signature("Conv", CONV, PADS, constants=[1, 2])
    assert list(OnnxRuntime.candidates(constant, DEVICE)) == [OnnxRuntime(packed=True), OnnxRuntime()]
    for other in (
        make_signature("Conv", CONV, PADS),
        make_signature("Add", CONV[:1] * 2, constants=[1]),
        make_signature("Conv", CONV, PADS, constants=[0, 1, 2]),
    ):
        assert list(OnnxRuntime.candidates(other, DEVICE)) == [OnnxRuntime()]
        assert OnnxRuntime(packed=True).decline(other, DEVICE) == "no constant weights to pack"


@pytest.mark.parametrize("packed", [False, True])
def test_one_launch_serves_many_buffers(packed: bool) -> None:
    signature = make_signature("Conv", CONV, PADS, constants=[1, 2])
    launch = OnnxRuntime(packed=packed).prepare(signature, DEVICE)
    compute = reference_for(signature)
    for _ in range(2):
        for seed in range(MAX_BINDINGS + 3):
            rng = np.random.default_rng(seed)
            inputs = [rng.standard_normal(x.shape).astype(np.float32) for x in CONV]
            outputs = outputs_of(signature)
            launch(inputs, outputs, None, None)
            assert relative_error(outputs[0], compute(inputs)[0]) < 1e-5


def test_other_weights_at_the_same_address_are_noticed() -> None:
    signature = make_signature("Conv", CONV, PADS, constants=[1, 2])
    launch = OnnxRuntime(packed=True).prepare(signature, DEVICE)
    inputs, outputs = [x.copy() for x in CONV], outputs_of(signature)
    launch(inputs, outputs, None, None)
    before = outputs[0].copy()
    inputs[1][...] = normal(*inputs[1].shape)
    launch(inputs, outputs, None, None)
    assert relative_error(outputs[0], before) > 0.1
    assert relative_error(outputs[0], reference_for(signature)(inputs)[0]) < 1e-5


def test_read_only_weights_can_be_packed() -> None:
    signature = make_signature("MatMul", [normal(4, 8), normal(8, 6)], constants=[1])
    inputs = [normal(4, 8), np.frombuffer(normal(8, 6).tobytes(), np.float32).reshape(8, 6)]
    result = run(OnnxRuntime(packed=True), signature, inputs)[0]
    assert relative_error(result, inputs[0] @ inputs[1]) < 1e-5


def conv_add_relu() -> OpSignature:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "z"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 20)]
    body = helper.make_function("tactician", "ConvAddRelu", ["x", "w", "b", "z"], ["y"], nodes, imports)
    plain = make_signature("Conv", CONV, PADS, constants=[1, 2])
    return OpSignature(
        "tactician::ConvAddRelu",
        1,
        (),
        (*plain.inputs, plain.outputs[0]),
        plain.outputs,
        (*plain.constants, None),
        body.SerializeToString(),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_fused_bodies(packed: bool) -> None:
    signature = conv_add_relu()
    inputs = [*CONV, normal(1, 24, 14, 14)]
    expected = reference_for(signature)(inputs)[0]
    assert OnnxRuntime(packed=True) in list(OnnxRuntime.candidates(signature, DEVICE))
    assert relative_error(run(OnnxRuntime(packed=packed), signature, inputs)[0], expected) < 1e-5
    assert expected.min() == 0


def test_dynamic_shapes_are_returned() -> None:
    rows = TensorType("float32", ("rows", 3))
    signature = make_signature("Relu", [normal(2, 3)]).bound((rows,), (rows,))
    assert OnnxRuntime().decline(signature, DEVICE) is None
    launch = OnnxRuntime().prepare(signature, DEVICE)
    for rows_now in (1, 5):
        x = normal(rows_now, 3)
        results = launch([x], [None], None, None)
        assert results is not None
        np.testing.assert_array_equal(results[0], np.maximum(x, 0))


def test_text_and_sequences() -> None:
    text = TensorType("string", (2,))
    upper = OpSignature(
        "ai.onnx::StringNormalizer", 10, (("case_change_action", "UPPER"),), (text,), (text,), (None,)
    )
    if OnnxRuntime().decline(upper, DEVICE) is None:  # it needs a locale that not every machine has
        out = np.empty(2, object)
        OnnxRuntime().prepare(upper, DEVICE)([np.array(["ab", "c"], object)], [out], None, None)
        assert out.tolist() == ["AB", "C"]
    sequence, tensor = TensorType("sequence(float32)", None), TensorType("float32", (2,))
    insert = OpSignature("ai.onnx::SequenceInsert", 11, (), (sequence, tensor), (sequence,), (None, None))
    assert OnnxRuntime().decline(insert, DEVICE) is None
    results = OnnxRuntime().prepare(insert, DEVICE)([[normal(2)], normal(2)], [None], None, None)
    assert results is not None
    assert len(results[0]) == 2


def test_control_flow_with_captured_values() -> None:
    def branch(op: str) -> Any:
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])
        return helper.make_graph([helper.make_node(op, ["left", "right"], ["out"])], op, [], [out])

    attributes = tuple(
        (name, Blob("graph", (branch(op).SerializeToString(),)))
        for name, op in (("else_branch", "Add"), ("then_branch", "Mul"))
    )
    types = (TensorType("bool", ()), TensorType("float32", (3,)), TensorType("float32", (3,)))
    signature = OpSignature("ai.onnx::If", 21, attributes, types, types[1:2], (None,) * 3)
    left, right = normal(3), normal(3)
    np.testing.assert_array_equal(
        run(OnnxRuntime(), signature, [np.array(True), left, right])[0], left * right
    )
    np.testing.assert_array_equal(
        run(OnnxRuntime(), signature, [np.array(False), left, right])[0], left + right
    )


def unary(op: str, dtype: str = "float32", shape: Any = (2,), version: int = 20) -> OpSignature:
    tensor = TensorType(dtype, shape)
    return OpSignature(op, version, (), (tensor,), (tensor,), (None,))


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (unary("acme::Thing"), "knows no operators of domain 'acme'"),
        (unary("ai.onnx::Thing"), "ONNX Runtime: .*Thing"),
        (unary("ai.onnx::Identity", "int4"), "no NumPy arrays of type int4"),
        (unary("ai.onnx::Identity", "optional(float32)", None), "can't be passed"),
        (
            unary("ai.onnx::Sin", "bfloat16", version=22),
            "ONNX Runtime: Could not find an implementation for Sin",
        ),
    ],
)
def test_declines_in_words_and_in_silence(signature: OpSignature, reason: str, capfd: Any) -> None:
    declined = OnnxRuntime().decline(signature, DEVICE)
    assert declined is not None
    assert "onnxruntime_src" not in declined
    assert re.search(reason, declined), declined
    assert capfd.readouterr() == ("", "")


def test_what_fails_only_when_it_runs_is_declined_too() -> None:
    x, w = np.ones((1, 1, 4, 4), np.uint8), np.ones((2, 1, 2, 2), np.uint8)
    inputs = [x, w, np.array(0, np.uint8), np.array([0, 1], np.uint8)]
    signature = make_signature("ConvInteger", inputs, {}, 10)
    assert "zero" in (OnnxRuntime().decline(signature, DEVICE) or "").lower()


def test_the_application_keeps_its_own_thread_pools() -> None:
    run(OnnxRuntime(), make_signature("Relu", [normal(4)]), [normal(4)])
    model = resnet50(image=32, width=4, blocks=(1,), classes=3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"image": normal(1, 3, 32, 32)})[0].shape == (1, 3)


def test_without_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session.onnxruntime_c, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime_node, "is_available", lambda: False)
    onnxruntime_session._sessions.clear()
    onnxruntime_node._refusals.clear()
    signature = make_signature("Conv", CONV, PADS, constants=[1, 2])
    expected = reference_for(signature)(CONV)[0]
    for packed in (False, True):
        assert relative_error(run(OnnxRuntime(packed=packed), signature, CONV)[0], expected) < 1e-5
    assert any(isinstance(s, PythonSession) for s in onnxruntime_session._sessions.values())
    assert "no NumPy arrays of type bfloat16" in (
        OnnxRuntime().decline(unary("ai.onnx::Neg", "bfloat16"), DEVICE) or ""
    )
    onnxruntime_session._sessions.clear()
    onnxruntime_node._refusals.clear()


def test_c_sessions_report_their_errors() -> None:
    if not onnxruntime_session.onnxruntime_c.is_available():
        pytest.skip("this onnxruntime package comes without a C library")
    with pytest.raises(TacticError, match=r"[Pp]rotobuf"):
        onnxruntime_session.onnxruntime_c.CSession(b"no model", 1)


LOAD = """
import pickle, sys
import numpy as np
from tactician.builtin_kernels.cpu.onnxruntime_node import OnnxRuntime
from tactician.builtin_kernels.cpu.target import CpuDevice
from tactician.plugins.target import Artifacts
from tactician.signature import OpSignature
plain, artifacts, inputs, expected = pickle.load(open(sys.argv[1], "rb"))
signature = OpSignature.from_plain(plain)
for packed in (False, True):
    out = np.zeros_like(expected)
    launch = OnnxRuntime(packed=packed).prepare(signature, CpuDevice(artifacts=Artifacts(artifacts)))
    launch(inputs, [out], None, None)
    assert np.allclose(out, expected, rtol=1e-3, atol=1e-4)
assert not {"onnx", "onnx_ir"} & {m.partition(".")[0] for m in sys.modules}
"""


def test_loading_from_artifacts_imports_no_onnx(tmp_path: Path) -> None:
    signature = make_signature("Conv", CONV, PADS, constants=[1, 2])
    device = CpuDevice(artifacts=Artifacts())
    for packed in (False, True):
        OnnxRuntime(packed=packed).prepare(signature, device)
    used = device.artifacts.used()
    assert len(used) == 2
    assert max(map(len, used.values())) < 1000  # weights are not in them
    state = (signature.to_plain(), used, CONV, reference_for(signature)(CONV)[0])
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "state")], check=True)


def test_a_session_that_is_there_already_still_counts_as_used() -> None:
    signature = make_signature("Relu", [normal(7)])
    OnnxRuntime().prepare(signature, DEVICE)
    other = CpuDevice(artifacts=Artifacts())
    OnnxRuntime().prepare(signature, other)
    assert len(other.artifacts.used()) == 1


def test_model_generators_make_runnable_models() -> None:
    for model, inputs in (
        (
            resnet50(2, image=64, width=8, blocks=(1, 2, 1, 1), batch_norm=True),
            {"image": normal(2, 3, 64, 64)},
        ),
        (
            bert_encoder(2, 32, 4, 6, 2),
            {"hidden_states": normal(2, 6, 32), "mask": np.zeros((2, 1, 1, 6), np.float32)},
        ),
    ):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        result = session.run(None, inputs)[0]
        assert np.isfinite(result).all()
        assert 0.1 < result.std() < 30


@pytest.mark.parametrize(
    ("op", "shapes", "dtype", "words"),
    [
        ("Attention", [(1, 2, 5, 8)] * 3, np.float16, "rounds the scores"),
        ("InstanceNormalization", [(2, 3, 1, 1), (3,), (3,)], np.float32, "one element in a channel"),
    ],
)
def test_what_is_computed_inexactly_is_declined(
    op: str, shapes: list[tuple[int, ...]], dtype: Any, words: str
) -> None:
    inputs = [np.random.default_rng(0).standard_normal(s).astype(dtype) for s in shapes]
    reason = OnnxRuntime().decline(make_signature(op, inputs), CpuDevice())
    assert words in str(reason)
