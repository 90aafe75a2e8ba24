"""Whole models planned for a Hopper GPU that is not there: what fuses, that nothing is left for the CPU, and how memory lies.

Every call that a tactic accepts is said to take ten microseconds, with the channels innermost five: what is looked at is
whether kernels accept the calls that a network comes to, and how many launches are left, not which kernel is fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import bert_encoder, resnet50
from onnx.reference import ReferenceEvaluator
from tactician.assembly import Assembly, Assignment
from tactician.config import BuilderConfig
from tactician.fusion import Fuser
from tactician.importer import import_model
from tactician.layouts.standard import standard
from tactician.layouts.twins import Twins
from tactician.optimizing import optimise
from tactician.plan import MemoryReport
from tactician.plugins.manager import load_plugins
from tactician.profile_choices import ProfileChoices, kind_of
from tactician.signature import OpSignature
from tactician.specialising import ProfileLock
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Decision, Outcome, Timing
from tactician.tactics.registry import Candidate
from tactician.views import view_offsets

CONFIG = BuilderConfig(target="cuda", plugins=("builtin",))
SECONDS = 10e-6
OF_OPERATORS = {"tactician.nhwc::Conv": SECONDS / 2, "ai.onnx::Transpose": SECONDS / 10}


@dataclass(frozen=True)
class Planned:
    """The calls of a network by node, its memory, and the nodes that no kernel accepts."""

    calls: Mapping[str, OpSignature]
    memory: MemoryReport
    without_kernel: tuple[str, ...]

    def launches(self) -> Counter[str]:
        """Return how many nodes there are of each kind."""
        return Counter(call.op.rpartition("::")[2] for call in self.calls.values())


class _Planner:
    """Builds as ``tactician.build`` does, with made-up times in the place of a GPU's."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._plugins = load_plugins(CONFIG)
        self._accepted: dict[str, list[Candidate]] = {}

    def plan(self, model: onnx.ModelProto) -> Planned:
        network, fuser = self._fused(model)
        calls = fuser.signatures()
        missing = tuple(name for name, call in calls.items() if not self._candidates(call))
        return Planned(calls, self._memory(network, calls), missing)

    def decide(self, model: onnx.ModelProto) -> list[Decision]:
        """Return decisions for the first candidate of every node."""
        _, fuser = self._fused(model)
        decisions = []
        for name, call in fuser.signatures().items():
            chosen = self._candidates(call)[0].id
            record = CandidateRecord(chosen, "builtin", Outcome.CHOSEN)
            operators = (fuser.operators()[name],) if name in fuser.operators() else ()
            decisions.append(
                Decision(str(call), call.key, (name,), "cuda", chosen, "", (record,), operators=operators)
            )
        return decisions

    def replay(self, model: onnx.ModelProto, lock: LockFile) -> dict[str, OpSignature]:
        """Return the calls that a network comes to when ``lock`` decides, by name."""
        network = import_model(model, None, self._plugins.ops)
        config = replace(CONFIG, locked=True)
        made = optimise(network, self._plugins, self._device, config, lock, self._forbidden, _no_clock)
        return made.fuser.signatures()

    def choose(self, decisions: list[Decision], calls: Mapping[str, OpSignature]) -> dict[str, str]:
        """Return the tactics that follow ``decisions``, by node."""
        choices = ProfileChoices(decisions, self._plugins, CONFIG, [self._device])
        return {name: choices.choose(name, call)[0].chosen for name, call in calls.items()}

    def _fused(self, model: onnx.ModelProto) -> tuple[ir.Model, Fuser]:
        network = import_model(model, None, self._plugins.ops)
        made = optimise(network, self._plugins, self._device, CONFIG, None, self._measure, _no_clock)
        calls = made.fuser.signatures()
        made.fuser.settle(self._measure(calls, proposed=made.fuser.candidates()))
        return network, made.fuser

    def _forbidden(self, *calls: Any, **options: Any) -> Any:
        raise AssertionError("something would be measured")

    def _candidates(self, call: OpSignature) -> list[Candidate]:
        if call.key not in self._accepted:
            accepted, _ = self._plugins.registry.candidates(call, self._device)
            self._accepted[call.key] = [c for c in accepted if not c.tactic.library]
        return self._accepted[call.key]

    def _measure(
        self,
        calls: Mapping[str, OpSignature],
        *rest: Any,
        proposed: Mapping[str, OpSignature] | None = None,
        **options: Any,
    ) -> Any:
        measured = {}
        for call in [*calls.values(), *(proposed or {}).values()]:
            seconds = OF_OPERATORS.get(call.op, SECONDS)
            timing = Timing(seconds, seconds, seconds, 5)
            records = tuple(
                CandidateRecord(c.id, "builtin", Outcome.UNMEASURED, timing=timing)
                for c in self._candidates(call)[:1]
            )
            measured[call.key] = (self._device, Measured(call, records, {}))
        return measured

    def _memory(self, network: ir.Model, calls: Mapping[str, OpSignature]) -> MemoryReport:
        assembly = Assembly("cuda", {"cuda": self._device})
        for value in network.graph.inputs:
            assembly.add_input(value, "cuda")
        for node in network.graph:
            call = calls.get(node.name or "")
            if call is None:
                assembly.add_view(node, view_offsets(node) or ())
            else:
                assembly.add_node(
                    node, Assignment(self._candidates(call)[0], "cuda", call), network.graph.outputs
                )
        (report,) = assembly.place_memory()
        return report


@contextmanager
def _no_clock(phase: str) -> Iterator[None]:
    yield


DYNAMIC: dict[str, Callable[[int], onnx.ModelProto]] = {
    "transformer": lambda batch: bert_encoder(layers=2, batch=batch, dtype="float16"),
    "convolutional": lambda batch: resnet50(batch=batch, dtype="float16"),
}
"""Networks by their batch: what is done to them must not depend on it more than kernels do."""


@pytest.fixture(scope="module")
def planner() -> _Planner:
    pytest.importorskip("cuda.core", reason="the compiler's package is not installed")
    from tactician.builtin_kernels.cuda.device import CompileOnlyDevice

    return _Planner(CompileOnlyDevice("sm_90a"))


def test_a_transformer(planner: _Planner) -> None:
    """Of a layer: a product with its biases, attention, a product with sums, a norm, one with GELU, one with sums, a norm."""
    layers = 3
    planned = planner.plan(bert_encoder(layers=layers, batch=8, dtype="float16"))
    assert planned.without_kernel == ()
    launches = planned.launches()
    # queries, keys and values of the first layer are products of an input, whose reshape would be a copy
    assert launches["Attention"] == layers
    assert sum(n for op, n in launches.items() if op.startswith("MatMul_Add")) == 4 * layers + 2
    assert launches["LayerNormalization"] == 2 * layers
    assert not {"Reshape", "Transpose", "Split", "Softmax", "Div"} & launches.keys()
    assert launches.total() == 7 * layers + 2


def test_a_convolutional_network(planner: _Planner) -> None:
    planned = planner.plan(resnet50(batch=4, dtype="float16"))
    assert planned.without_kernel == ()
    launches = planned.launches()
    moved = [call for call in planned.calls.values() if call.op == "tactician.nhwc::Conv"]
    assert len(moved) == launches["Conv"] == 4
    assert launches["Transpose"] == 1
    assert launches["Conv_Add_Relu"] == 16
    assert launches["Conv_Relu"] == 33
    assert launches.total() == 57
    assert not {"Reshape", "Flatten", "BatchNormalization"} & launches.keys()


@pytest.mark.parametrize("name", ["transformer", "convolutional"])
def test_what_is_written_down_is_standard(planner: _Planner, name: str) -> None:
    """Fused convolutions of channels-last tensors too: the checker takes it, and the reference runs it to the same result."""
    models: dict[str, Callable[[], onnx.ModelProto]] = {
        "transformer": lambda: bert_encoder(1, 64, 4, 24, 2, "float16"),
        "convolutional": lambda: resnet50(1, "float16", image=32, width=16, blocks=(1, 1, 1, 1), classes=16),
    }
    model = models[name]()
    network, fuser = planner._fused(model)
    assert any("nhwc" in str(call.anchor) for call in fuser.signatures().values()) == (
        name == "convolutional"
    )
    written = ir.serde.serialize_model(standard(network, Twins.of(planner._plugins.ops)))
    onnx.checker.check_model(written)
    assert not any(n.domain == "tactician.nhwc" for f in (written.graph, *written.functions) for n in f.node)
    rng = np.random.default_rng(0)
    shapes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in model.graph.input}
    feeds = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    (got,), (wanted,) = (ReferenceEvaluator(m).run(None, feeds) for m in (written, model))
    assert np.linalg.norm(got.astype(float) - wanted) <= 1e-2 * np.linalg.norm(wanted.astype(float))


@pytest.mark.parametrize("name", ["transformer", "convolutional"])
def test_memory_is_the_least_that_there_can_be(planner: _Planner, name: str) -> None:
    """Within 5 % of what is alive at once, and far less than all tensors."""
    models: dict[str, Callable[[], onnx.ModelProto]] = {
        "transformer": lambda: bert_encoder(layers=2, batch=8, dtype="float16"),
        "convolutional": lambda: resnet50(batch=4, dtype="float16"),
    }
    memory = planner.plan(models[name]()).memory
    assert memory.lower_bound <= memory.peak <= 1.05 * memory.lower_bound
    assert memory.peak < 0.5 * memory.naive


@pytest.mark.parametrize("name", ["transformer", "convolutional"])
def test_a_lock_file_makes_the_same_network(planner: _Planner, name: str) -> None:
    decisions = planner.decide(DYNAMIC[name](4))
    calls = planner.replay(DYNAMIC[name](4), LockFile.of(decisions, ()))
    assert {n: call.key for n, call in calls.items()} == {d.nodes[0]: d.key for d in decisions}


@pytest.mark.parametrize("batches", [(4, 8), (8, 1), (1, 8)])
@pytest.mark.parametrize("name", ["transformer", "convolutional"])
def test_another_batch_makes_the_same_network(planner: _Planner, name: str, batches: tuple[int, int]) -> None:
    """A profile's choices carry over: the same layouts and fusions, and tactics of the same classes."""
    opt, other = batches
    decisions = planner.decide(DYNAMIC[name](opt))
    calls = planner.replay(DYNAMIC[name](other), ProfileLock.of_decisions(decisions))
    assert [kind_of(str(call)) for call in calls.values()] == [kind_of(d.signature) for d in decisions]
    assert [call.op.partition("::")[0] for call in calls.values() if call.op_type == "Conv"] == [
        "tactician.nhwc" for d in decisions if "nhwc::Conv(" in d.signature
    ]
    chosen = planner.choose(decisions, calls)
    classes = [id.partition("(")[0] for id in chosen.values()]
    wanted = [d.chosen.partition("(")[0] for d in decisions]
    same = sum(a == b for a, b in zip(classes, wanted, strict=True))
    assert same >= 0.9 * len(wanted), [
        pair for pair in zip(classes, wanted, strict=True) if len(set(pair)) > 1
    ]


def test_every_kernel_of_a_plan_compiles(planner: _Planner) -> None:
    """The first choice of each call of a small transformer goes through the compiler."""
    planned = planner.plan(bert_encoder(layers=1, hidden=256, heads=4, batch=2, dtype="float16"))
    prepared: Sequence[OpSignature] = list({call.key: call for call in planned.calls.values()}.values())
    for call in prepared:
        planner._candidates(call)[0].tactic.prepare(call, planner._device)
