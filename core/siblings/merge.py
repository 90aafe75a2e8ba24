"""Measures groups of products beside one product of a batch each, and merges those that are faster so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.memory import ALIGNMENT
from tactician.network import constant, signature_of, tensor_type
from tactician.plugins.target import Device
from tactician.recognition.layout import static_shape
from tactician.siblings.find import Array, Siblings, find_siblings
from tactician.signature import Constant, OpSignature, TensorType
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import Fusion
from tactician.tactics.registry import Registry
from tactician.tactics.verdict import default_choice
from tactician.views import view_nodes

MERGE = "merge_siblings"
"""What ``--without`` and reports call it."""

SPLIT_TAKES_SIZES = 13
"""The opset from which on Split takes the sizes of its parts as an input."""

WORTH_IT = 0.99
"""Part of the time that is left at most, for products to be merged: less is noise."""

Results = Mapping[str, tuple[Device, Measured]]
"""By signature key: the device that a call was measured on, and what came of it."""


class SiblingMerger:
    """Merges products in one network, in place.

    The merged product is of the source with a batch of weights, so that every part of its result lies by itself and
    nothing is copied to take it out.

    Parameters
    ----------
    lock
        What it names is merged, and nothing else.
    """

    def __init__(
        self,
        network: ir.Model,
        registry: Registry,
        device: Device,
        config: BuilderConfig,
        lock: LockFile | None,
    ) -> None:
        self._network, self._main, self._lock = network, device.target, lock
        self._groups: dict[Siblings, tuple[OpSignature, ...]] = {}
        self._apart: dict[Siblings, list[OpSignature]] = {}
        fits = network.graph.opset_imports.get("", 0) >= SPLIT_TAKES_SIZES
        views = view_nodes(network, config)
        accepted: dict[str, bool] = {}
        for group in find_siblings(network) if fits else ():
            calls = _calls(group, network)
            for call in calls:
                if call.key not in accepted:
                    accepted[call.key] = registry.accepts(call, device)
            if calls and all(accepted[call.key] for call in calls):
                self._groups[group] = calls
                self._apart[group] = [signature_of(n, network) for n in group.nodes if n.name not in views]

    def candidates(self) -> dict[str, OpSignature]:
        """Return the calls whose times decide, by made-up names."""
        if self._lock is not None:
            return {}
        calls = [s for g, merged in self._groups.items() for s in (*merged, *self._apart[g])]
        return {f"{MERGE} {s.key}": s for s in calls}

    def settle(self, measured: Results) -> list[Fusion]:
        """Merge what is faster so, and return what came of each group."""
        said = [self._verdict(group, measured) for group in self._groups]
        for group, fusion in zip(self._groups, said, strict=True):
            if fusion.kept:
                _merge(self._network, group)
        return said

    def _verdict(self, group: Siblings, measured: Results) -> Fusion:
        calls = self._groups[group]
        names = tuple(node.name or "" for node in group.nodes)
        if self._lock is not None:
            fused = {name for node in self._lock.nodes.values() for name in node.operators}
            kept = group.name in fused or self._lock.choice(group.name, calls[0]) is not None
            return Fusion(group.name, names, str(calls[0]), kept, "the lock file says so")
        merged, apart = (self._sum(c, measured) for c in (calls, self._apart[group]))
        kept = merged < WORTH_IT * apart
        reason = (
            "faster"
            if kept
            else "slower than its operators one by one"
            if math.isfinite(merged)
            else "not timed"
        )
        times = [t if math.isfinite(t) else None for t in (merged, apart)]
        return Fusion(
            group.name, names, str(calls[0]), kept, reason, seconds=times[0], seconds_apart=times[1]
        )

    def _sum(self, calls: Iterable[OpSignature], measured: Results) -> float:
        """Return the seconds of all calls; infinite where one does not run on the main target."""
        total = 0.0
        for call in calls:
            device, result = measured[call.key]
            runs = device.target == self._main and bool(result.usable)
            timing = default_choice(result.usable, result.incumbent)[0].timing if runs else None
            total += math.inf if timing is None else timing.median
        return total


def _calls(group: Siblings, network: ir.Model) -> tuple[OpSignature, ...]:
    """Return the merged product and the sum with the biases; nothing where the parts of the result would be copied."""
    first, count = group.products[0], len(group.products)
    kind = tensor_type(group.source)
    weight = tensor_type(first.weight)
    if kind is None or weight is None or kind.dtype != weight.dtype or group.rows == 0:
        return ()
    result = TensorType(kind.dtype, (count, group.rows, first.columns))
    if result.nbytes // count % ALIGNMENT:
        return ()
    version = network.graph.opset_imports[""]
    inputs = (
        TensorType(kind.dtype, (1, group.rows, group.depth)),
        TensorType(kind.dtype, (count, group.depth, first.columns)),
    )
    product = OpSignature("ai.onnx::MatMul", version, (), inputs, (result,), (None, Constant()))
    if first.bias is None:
        return (product,)
    biases = TensorType(kind.dtype, (count, 1, first.columns))
    total = OpSignature("ai.onnx::Add", version, (), (result, biases), (result,), (None, Constant()))
    return product, total


def _merge(network: ir.Model, group: Siblings) -> None:
    """Put the merged product in the place of the products of ``group``."""
    graph, count, columns = network.graph, len(group.products), group.products[0].columns
    made: list[ir.Node] = []

    def add(
        op_type: str, inputs: list[ir.Value], name: str, shapes: list[tuple[int, ...]], **attributes: int
    ) -> list[ir.Value]:
        node = ir.node(op_type, inputs, attributes or None, num_outputs=len(shapes), name=name)
        for i, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name, value.type, value.shape = f"{name}_out{i}", group.source.type, ir.Shape(shape)
        made.append(node)
        return list(node.outputs)

    def weight(array: Array, what: str) -> ir.Value:
        return constant(array, f"{group.name}/{what}", graph)

    rows, whole = group.rows, (count, group.rows, columns)
    flat = weight(np.array([1, rows, group.depth]), "rows")
    (source,) = add("Reshape", [group.source, flat], f"{group.name}/source", [(1, rows, group.depth)])
    weights = weight(np.stack([p.weight_array() for p in group.products]), "weights")
    (result,) = add("MatMul", [source, weights], group.name, [whole])
    biases = [b for b in (p.bias_array() for p in group.products) if b is not None]
    if biases:
        (result,) = add(
            "Add", [result, weight(np.stack(biases)[:, None], "biases")], f"{group.name}/bias", [whole]
        )
    sizes = weight(np.ones(count, np.int64), "sizes")
    parts = add("Split", [result, sizes], f"{group.name}/parts", [(1, rows, columns)] * count, axis=0)
    olds = [p.result for p in group.products]
    news = []
    for i, (old, part) in enumerate(zip(olds, parts, strict=True)):
        shape = static_shape(old) or ()
        to = weight(np.array(shape), f"shape{i}")
        news += add("Reshape", [part, to], f"{group.name}/part{i}", [shape])
    graph.insert_before(group.nodes[0], made)
    for old, new in zip(olds, news, strict=True):
        ir.convenience.replace_all_uses_with(old, new)
        new.name = old.name
    graph.remove(group.nodes, safe=True)
