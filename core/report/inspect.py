"""What an engine is: header, inputs and outputs, memory, steps, and the files that TensorRT's tools read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from tactician.plan import ABSENT, MemoryReport, Plan, PrecisionTrial, Step, TensorSpec
from tactician.profiles import OptimizationProfile
from tactician.report.format import count, duration, percent, plural, size, table


def describe(plan: Plan, device: Mapping[str, str]) -> str:
    """Return what an engine is for, as lines of text.

    Parameters
    ----------
    device
        Fingerprint of the device that it was built on.
    """
    needs = ", ".join(f"{k} {v}" for k, v in plan.requirements.items())
    lines = [
        f"model    {plan.model.name}, {plural(plan.model.nodes, 'node')}, "
        f"{count(plan.model.parameters)} parameters, sha256 {plan.model.sha256[:16]}",
        f"built    by {plan.producer} for {plan.target}: " + (describe_device(device) or "unknown device"),
        f"needs    {needs or 'nothing beyond its target'}",
        "plugins  " + (", ".join(f"{p.name} {p.version} ({p.digest[:12]})" for p in plan.plugins) or "none"),
    ]
    lines += [f"input    {t.name}: {t.type}" for t in (plan.tensors[i] for i in plan.inputs)]
    lines += [f"output   {t.name}: {t.type}" for t in (plan.tensors[i] for i in plan.outputs)]
    lines += [f"memory   {describe_memory(report)}" for report in plan.memory]
    return "\n".join([*lines, *(f"WARNING  {line}" for line in fallbacks(plan))])


def describe_profiles(profiles: Sequence[OptimizationProfile], shown: int) -> str:
    """Return the optimization profiles, a line for each; ``shown`` is the one that the rest is about."""
    return "\n".join(
        f"profile  {number}: {profile}" + (", whose steps at its opt are these" if number == shown else "")
        for number, profile in enumerate(profiles)
    )


def device_name(device: Mapping[str, str]) -> str:
    """Return the name out of a device's fingerprint."""
    return device.get("device", device.get("name", ""))


def describe_device(device: Mapping[str, str]) -> str:
    """Return the fields of a device's fingerprint on one line, its name first."""
    name = device_name(device)
    fields = [f"{k} {v}" for k, v in sorted(device.items()) if v and v != name]
    return f"{name} ({', '.join(fields)})" if name and fields else name or ", ".join(fields)


def describe_memory(report: MemoryReport) -> str:
    """Return one target's memory on one line."""
    saved = f", {size(report.naive)} without reuse, at least {size(report.lower_bound)}"
    return (
        f"{report.target}: activations {size(report.peak)}{saved}; workspace {size(report.workspace)}; "
        f"weights {size(report.weights)}"
    )


def describe_trial(trial: PrecisionTrial) -> str:
    """Return what came of one precision in the race of ``precision="best"``."""
    facts = [
        "" if trial.seconds is None else duration(trial.seconds),
        "" if trial.error is None else f"error {trial.error:.1e}",
        trial.reason,
    ]
    return f"{trial.precision}: " + ", ".join(fact for fact in facts if fact)


def fallbacks(plan: Plan) -> list[str]:
    """Return a line for each operator that runs elsewhere than on the engine's target, with its nodes."""
    elsewhere = Counter((s.op, s.target) for s in plan.steps if not s.is_copy and s.target != plan.target)
    copies = sum(s.is_copy for s in plan.steps)
    lines = [
        f"{plural(n, 'node')} of {op} on the {target}, not on {plan.target}"
        for (op, target), n in sorted(elsewhere.items())
    ]
    return lines + (
        [f"{plural(copies, 'copy').replace('copys', 'copies')} between targets in each run"] if copies else []
    )


def describe_steps(plan: Plan, seconds: Sequence[float] | None = None) -> str:
    """Return the table of steps, with the time of each where ``seconds`` has it."""
    total = sum(seconds or ()) or 1.0
    rows = []
    for number, step in enumerate(plan.steps):
        timing = [duration(seconds[number]), percent(seconds[number] / total)] if seconds else []
        rows.append(
            [
                str(number),
                step.node,
                _short(step.op),
                step.target,
                step.tactic or "(copy)",
                *timing,
                _result(plan, step),
            ]
        )
    header = ["#", "node", "op", "target", "tactic", *(["time", "share"] if seconds else []), "output"]
    return table(header, rows, right=(0, 5, 6) if seconds else (0,))


def layer_info(plan: Plan) -> dict[str, Any]:
    """Return the engine's layers in the shape of trtexec's ``--exportLayerInfo``."""
    return {
        "Layers": [
            {
                "Name": step.node,
                "LayerType": "Reformat" if step.is_copy else _short(step.op),
                "Inputs": [_binding(plan.tensors[i]) for i in step.inputs if i != ABSENT],
                "Outputs": [_binding(plan.tensors[i]) for i in step.outputs if i != ABSENT],
                "TacticName": step.tactic,
                "Target": step.target,
                "WorkspaceSize": step.workspace,
            }
            for step in plan.steps
        ],
        "Bindings": [plan.tensors[i].name for i in (*plan.inputs, *plan.outputs)],
    }


def profile_info(plan: Plan, rounds: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return times in the shape of trtexec's ``--exportProfile``.

    Parameters
    ----------
    rounds
        For every round the seconds of each step.
    """
    by_step = [[r[i] for r in rounds] for i in range(len(plan.steps))]
    total = sum(sum(times) for times in by_step) or 1.0
    return [
        {"count": len(rounds)},
        *(
            {
                "name": step.node,
                "timeMs": 1e3 * sum(times),
                "averageMs": 1e3 * fmean(times),
                "medianMs": 1e3 * median(times),
                "percentage": 100 * sum(times) / total,
            }
            for step, times in zip(plan.steps, by_step, strict=True)
        ),
    ]


def _binding(tensor: TensorSpec) -> dict[str, Any]:
    return {
        "Name": tensor.name,
        "Location": tensor.target,
        "Dimensions": list(tensor.shape) if tensor.shape is not None else None,
        "Format/Datatype": f"Row major linear {tensor.dtype}",
    }


def _short(op: str) -> str:
    return op.removeprefix("ai.onnx::")


def _result(plan: Plan, step: Step) -> str:
    return ", ".join(str(plan.tensors[i].type) for i in step.outputs if i != ABSENT)
