"""Rewrite rules run on a network: what matches a pattern is replaced, its types checked, its names kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from tactician.errors import PluginError, ShapeError
from tactician.network import call_inputs, tensor_type
from tactician.passes.match import Match, known
from tactician.passes.pattern_forms import Form, equals, forms_of
from tactician.passes.writer import Writer
from tactician.signature import TensorType

if TYPE_CHECKING:
    from tactician.plugins.rewrite_rule import RewriteRule

logger = logging.getLogger(__name__)

Ops = Mapping[str, Any]


@dataclass
class Rewritten(ir.passes.PassResult):
    """What a rule did to a network."""

    matches: int = 0
    """How many subgraphs were replaced."""


def rewrite(model: ir.Model, rule: RewriteRule, ops: Ops) -> Rewritten:
    """Replace all that ``rule`` matches in the main graph of ``model``, in place.

    Parameters
    ----------
    ops
        Plugins' operators by name: the types of the new nodes are inferred by them.

    Raises
    ------
    PluginError
        If a function of the rule fails, or its replacement has an operator that nobody defines.
    """
    forms = rule_forms(rule, model)
    count = 0
    for node in list(model.graph):
        for form in forms:
            # a node is out of the graph once it was part of an earlier match
            if node.graph is not model.graph or not form.may_match(node):
                continue
            found = attempt(rule, form, node, model, ops)
            if isinstance(found, Miss):
                logger.debug("rule %s at %s: %s", rule.name, node.name, found.reason)
            else:
                found.apply(model)
                count += 1
    if count:
        common.NameFixPass()(model)
    return Rewritten(model, bool(count), count)


def rule_forms(rule: RewriteRule, model: ir.Model) -> list[Form]:
    """Return the forms of the rule's pattern for the opset of ``model``.

    Raises
    ------
    PluginError
        If a pattern function fails.
    """
    opset = model.graph.opset_imports.get("", 0)
    return forms_of(rule.name, rule.patterns, opset, commute=rule.commute)


@dataclass(frozen=True)
class Miss:
    """Why a node is not the end of a match, and how many nodes fit before that was clear."""

    fitting: int
    reason: str


@dataclass(frozen=True)
class Replacement:
    """New nodes for a match."""

    match: Match
    nodes: tuple[ir.Node, ...]
    constants: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]

    def apply(self, model: ir.Model) -> None:
        """Put the new nodes in the place of the old ones."""
        graph, match = model.graph, self.match
        for node in self.nodes:
            graph.opset_imports.setdefault(node.domain, node.version or 1)
        for value in self.constants:
            while value.name in graph.initializers:
                value.name = f"{value.name}_"
            graph.register_initializer(value)
        for new, old in zip(self.outputs, match.outputs, strict=True):
            old.type = old.type or new.type
            if old.shape is None or (new.shape is not None and new.shape.is_static()):
                old.shape = new.shape
        read = {v for node in match.nodes for v in node.inputs if v is not None}
        ir.convenience.replace_nodes_and_values(
            graph, match.last, match.nodes, self.nodes, match.outputs, self.outputs
        )
        if len(match.outputs) > 1:
            graph.sort()  # a reader of another output may stand before the last node
        for value in read:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)


def attempt(rule: RewriteRule, form: Form, node: ir.Node, model: ir.Model, ops: Ops) -> Replacement | Miss:
    """Return what replaces the subgraph that ends in ``node``, if it is of ``form``; nothing is changed yet.

    Raises
    ------
    PluginError
        If a function of the rule fails, or its replacement has an operator that nobody defines.
    """
    # what is read elsewhere is looked at below, where the reason can name it
    found = form.matcher.match(model, model.graph, node, check_nodes_are_removable=False)
    nodes = list(dict.fromkeys(found.nodes))
    if not found:
        return Miss(len(nodes), found.reason)
    bindings = {name: found.bindings.get(name) for name in (*form.variables, *found.bindings)}
    for name, default in form.defaults.items():
        if bindings[name] is None:
            bindings[name] = default
    match = Match(bindings, nodes, list(found.outputs))
    writer = Writer(rule.name, node.name or "", model, ops)
    try:
        reason = _refusal(form, bindings, match) or (rule.decline(match) if rule.decline else None)
        if reason:
            return Miss(len(nodes), reason)
        returned = rule.replacement(writer, match)
        outputs = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
        _check_outputs(outputs, match, writer)
    except (ShapeError, _TypesDifferError) as error:
        detach(writer.nodes)
        return Miss(len(nodes), str(error))
    except PluginError:
        raise
    except Exception as error:  # of any type: it is another's code
        raise PluginError(
            f"rewrite rule '{rule.name}' fails at node '{node.name}': {type(error).__name__}: {error}"
        ) from error
    return Replacement(match, writer.named(outputs[0]), tuple(writer.constants), outputs)


def detach(nodes: Sequence[ir.Node]) -> None:
    """Let nodes that go into no graph read nothing: the values would count them among their readers."""
    for node in nodes:
        for i in range(len(node.inputs)):
            node.replace_input_with(i, None)


class _TypesDifferError(Exception):
    """The replacement would compute something else, to go by its type."""


def _refusal(form: Form, bindings: Mapping[str, Any], match: Match) -> str | None:
    for name, wanted in form.constants.items():
        if name not in bindings:
            continue  # of an alternative that this form does not take
        value = bindings[name]
        array = None if value is None else known(value)
        if array is None or not equals(array, wanted):
            said = "no constant" if array is None else f"{array.reshape(-1)[:8].tolist()}"
            return f"'{value.name}' is {said}, the pattern has {wanted}"
    inner = [v for node in match.nodes for v in node.outputs]
    for value in (v for v in inner if v not in match.outputs):
        if value.is_graph_output() or any(reader not in match.nodes for reader in value.consumers()):
            return f"'{value.name}', which the subgraph computes, is read elsewhere too"
    for name in form.variables:
        value = bindings[name]
        if isinstance(value, ir.Value) and value in inner:
            return f"variable {name} stands for '{value.name}', which the subgraph itself computes"
    if len(match.outputs) > 1 and _leaves_and_comes_back(match):
        return "a value between two of its outputs is computed outside of it"
    return None


def _leaves_and_comes_back(match: Match) -> bool:
    """Return whether an input of the match depends on one of its outputs: one node can't stand for all then."""
    inside, seen = set(match.nodes), set()
    waiting = [v for node in match.nodes for v in call_inputs(node)]
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is None or producer in inside or producer in seen:
            continue
        seen.add(producer)
        inputs = call_inputs(producer)
        if any(v is not None and v.producer() in inside for v in inputs):
            return True
        waiting += inputs
    return False


def _check_outputs(outputs: Sequence[Any], match: Match, writer: Writer) -> None:
    """Compare number and types of the new values with those of the old ones."""
    if len(outputs) != len(match.outputs):
        raise ValueError(f"its replacement returns {len(outputs)} values, its pattern {len(match.outputs)}")
    for new, old in zip(outputs, match.outputs, strict=True):
        if not isinstance(new, ir.Value) or new.producer() not in writer.nodes:
            raise TypeError("its replacement must return what its own nodes compute")
        kinds = tensor_type(new), tensor_type(old)
        if not _agree(*kinds):
            raise _TypesDifferError(f"it would compute {kinds[0]} in the place of '{old.name}' {kinds[1]}")


def _agree(new: TensorType | None, old: TensorType | None) -> bool:
    if new is None or old is None:
        return True
    if new.dtype != old.dtype or new.shape is None or old.shape is None:
        return new.dtype == old.dtype
    if len(new.shape) != len(old.shape):
        return False
    pairs = zip(new.shape, old.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
