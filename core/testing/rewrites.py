"""Holds a rewrite rule to its word: it matches, and what it puts in place computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper
from tactician import passes
from tactician.config import BuilderConfig
from tactician.errors import AccuracyError, PluginError
from tactician.importer import import_model
from tactician.network import tensor_type
from tactician.passes.rewrite import Miss, attempt, detach, rewrite, rule_forms
from tactician.plugins.evaluator import make_evaluator, widened
from tactician.plugins.op import Op
from tactician.plugins.rewrite_rule import RewriteRule
from tactician.signature import TensorType

Array = np.ndarray[Any, Any]

SYMBOL_EXTENTS = (3, 5, 2, 7)
"""What symbolic dimensions of a model's inputs are taken for, in turn."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def check_rewrite(
    rule: RewriteRule,
    model: Any,
    ops: Sequence[Op] = (),
    *,
    matches: int | None = None,
    inputs: Mapping[str, Array] | None = None,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> int:
    """Run a rule on a model and compare all outputs before and after, both computed in double precision.

    The model goes through the built-in passes first, as in a build. What computes is ONNX's reference evaluator, for
    plugins' operators their references.

    Parameters
    ----------
    model
        As ``tactician.build`` takes it; small enough for the reference.
    ops
        The operators that the model and the replacement need.
    matches
        How many subgraphs the rule must replace; None for one or more.
    inputs
        Arrays by name of input; the others are random: standard normal floats, integers from 0 to 9.
    tolerance
        Relative error ‖after − before‖ / ‖before‖ that an output may have.
    seed
        Of the random inputs.

    Returns
    -------
    int
        How many subgraphs were replaced.

    Raises
    ------
    PluginError
        If the rule replaces another number of subgraphs; the message says what came nearest, and why it did not fit.
    AccuracyError
        If an output differs.
    """
    by_name = {op.name: op for op in ops}
    network = import_model(model, None, by_name)
    passes.run(network, passes.pipeline(BuilderConfig(), (), by_name))
    before = ir.serde.serialize_model(network)
    count = rewrite(network, rule, by_name).matches
    if count != matches and (matches is not None or not count):
        wanted = "at least one" if matches is None else str(matches)
        raise PluginError(
            f"rewrite rule '{rule.name}' replaces {count} subgraphs, not {wanted}; "
            f"{_nearest(rule, network, by_name)}"
        )
    feeds = _feeds(network, inputs or {}, np.random.default_rng(seed))
    names = [value.name or "" for value in network.graph.outputs]
    expected, found = (_run(m, feeds, by_name) for m in (before, ir.serde.serialize_model(network)))
    for name, one, other in zip(names, expected, found, strict=True):
        _compare(rule, name, one, other, tolerance)
    return count


def _nearest(rule: RewriteRule, network: ir.Model, ops: Mapping[str, Op]) -> str:
    """Say which node came nearest to a match, and what kept it from one."""
    best, place = Miss(0, ""), ""
    for form in rule_forms(rule, network):
        for node in network.graph:
            found = attempt(rule, form, node, network, ops)
            if not isinstance(found, Miss):
                detach(found.nodes)
            elif found.fitting > best.fitting:
                best, place = found, node.name or ""
    if not best.fitting:
        return "no node is of the pattern's last operator"
    return f"nearest was node '{place}', from which {best.fitting} nodes fit: {best.reason}"


def _feeds(network: ir.Model, given: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    symbols: dict[str | None, int] = {}
    feeds = {}
    for value in network.graph.inputs:
        name, kind = value.name or "", tensor_type(value)
        array = given.get(name)
        feeds[name] = _random(kind, symbols, rng) if array is None else np.asarray(array)
        if kind is not None and kind.dtype in ("float16", "bfloat16", "float32"):
            feeds[name] = feeds[name].astype(np.float64)
    return feeds


def _random(kind: TensorType | None, symbols: dict[str | None, int], rng: np.random.Generator) -> Array:
    if kind is None or kind.shape is None or not kind.is_tensor or kind.dtype == "string":
        raise PluginError(f"no values can be made up for an input of type {kind}; pass inputs={{…}}")
    for dim in kind.shape:
        if not isinstance(dim, int):
            symbols.setdefault(dim, SYMBOL_EXTENTS[len(symbols) % len(SYMBOL_EXTENTS)])
    shape = tuple(d if isinstance(d, int) else symbols[d] for d in kind.shape)
    if kind.numpy_dtype.kind in "iub":
        return rng.integers(0, 2 if kind.dtype == "bool" else 10, shape).astype(kind.numpy_dtype)
    return rng.standard_normal(shape)


def _run(model: ModelProto, feeds: Mapping[str, Array], ops: Mapping[str, Op]) -> list[Any]:
    wide = widened(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type in _FLOATS:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            narrow = attribute.name == "to" and attribute.type == AttributeProto.INT
            if node.op_type == "Cast" and narrow and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE
    with np.errstate(all="ignore"):
        results: list[Any] = make_evaluator(wide, ops).run(None, dict(feeds))
    return results


def _compare(rule: RewriteRule, name: str, before: Any, after: Any, tolerance: float) -> None:
    one, other = np.asarray(before), np.asarray(after)
    said = f"rewrite rule '{rule.name}' changes output '{name}'"
    if one.shape != other.shape:
        raise AccuracyError(f"{said}: its shape was {list(one.shape)} and is {list(other.shape)}")
    if one.dtype.kind not in "fc":
        if not np.array_equal(one, other):
            raise AccuracyError(f"{said}: {int(np.sum(one != other))} of {one.size} elements differ")
        return
    same = np.isfinite(one) == np.isfinite(other)
    finite = np.isfinite(one) & np.isfinite(other)
    norm = float(np.linalg.norm(one[finite])) or 1.0
    error = float(np.linalg.norm(one[finite] - other[finite])) / norm
    if not same.all() or not error <= tolerance:
        raise AccuracyError(f"{said}: its relative error is {error:.1e}; the tolerance is {tolerance:.1e}")
