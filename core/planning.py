"""From a network and what runs each of its nodes to the plan of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tactician import __version__
from tactician.assembly import Assembly, Assignment
from tactician.config import BuilderConfig
from tactician.network import tensor_type
from tactician.plan import FORMAT_VERSION, ModelInfo, Plan, PluginUse
from tactician.plugins.target import Device
from tactician.views import view_offsets


def make_plan(
    network: ir.Model,
    assignments: Mapping[str, Assignment],
    devices: Sequence[Device],
    info: ModelInfo,
    config: BuilderConfig,
) -> tuple[Plan, dict[str, Any], dict[str, bytes]]:
    """Return the plan, its weights by name, and the compiled things that it needs by key.

    Parameters
    ----------
    assignments
        By name of node; those that have none are views.
    devices
        The one that is built for, then those that run what it has no tactic for.
    """
    by_target = {d.target: d for d in devices}
    assembly = Assembly(devices[0].target, by_target)
    for value in network.graph.inputs:
        assembly.add_input(value, _input_target(value, network, assignments, devices))
    for node in network.graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        if (node.name or "") in assignments:
            assembly.add_node(node, assignments[node.name or ""], network.graph.outputs)
        else:
            assembly.add_view(node, view_offsets(node) or ())
    outputs = tuple(assembly.output(value, devices[0].target) for value in network.graph.outputs)
    memory = assembly.place_memory()
    used = {a.candidate.plugin for a in assignments.values()}
    plan = Plan(
        format_version=FORMAT_VERSION,
        producer=f"tactician {__version__}",
        target=devices[0].target,
        requirements=devices[0].requirements(),
        model=info,
        plugins=tuple(PluginUse(p.name, p.version, p.digest) for p in sorted(used, key=lambda p: p.name)),
        tensors=tuple(assembly.tensors),
        inputs=tuple(assembly.locate_input(value) for value in network.graph.inputs),
        outputs=outputs,
        steps=tuple(assembly.steps),
        memory=memory,
        threads=config.threads,
    )
    return plan, assembly.weights, _used_artifacts(assignments.values(), by_target)


def _input_target(
    value: ir.Value, network: ir.Model, assignments: Mapping[str, Assignment], devices: Sequence[Device]
) -> str:
    """Return where an input is wanted: on the main device if any node there reads it."""
    main = devices[0].target
    type = tensor_type(value)
    if type is None or not type.is_static or type.dtype == "string":
        return devices[-1].target
    readers = {assignments[n.name or ""].target for n in value.consumers() if (n.name or "") in assignments}
    return main if not readers or main in readers else next(iter(readers))


def _used_artifacts(assignments: Iterable[Assignment], devices: Mapping[str, Device]) -> dict[str, bytes]:
    """Prepare what was chosen once more, to see which compiled things it needs: only those go into the engine."""
    for device in devices.values():
        device.artifacts.forget_use()
    seen = set()
    for assignment in assignments:
        key = (assignment.candidate.id, assignment.signature.key)
        if key not in seen:
            seen.add(key)
            assignment.candidate.tactic.prepare(assignment.signature, devices[assignment.target])
    return {key: data for device in devices.values() for key, data in device.artifacts.used().items()}
