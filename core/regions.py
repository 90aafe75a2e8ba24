"""Regions: subgraphs that can be run as one node, since a tactic says so or they are recognised, and putting that node there.

A fused node is a call of an ONNX function whose body is the subgraph that it stands for, so that the reference can run it
and the network can still be written down.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tactician.function_body import canonical_body
from tactician.network import captured_values, domain_of, signature_of, tensor_type
from tactician.plugins.target import Device
from tactician.recognition import Recognised
from tactician.signature import Constant, OpSignature, Part, Role, TensorType
from tactician.tactics.fused_form import FusedForm, accepts_form
from tactician.tactics.registry import Registry

DOMAIN = "tactician.fused"
"""The domain of the functions that fused nodes call."""


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes that may become one: all but the last one's output are read within it alone.

    Parameters
    ----------
    nodes
        In the graph's order; the last one computes the result.
    inputs
        What the node that takes their place reads.
    function
        What that node calls.
    signature
        The call of that node as tactics see it: one of parts, or of an operator that the nodes were recognised as.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    function: ir.Function
    signature: OpSignature

    @property
    def is_recognised(self) -> bool:
        """Whether it stands for a call of a known operator."""
        return not self.signature.parts

    @property
    def around(self) -> tuple[str, ...]:
        """The names of the anchor and of what comes before it; of all operators, where it was recognised."""
        if self.is_recognised:
            return self.names
        roles = (part.role for part in self.signature.parts)
        return tuple(name for name, role in zip(self.names, roles, strict=True) if role != "epilogue")

    @property
    def name(self) -> str:
        """The name of the fused node: those of its first and last operator."""
        return f"{self.nodes[0].name}+{self.nodes[-1].name}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its operators."""
        return tuple(node.name or "" for node in self.nodes)


def propose(
    network: ir.Model, registry: Registry, device: Device, found: Iterable[Recognised] = ()
) -> list[Region]:
    """Return the regions that a tactic of ``device`` accepts. Nothing is changed.

    They are those for which a tactic has a fused form, and what was ``found`` to be a call of a known operator.
    """
    taken = {node.name for node in network.graph}
    regions: dict[str, Region] = {}
    asked: dict[str, bool] = {}
    recognised = [recognised_region(network, f) for f in found]
    formed = (region for form in registry.forms(device.target) for region in find_regions(network, form))
    for region in itertools.chain(recognised, formed):
        key = region.signature.key
        if key not in asked:
            asked[key] = _is_accepted(region.signature, registry, device)
        if asked[key] and region.name not in taken:
            regions.setdefault(region.name, region)
    return list(regions.values())


def find_regions(network: ir.Model, form: FusedForm) -> Iterator[Region]:
    """Yield the regions of ``form``. They overlap: one for each length of an epilogue, with and without the prologue."""
    places = {node: number for number, node in enumerate(network.graph)}
    for members in _members(network.graph, form, places):
        yield _region(network, members)


def apply(
    network: ir.Model, regions: Iterable[Region], moved: dict[ir.Value, ir.Value] | None = None
) -> None:
    """Put one node in the place of each region, in place. No two regions may overlap.

    Parameters
    ----------
    moved
        What results of regions became, to be handed to later calls for regions of the same ``propose``: they may read
        one another's results.
    """
    moved = {} if moved is None else moved
    for region in regions:
        function, last = region.function, region.nodes[-1]
        network.functions[function.identifier()] = function
        call = ir.Node(
            DOMAIN,
            function.name,
            [moved.get(v, v) for v in region.inputs],
            num_outputs=1,
            version=1,
            name=region.name,
        )
        moved[last.outputs[0]] = call.outputs[0]
        ir.convenience.replace_nodes_and_values(
            network.graph, last, region.nodes, [call], [last.outputs[0]], [call.outputs[0]]
        )
        network.graph.opset_imports[DOMAIN] = 1


def _members(
    graph: ir.Graph, form: FusedForm, places: Mapping[ir.Node, int]
) -> Iterator[list[tuple[ir.Node, Role]]]:
    """Yield the nodes, with their roles, of every region of ``form``, in the graph's order."""
    absorbed: set[ir.Node] = set()
    for anchor in graph:
        # what is in the epilogue of another anchor has a smaller region of its own, and nothing more
        if _name(anchor) not in form.anchors or not _is_plain(anchor) or anchor in absorbed:
            continue
        before = _prologue(anchor, form, graph)
        epilogues = list(_epilogues(anchor, form, graph, places))
        absorbed.update(*epilogues)
        for prologue in ([], before) if before else ([],):
            for epilogue in ([], *epilogues) if prologue else epilogues:
                if 1 + len(prologue) + len(epilogue) > form.longest:
                    break
                roles: dict[ir.Node, Role] = dict.fromkeys(prologue, "prologue")
                roles[anchor] = "anchor"
                roles |= dict.fromkeys(epilogue, "epilogue")
                yield sorted(roles.items(), key=lambda member: places[member[0]])


def _epilogues(
    anchor: ir.Node, form: FusedForm, graph: ir.Graph, places: Mapping[ir.Node, int]
) -> Iterator[list[ir.Node]]:
    """Yield what may follow the anchor, shortest first: of each, nothing outside reads any result but the last one.

    Whoever reads a result and is earliest in the graph must be in every larger epilogue: it is taken, or growing ends.
    """
    inside = [anchor]
    while len(inside) < form.longest:
        readers = {use.node for node in inside for use in node.outputs[0].uses()}.difference(inside)
        if not readers or any(reader.graph is not graph for reader in readers):
            return
        first = min(readers, key=lambda reader: places[reader])
        if _name(first) not in form.epilogue or not _is_plain(first) or not _keeps_shape(anchor, first):
            return
        inside.append(first)
        if all(_is_read_within(node, inside) for node in inside[:-1]):
            yield inside[1:]


def _is_read_within(node: ir.Node, inside: Sequence[ir.Node]) -> bool:
    value = node.outputs[0]
    return not value.is_graph_output() and all(use.node in inside for use in value.uses())


def _prologue(anchor: ir.Node, form: FusedForm, graph: ir.Graph) -> list[ir.Node]:
    found: list[ir.Node] = []
    waiting = [anchor]
    while waiting:
        node = waiting.pop(0)
        for value in node.inputs:
            maker = None if value is None else value.producer()
            fits = maker is not None and _name(maker) in form.prologue and _is_plain(maker)
            if (
                fits
                and maker is not None
                and _only_reader(maker, graph) is node
                and len(found) < form.longest - 1
            ):
                found.append(maker)
                waiting.append(maker)
    return found


def _only_reader(node: ir.Node, graph: ir.Graph) -> ir.Node | None:
    """Return the one node of ``graph`` that reads what ``node`` computes, if nothing else does."""
    value = node.outputs[0]
    readers = {use.node for use in value.uses()}
    if value.is_graph_output() or len(readers) != 1:
        return None
    reader = readers.pop()
    return reader if reader.graph is graph else None


def _is_plain(node: ir.Node) -> bool:
    """Return whether a node computes one tensor of known shape from others, and has no subgraphs."""
    values = [*(v for v in node.inputs if v is not None), *node.outputs]
    used = [output for output in node.outputs if output.name or output.uses()]
    return (
        node.outputs[:1] == tuple(used)
        and not captured_values(node)
        and not any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        and all(_is_static(v) for v in values if v in used or v in node.inputs)
    )


def _is_static(value: ir.Value) -> bool:
    kind = tensor_type(value)
    return kind is not None and kind.is_static and kind.dtype != "string"


def _keeps_shape(node: ir.Node, reader: ir.Node) -> bool:
    before, after = tensor_type(node.outputs[0]), tensor_type(reader.outputs[0])
    return before is not None and after is not None and before.shape == after.shape


def _name(node: ir.Node) -> str:
    return f"{domain_of(node)}::{node.op_type}"


def _region(network: ir.Model, members: Sequence[tuple[ir.Node, Role]]) -> Region:
    nodes, roles = tuple(n for n, _ in members), tuple(r for _, r in members)
    results = {node.outputs[0]: number for number, node in enumerate(nodes)}
    read = (v for node in nodes for v in node.inputs if v is not None)
    inputs = tuple(dict.fromkeys(v for v in read if v not in results))
    places: dict[ir.Value, int] = {v: i for i, v in enumerate(inputs)} | {
        v: -1 - k for v, k in results.items()
    }
    signatures = [signature_of(node, network) for node in nodes]
    parts = tuple(
        Part(role, signature, tuple(None if v is None else places[v] for v in node.inputs))
        for node, role, signature in zip(nodes, roles, signatures, strict=True)
    )
    function = _function(network, nodes, inputs)
    types, constants = _of_inputs(parts, len(inputs))
    signature = OpSignature(
        f"{DOMAIN}::{'_'.join(node.op_type for node in nodes)}",
        1,
        (),
        types,
        (signatures[-1].outputs[0],),
        constants,
        canonical_body(function),
        parts,
    )
    return Region(nodes, inputs, function, signature)


def recognised_region(network: ir.Model, found: Recognised) -> Region:
    """Return the region of a subgraph that was recognised: the nodes that nothing else reads."""
    last, inside = found.nodes[-1], set(found.nodes)
    while leaving := [n for n in inside if n is not last and not _is_read_within(n, list(inside))]:
        inside.difference_update(leaving)
    function = _function(network, found.nodes, found.inputs)
    nodes = tuple(node for node in found.nodes if node in inside)
    return Region(nodes, found.inputs, function, found.signature)


def _of_inputs(
    parts: Sequence[Part], count: int
) -> tuple[tuple[TensorType | None, ...], tuple[Constant | None, ...]]:
    """Return types and constants of a fused node's inputs, which its parts' signatures know."""
    known = {
        place: (type, constant)
        for part in parts
        for place, type, constant in zip(
            part.inputs, part.signature.inputs, part.signature.constants, strict=True
        )
        if place is not None and place >= 0
    }
    return tuple(known[i][0] for i in range(count)), tuple(known[i][1] for i in range(count))


def _function(network: ir.Model, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value]) -> ir.Function:
    """Return a function of these nodes; its name has a hash of what is in it, so that equal ones are one.

    Constants that are none of ``inputs`` are nodes of the function.
    """
    formal = [ir.Value(name=f"i{i}", type=v.type, shape=v.shape) for i, v in enumerate(inputs)]
    inner: dict[ir.Value, ir.Value] = {}
    for value, name in zip(inputs, formal, strict=True):
        inner.setdefault(value, name)
    copies = []
    made = {node.outputs[0] for node in nodes}
    for value in dict.fromkeys(v for node in nodes for v in node.inputs if v is not None):
        if value not in inner and value not in made:
            copies.append(ir.node("Constant", [], {"value": value.const_value}))
            inner[value] = copies[-1].outputs[0]
            inner[value].name, inner[value].type, inner[value].shape = (
                f"c{len(copies)}",
                value.type,
                value.shape,
            )
    for number, node in enumerate(nodes):
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else inner[v] for v in node.inputs],
            node.attributes,
            overload=node.overload,
            num_outputs=1,
            version=node.version,
        )
        result = copy.outputs[0]
        result.name, result.type, result.shape = f"v{number}", node.outputs[0].type, node.outputs[0].shape
        inner[node.outputs[0]] = result
        copies.append(copy)
    imports = {n.domain: network.graph.opset_imports.get(n.domain, n.version or 1) for n in copies}
    graph = ir.Graph(formal, [inner[nodes[-1].outputs[0]]], nodes=copies, opset_imports=imports)
    function = ir.Function(DOMAIN, "_".join(node.op_type for node in nodes), graph=graph, attributes=[])
    function.name += "_" + hashlib.sha256(canonical_body(function)).hexdigest()[:12]
    return function


def _is_accepted(signature: OpSignature, registry: Registry, device: Device) -> bool:
    if not signature.parts:
        return registry.accepts(signature, device)
    return registry.accepts(
        signature, device, lambda candidate: accepts_form(candidate.tactic.fused_forms, signature)
    )
