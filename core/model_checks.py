"""The structure of a model: names defined once and before they are read, no cycles, operators that somebody knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto
from tactician.errors import InvalidModelError, UnknownOpError


def check_text(message: Message, path: str = "model") -> None:
    """Check that all names and comments are text; protocol buffers hold any bytes.

    Raises
    ------
    InvalidModelError
        If one is no UTF-8; it says where.
    """
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                check_text(inner, f"{path}.{field.name}")
        elif field.type == field.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if not isinstance(text, str):
                    raise InvalidModelError(
                        f"{path}.{field.name} is no text: {text!r:.80}; the model is damaged"
                    )


def check_versions(proto: ModelProto) -> None:
    """Bring the names of the standard domain to one form and check the versions that ``proto`` asks for.

    Raises
    ------
    InvalidModelError
        If there is no IR version, a domain is imported twice, or an opset is too new.
    """
    if proto.ir_version < 3:
        raise InvalidModelError(
            f"the model has IR version {proto.ir_version}; this version reads 3 and later: it is damaged, or export it again"
        )
    for entry in proto.opset_import:
        entry.domain = standard(entry.domain)
    domains = [entry.domain for entry in proto.opset_import]
    for domain in domains:
        if domains.count(domain) > 1:
            raise InvalidModelError(f"the model imports the opset of domain '{domain or 'ai.onnx'}' twice")
    version, newest = opset_versions(proto).get(""), onnx.defs.onnx_opset_version()
    if version is not None and not 1 <= version <= newest:
        raise InvalidModelError(
            f"the model is of opset {version}; the installed onnx {onnx.__version__} reads 1 to {newest}: "
            "install a newer onnx, or export the model for an older opset"
        )
    for node in (*all_nodes(proto.graph.node), *(n for f in proto.functions for n in all_nodes(f.node))):
        node.domain = standard(node.domain)


def check_structure(proto: ModelProto) -> None:
    """Check names and order of the graph, and sort its nodes where they are not in topological order.

    Raises
    ------
    InvalidModelError
        If a value is defined twice, read but defined nowhere, or depends on itself; it names the values and nodes.
    """
    if not proto.graph.output:
        raise InvalidModelError("the graph has no outputs; there is nothing to compute")
    _check_graph(proto.graph, frozenset(), "the graph")


def check_operators(proto: ModelProto, ops: Mapping[str, Any]) -> None:
    """Check that ONNX or ``ops`` defines every operator of ``proto``.

    Raises
    ------
    UnknownOpError
        If not; it names the node, the operator and what is near.
    InvalidModelError
        If a node has an attribute that operators can't have here.
    """
    versions = opset_versions(proto)
    for node in all_nodes(proto.graph.node):
        _check_equation(node)
        _check_sparse(node)
        name = f"{node.domain or 'ai.onnx'}::{node.op_type}"
        version = versions.get(node.domain)
        if name in ops or (version is not None and onnx.defs.has(node.op_type, version, node.domain)):
            continue
        if version is None:
            said = f"the model does not import an opset of '{node.domain or 'ai.onnx'}'"
        elif onnx.defs.has(node.op_type, node.domain):
            since = onnx.defs.get_schema(node.op_type, domain=node.domain).since_version
            said = f"opset {version} does not have it, opset {since} does"
        else:
            said = f"neither ONNX (opset {version}) nor a loaded plugin defines it"
        raise UnknownOpError(
            f"{node_text(node)}: operator '{name}': {said}{_near(node.op_type, ops)}; "
            "install the plugin that defines it, or load it with --plugin FILE.py"
        )


def run_checker(proto: ModelProto) -> None:
    """Let onnx's own checker look at ``proto``, whose weights lie elsewhere.

    Raises
    ------
    InvalidModelError
        If the model breaks the specification.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.WhichOneof("value") is None and value in copy.graph.output:
            # outputs of plugins' operators get their type by inference, later
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            # a rank may be unknown; the checker wants a shape all the same
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(copy)
    except onnx.checker.ValidationError as error:
        raise InvalidModelError(f"the model breaks the ONNX specification: {one_line(error)}") from error


def opset_versions(proto: ModelProto) -> dict[str, int]:
    """Return the opset version of each domain, the standard one as ``""``."""
    return {standard(entry.domain): entry.version for entry in proto.opset_import}


def standard(domain: str) -> str:
    """Return ``domain``, with both names of the standard one brought to ``""``."""
    return "" if domain == "ai.onnx" else domain


def node_text(node: NodeProto) -> str:
    """Return how messages call ``node``: its operator and name or, without one, what it computes."""
    if node.name:
        return f"{node.op_type} '{node.name}'"
    return f"{node.op_type} that computes '{', '.join(o for o in node.output if o)}'"


def one_line(error: BaseException, length: int = 500) -> str:
    """Return the message of ``error`` as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[:length] + " …"


def all_nodes(nodes: Any) -> Iterator[NodeProto]:
    """Yield ``nodes`` and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that ``node`` holds as attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


_EQUATION = re.compile(r"([A-Za-z]|\.\.\.|,)*(->([A-Za-z]|\.\.\.)*)?")


def _check_equation(node: NodeProto) -> None:
    """Check what Einsum is to compute: onnx's inference never returns from some equations that are none."""
    for attribute in node.attribute:
        if node.op_type == "Einsum" and attribute.name == "equation":
            text = attribute.s.decode("utf-8", "replace").replace(" ", "")
            if not _EQUATION.fullmatch(text):
                raise InvalidModelError(f"{node_text(node)}: '{text}' is no equation of an Einsum")


def _check_sparse(node: NodeProto) -> None:
    """Refuse sparse attributes; those of Constant are dense by now."""
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
            raise InvalidModelError(
                f"{node_text(node)}: attribute '{attribute.name}' is a sparse tensor, which no operator can have here; "
                "write it as a dense one, or as an input"
            )


def _near(op_type: str, ops: Mapping[str, Any]) -> str:
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | {
        name.partition("::")[2] for name in ops
    }
    near = difflib.get_close_matches(op_type, known, 3)
    return f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""


def _check_graph(graph: GraphProto, outer: Collection[str], where: str) -> None:
    defined = _defined(graph, where)
    made_by = {name: node for node in graph.node for name in node.output if name}
    scope = frozenset(outer) | defined | made_by.keys()
    for node in graph.node:
        if not node.op_type:
            raise InvalidModelError(f"a node of {where} has no operator: {', '.join(node.output)}")
        for name in node.input:
            if name and name not in scope:
                raise InvalidModelError(
                    f"{node_text(node)} reads '{name}', which is no input, initializer or output of a node{_close(name, scope)}"
                )
        for inner in subgraphs(node):
            _check_graph(inner, scope, f"a subgraph of {node_text(node)}")
    for output in graph.output:
        if output.name not in scope:
            raise InvalidModelError(
                f"output '{output.name}' of {where} is computed by no node{_close(output.name, scope)}"
            )
    _sort(graph, made_by)


def _defined(graph: GraphProto, where: str) -> set[str]:
    """Return the names of inputs and initializers; none may be defined twice, by nodes neither."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_type(value.type, f"value '{value.name}' of {where}")
    inputs = [_named(v.name, where) for v in graph.input]
    initializers = [_named(t.name, where) for t in graph.initializer]
    for names, what in (
        (inputs, "inputs"),
        (initializers, "initializers"),
        ([o.name for o in graph.output], "outputs"),
    ):
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise InvalidModelError(f"two {what} of {where} are called '{twice}'")
    owner = dict.fromkeys((*inputs, *initializers), "an input or initializer")
    for node in graph.node:
        for name in filter(None, node.output):
            if _named(name, where) in owner:
                raise InvalidModelError(
                    f"value '{name}' of {where} is defined twice: by {owner[name]} and by {node_text(node)}"
                )
            owner[name] = node_text(node)
    return {*inputs, *initializers}


def _check_type(kind: TypeProto, where: str) -> None:
    """Check the element type, at any depth of sequences and optionals."""
    match kind.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type" as field:
            element = getattr(kind, field).elem_type
            if element not in TensorProto.DataType.values():
                raise InvalidModelError(
                    f"{where} has element type {element}, which onnx {onnx.__version__} does not know"
                )
        case "sequence_type" | "optional_type" as field:
            _check_type(getattr(kind, field).elem_type, where)


def _named(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidModelError(f"a value of {where} has no name, or one that is no text: {name!r}")
    return name


def _close(name: str, scope: Collection[str]) -> str:
    near = difflib.get_close_matches(name, scope, 1)
    return f"; near: '{near[0]}'" if near else ""


def _reads(node: NodeProto) -> set[str]:
    """Return the names that ``node`` reads, those that its subgraphs take from around them among them."""
    names = set(node.input)
    for graph in subgraphs(node):
        inner = {o.name for o in graph.output}.union(*(_reads(n) for n in graph.node))
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        names |= inner - own - {o for n in graph.node for o in n.output}
    return names


def _sort(graph: GraphProto, made_by: Mapping[str, NodeProto]) -> None:
    """Bring nodes into topological order where they are not, each as near to its place as can be."""
    index = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{index[n] for n in _reads(node) if n in made_by} for node in graph.node]
    if all(all(j < i for j in needed) for i, needed in enumerate(needs)):
        return
    order: list[int] = []
    state = [0] * len(needs)  # 0 not seen, 1 on the way to it, 2 placed
    for start in range(len(needs)):
        stack = [] if state[start] else [(start, iter(sorted(needs[start])))]
        state[start] = state[start] or 1
        while stack:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                state[node] = 2
                order.append(node)
            elif state[following] == 1:
                chain = [n for n, _ in stack]
                cycle = chain[chain.index(following) :]
                raise InvalidModelError(
                    f"the graph has a cycle: {' -> '.join(node_text(graph.node[i]) for i in [*cycle[:9], following])}"
                )
            elif state[following] == 0:
                state[following] = 1
                stack.append((following, iter(sorted(needs[following]))))
    nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
