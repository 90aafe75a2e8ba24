"""Models and engines for tests; the engines are made by hand, every outcome occurs in their record."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tactician.engine import Engine, weight_bytes
from tactician.plan import (
    BuildReport,
    MemoryReport,
    ModelInfo,
    Place,
    Plan,
    PluginUse,
    StageReport,
    Step,
    TensorSpec,
)
from tactician.signature import OpSignature, TensorType
from tactician.tactics.record import CandidateRecord, Decision, Outcome, Timing

CHOSEN = "acme.fast(block=64)"


def make_decision(nodes: tuple[str, ...] = ("layer1.fc", "layer2.fc"), target: str = "gadget") -> Decision:
    """Return a decision with one candidate of every outcome, and two declined for one reason."""
    timing = Timing(7.2e-6, 7.1e-6, 7.4e-6, 40)
    candidates = (
        CandidateRecord(
            "other.slow()", "other", Outcome.SLOWER, "", Timing(9.6e-6, 9.5e-6, 9.7e-6, 12), 4e-7, 1e-5
        ),
        CandidateRecord(
            CHOSEN, "acme", Outcome.CHOSEN, "", timing, 3e-7, 1e-5, workspace=1 << 20, cached=True
        ),
        CandidateRecord(
            "acme.fast(block=32)", "acme", Outcome.TIE, "more workspace", timing, 3e-7, 1e-5, 2 << 20
        ),
        CandidateRecord("acme.wino()", "acme", Outcome.WRONG, "", Timing(6e-6, 6e-6, 6e-6, 8), 3e-2, 1e-5),
        CandidateRecord("other.crash()", "other", Outcome.FAILED, "does not compile"),
        CandidateRecord("acme.fp8(a=1)", "acme", Outcome.DECLINED, "needs float8 input"),
        CandidateRecord("acme.fp8(a=2)", "acme", Outcome.DECLINED, "needs float8 input"),
        CandidateRecord("lib.x()", "lib", Outcome.FILTERED, "source 'lib' is not allowed"),
        CandidateRecord("acme.fast(block=16)", "acme", Outcome.PRUNED, "beyond the limit"),
        CandidateRecord("acme.idle()", "acme", Outcome.UNMEASURED, "no input of that kind"),
    )
    return Decision(
        "MatMul(float32[2, 3]) -> float32[2, 5]",
        "ab" * 32,
        nodes,
        target,
        CHOSEN,
        "hook:acme",
        candidates,
        "why",
        0.021,
    )


def make_engine() -> Engine:
    """Return an engine for a target 'gadget': one node on it, one on the CPU, and the copy between them."""
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    x, w, y = (TensorType("float32", shape) for shape in ((2, 3), (3, 5), (2, 5)))
    matmul = OpSignature("ai.onnx::MatMul", 18, (), (x, w), (y,), (None, None))
    exotic = OpSignature("acme::Exotic", 1, (), (y,), (y,), (None,))
    plan = Plan(
        format_version=1,
        producer="tactician 0.1.0",
        target="gadget",
        requirements={"arch": "g1"},
        model=ModelInfo("m.onnx", "0123456789abcdef" * 4, 2, 15),
        plugins=(PluginUse("acme", "1.5", "cd" * 32),),
        tensors=(
            TensorSpec("x", "float32", (2, 3), "gadget", Place.INPUT),
            TensorSpec("w", "float32", (3, 5), "gadget", Place.WEIGHT),
            TensorSpec("h", "float32", (2, 5), "gadget", Place.ARENA),
            TensorSpec("h", "float32", (2, 5), "cpu", Place.ARENA),
            TensorSpec("y", "float32", (2, 5), "cpu", Place.OUTPUT),
        ),
        inputs=(0,),
        outputs=(4,),
        steps=(
            Step("layer1.fc", "ai.onnx::MatMul", "gadget", CHOSEN, 1, matmul.to_plain(), (0, 1), (2,), 0),
            Step("copy of h to cpu", "copy", "cpu", "", 0, {}, (2,), (3,)),
            Step("exotic", "acme::Exotic", "cpu", "acme.slow()", 1, exotic.to_plain(), (3,), (4,)),
        ),
        memory=(MemoryReport("cpu", 256, 256, 256, 0, 0), MemoryReport("gadget", 256, 512, 256, 0, 256)),
        threads=1,
    )
    decisions = (make_decision(), make_decision(("exotic",), "cpu"))
    stages = (StageReport("fold", 4, 2, 0.01), StageReport("prune", 2, 2, 0.001))
    report = BuildReport({"name": "Gadget 9000", "driver": "1.2"}, decisions, stages, {"measure": 1.25})
    return Engine(plan, report, {"w": weight_bytes(weight)}, {})


def make_model(
    scale: float = 1.0, op: str = "Relu", domain: str = "", outside: bool = False
) -> onnx.ModelProto:
    """Return y = op(x @ w), x of symbolic batch."""
    weight = numpy_helper.from_array(
        (scale * np.random.default_rng(0).standard_normal((3, 5))).astype(np.float32), "w"
    )
    if outside:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights.bin")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node(op, ["h"], ["y"], "activation", domain=domain),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weight]), opset_imports=opsets, ir_version=9
    )
