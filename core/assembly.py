"""From a network and the choices made for it to an engine: tensors placed, copies inserted, memory planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from tactician.engine import weight_bytes
from tactician.errors import NoTacticError
from tactician.memory import ALIGNMENT, Lifetime, plan_memory
from tactician.network import call_inputs, tensor_type
from tactician.plan import ABSENT, MemoryReport, Place, Step, TensorSpec
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.registry import Candidate


@dataclass(frozen=True)
class Assignment:
    """What runs one node: the chosen candidate, where, and on which signature."""

    candidate: Candidate
    target: str
    signature: OpSignature


@dataclass
class Assembly:
    """Builds the tensors, steps and weights of a plan, node by node in topological order."""

    target: str
    devices: Mapping[str, Device]
    tensors: list[TensorSpec] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    _index: dict[tuple[int, str], int] = field(default_factory=dict)
    _home: dict[int, str] = field(default_factory=dict)
    _kept: list[ir.Value] = field(default_factory=list)
    _base: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each view the tensor in which it lies, and where."""

    def add_input(self, value: ir.Value, target: str) -> int:
        """Place a graph input on ``target``."""
        return self._new(value, target, Place.INPUT)

    def add_node(self, node: ir.Node, assignment: Assignment, outputs: Sequence[ir.Value]) -> None:
        """Append the step of ``node``; ``outputs`` are the graph's outputs."""
        inputs = tuple(ABSENT if v is None else self.locate(v, assignment.target) for v in call_inputs(node))
        results = tuple(self._result(v, assignment.target, outputs) for v in node.outputs)
        tactic = assignment.candidate.tactic
        workspace = tactic.workspace(assignment.signature, self.devices[assignment.target])
        self.steps.append(
            Step(
                node=node.name or "",
                op=assignment.signature.op,
                target=assignment.target,
                tactic=assignment.candidate.id,
                tactic_version=tactic.version,
                signature=assignment.signature.to_plain(),
                inputs=inputs,
                outputs=results,
                workspace=workspace,
            )
        )

    def add_view(self, node: ir.Node, offsets: Sequence[int]) -> None:
        """Let each result of ``node`` lie at its offset, in bytes, in its first input."""
        source = node.inputs[0]
        assert source is not None
        home = self._home[id(source)]
        base, before = self._base.get(self._index[id(source), home], (self._index[id(source), home], 0))
        for result, offset in zip(node.outputs, offsets, strict=True):
            self._base[self._new(result, home, Place.ARENA)] = (base, before + offset)

    def locate(self, value: ir.Value, target: str) -> int:
        """Return the index of ``value`` on ``target``, inserting a copy from where it was made if need be."""
        key = (id(value), target)
        if key in self._index:
            return self._index[key]
        if id(value) not in self._home and ir.convenience.get_const_tensor(value) is not None:
            return self._add_weight(value, target)
        if id(value) not in self._home:
            raise NoTacticError(
                f"value '{value.name}' is used before anything computes it; the network is not in topological order"
            )
        source = self._index[id(value), self._home[id(value)]]
        copy = self._new(value, target, self._place(value, target), home=False)
        name = f"copy of {value.name} to {target}"
        self.steps.append(Step(name, "copy", target, "", 0, {}, (source,), (copy,)))
        return copy

    def _result(self, value: ir.Value, target: str, outputs: Sequence[ir.Value]) -> int:
        if not value.name:
            type = tensor_type(value)
            # an absent output of a static signature: nothing to write to
            if type is None or (not value.uses() and value not in outputs):
                return ABSENT
        is_output = any(value is o for o in outputs)
        return self._new(value, target, Place.OUTPUT if is_output else self._place(value, target))

    def _place(self, value: ir.Value, target: str) -> Place:
        type = tensor_type(value)
        static = type is not None and type.is_static and type.dtype != "string"
        return Place.ARENA if static else Place.DYNAMIC

    def _add_weight(self, value: ir.Value, target: str) -> int:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None  # locate() asked
        array = tensor.numpy()
        name = value.name or f"weight_{len(self.weights)}"
        self.weights.setdefault(name, weight_bytes(array))
        return self._new(value, target, Place.WEIGHT, home=False)

    def _new(self, value: ir.Value, target: str, place: Place, *, home: bool = True) -> int:
        type = tensor_type(value)
        dtype, shape = (type.dtype, type.shape) if type else ("float32", None)
        self.tensors.append(
            TensorSpec(value.name or f"value_{len(self.tensors)}", dtype, shape, target, place)
        )
        self._index[id(value), target] = len(self.tensors) - 1
        self._kept.append(value)  # ids stay unique only while their objects live
        if home:
            self._home[id(value)] = target
        return len(self.tensors) - 1

    def locate_input(self, value: ir.Value) -> int:
        """Return the index of graph input ``value`` where the caller binds it."""
        return self._index[id(value), self._home[id(value)]]

    def output(self, value: ir.Value, target: str) -> int:
        """Return the index of graph output ``value`` where it was made; a constant output is placed on ``target``."""
        home = self._home.get(id(value))
        return self.locate(value, home or target)

    def place_memory(self) -> tuple[MemoryReport, ...]:
        """Give every arena tensor, workspace and weight its offset, target by target."""
        reports = []
        for target in sorted({t.target for t in self.tensors} | {s.target for s in self.steps}):
            reports.append(self._place_target(target))
        return tuple(reports)

    def _place_target(self, target: str) -> MemoryReport:
        first, last = self._lifetimes()
        members = [
            i
            for i, t in enumerate(self.tensors)
            if t.target == target and t.place == Place.ARENA and i not in self._base
        ]
        users = [n for n, s in enumerate(self.steps) if s.target == target and s.workspace]
        lifetimes = [Lifetime(self.tensors[i].type.nbytes, first[i], last[i]) for i in members]
        plan = plan_memory(lifetimes + [Lifetime(self.steps[n].workspace, n, n) for n in users])
        for i, offset in zip(members, plan.offsets, strict=False):
            self.tensors[i] = _moved(self.tensors[i], offset)
        for view, (base, within) in self._base.items():
            if self.tensors[view].target == target:
                self.tensors[view] = _moved(self.tensors[view], self.tensors[base].offset + within)
        for n, offset in zip(users, plan.offsets[len(members) :], strict=True):
            self.steps[n] = _with_workspace(self.steps[n], offset)
        offset = 0
        for i, tensor in enumerate(self.tensors):
            if tensor.target == target and tensor.place == Place.WEIGHT and tensor.dtype != "string":
                self.tensors[i] = _moved(tensor, offset)
                offset += -(-tensor.type.nbytes // ALIGNMENT) * ALIGNMENT
        workspace = max((self.steps[n].workspace for n in users), default=0)
        return MemoryReport(target, plan.peak, plan.naive, plan.lower_bound, workspace, offset)

    def _lifetimes(self) -> tuple[dict[int, int], dict[int, int]]:
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, step in enumerate(self.steps):
            for index in (*step.inputs, *step.outputs):
                if index != ABSENT:
                    base, _ = self._base.get(index, (index, 0))
                    first.setdefault(base, number)
                    last[base] = number
        return first, last


def _moved(tensor: TensorSpec, offset: int) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tensor.shape, tensor.target, tensor.place, offset)


def _with_workspace(step: Step, offset: int) -> Step:
    return Step(
        step.node,
        step.op,
        step.target,
        step.tactic,
        step.tactic_version,
        step.signature,
        step.inputs,
        step.outputs,
        step.workspace,
        offset,
    )
