"""An operator signature as an ONNX model of one node: what the reference evaluator and other runtimes run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
)
from tactician.plugins.reference import formal_name
from tactician.signature import AttributeValue, Blob, OpSignature, TensorType

EXTERNAL_LOCATION = "weights"
"""Where external initializers say that they lie; there is no such file, the loader provides the data."""

MINIMUM_OPSET = 7
"""The oldest opset of the standard domain that runtimes still promise to run."""

_BLOBS: dict[str, type[Any]] = {
    "tensor": TensorProto,
    "graph": GraphProto,
    "sparse_tensor": onnx.SparseTensorProto,
    "type_proto": TypeProto,
    "type": TypeProto,
}
_ELEMENT_TYPES = {
    "string": TensorProto.STRING,
    "bool": TensorProto.BOOL,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "float8e5m2": TensorProto.FLOAT8E5M2,
    "float8e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
    "float8e8m0": getattr(TensorProto, "FLOAT8E8M0", 0),
    "float4e2m1": getattr(TensorProto, "FLOAT4E2M1", 0),
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "complex64": TensorProto.COMPLEX64,
    "complex128": TensorProto.COMPLEX128,
    **{
        f"{sign}int{bits}": getattr(TensorProto, f"{sign}int{bits}".upper(), 0)
        for sign in ("", "u")
        for bits in (2, 4, 8, 16, 32, 64)
    },
}


def node_model(
    signature: OpSignature,
    *,
    external: Collection[int] = (),
    bake: bool = True,
    oldest_opset: bool = False,
) -> ModelProto:
    """Return a model whose only node is the call that ``signature`` describes.

    Values are called as ``input_names`` and ``output_names`` say.

    Parameters
    ----------
    signature
        The call. A fused one becomes a call of its body, as a model-local function. Values that a subgraph
        captures are the call's last inputs, in the order of ``captured_names``, and keep their own names.
    external
        Indices of inputs that are initializers with external data instead of model inputs.
    bake
        Whether constants that the signature carries the value of are initializers instead of model inputs.
    oldest_opset
        Name the oldest opset in which the nodes mean the same, so that older runtimes take the model too.
    """
    captured = captured_names(signature)
    names = input_names(signature)
    outputs = output_names(signature)
    formal = names[: len(names) - len(captured)]
    domain = "" if signature.domain == "ai.onnx" else signature.domain
    node = helper.make_node(signature.op_type, formal, outputs, name="node", domain=domain)
    node.attribute.extend(attribute_proto(signature, name, value) for name, value in signature.attributes)
    function = FunctionProto.FromString(signature.body) if signature.body is not None else None
    if function is not None:
        node.op_type, node.domain = function.name, function.domain
    known = [i for i in range(len(names)) if bake and i not in external and signature.known(i) is not None]
    baked = [_baked(signature, i, names[i]) for i in known]
    placed = [_external(name, signature.inputs[i]) for i, name in enumerate(names) if i in external]
    fixed = {t.name for t in (*baked, *placed)}
    graph = helper.make_graph(
        [node],
        "graph",
        [
            _value_info(n, t)
            for n, t in zip(names, signature.inputs, strict=True)
            if t is not None and n not in fixed
        ],
        [_value_info(n, t) for n, t in zip(outputs, signature.outputs, strict=True) if t is not None],
        [*baked, *placed],
    )
    imports = _opset_imports(signature, node, function, oldest_opset)
    model = helper.make_model(graph, opset_imports=imports, functions=[function] if function else [])
    model.ir_version = max(10, helper.find_min_ir_version_for(imports, ignore_unknown=True))
    return model


def input_names(signature: OpSignature) -> list[str]:
    """Return what the model of ``signature`` calls its inputs; the empty name where one is absent."""
    captured = captured_names(signature)
    formal = [formal_name(i) for i in range(len(signature.inputs) - len(captured))]
    return [n if t else "" for n, t in zip((*formal, *captured), signature.inputs, strict=True)]


def output_names(signature: OpSignature) -> list[str]:
    """Return what the model of ``signature`` calls its outputs; the empty name where one is absent."""
    return ["" if t is None else f"call/output_{i}" for i, t in enumerate(signature.outputs)]


def captured_names(signature: OpSignature) -> tuple[str, ...]:
    """Return the outer values that the signature's subgraphs read, in the order of their first use.

    That order is: subgraph attributes by name; in each graph its nodes in order; of each node first its
    inputs, then its own subgraphs; at last the graph's outputs. The values are the call's last inputs.
    """
    found: dict[str, None] = {}
    for _, value in signature.attributes:
        if isinstance(value, Blob) and value.kind.startswith("graph"):
            for data in value.data:
                found.update(dict.fromkeys(_captured(GraphProto.FromString(data), frozenset())))
    return tuple(found)


def attribute_proto(signature: OpSignature, name: str, value: AttributeValue) -> AttributeProto:
    """Return attribute ``name`` as the operator's schema types it or, without a schema, by its value."""
    if isinstance(value, Blob):
        kind = value.kind.lower()
        plural = kind not in _BLOBS
        protos = [_BLOBS[kind.removesuffix("s")].FromString(data) for data in value.data]
        return helper.make_attribute(name, protos if plural else protos[0])
    declared = _declared_type(signature, name)
    plain = list(value) if isinstance(value, tuple) else value
    if declared == AttributeProto.FLOAT and isinstance(plain, int):
        plain = float(plain)
    if declared == AttributeProto.FLOATS and isinstance(plain, list):
        plain = [float(v) for v in plain]  # type: ignore[arg-type]  # numbers, by the schema
    return helper.make_attribute(name, plain, attr_type=declared if plain == [] else None)


def type_proto(tensor: TensorType) -> TypeProto:
    """Return the ONNX type of ``tensor``, of a sequence or of an optional."""
    dtype = tensor.dtype
    if dtype.startswith("sequence("):
        return helper.make_sequence_type_proto(type_proto(TensorType(dtype[9:-1], None)))
    if dtype.startswith("optional("):
        inner = TensorType(dtype[9:-1], None if "(" in dtype[9:] else tensor.shape)
        return helper.make_optional_type_proto(type_proto(inner))
    if dtype.startswith("map("):
        key, _, value = dtype[4:-1].partition(",")
        return helper.make_map_type_proto(
            _ELEMENT_TYPES[key.strip()], type_proto(TensorType(value.strip(), None))
        )
    return helper.make_tensor_type_proto(_ELEMENT_TYPES[dtype], tensor.shape)


def _value_info(name: str, tensor: TensorType) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, type_proto(tensor))


def _baked(signature: OpSignature, index: int, name: str) -> TensorProto:
    array = signature.known(index)
    assert array is not None  # the caller asked
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def _external(name: str, tensor: TensorType | None) -> TensorProto:
    assert tensor is not None  # absent inputs are no initializers
    proto = TensorProto(name=name, data_type=_ELEMENT_TYPES[tensor.dtype], dims=tensor.dims)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", EXTERNAL_LOCATION), ("offset", "0"), ("length", str(tensor.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto


def _opset_imports(
    signature: OpSignature, node: NodeProto, function: FunctionProto | None, oldest: bool
) -> list[onnx.OperatorSetIdProto]:
    versions = {node.domain: signature.version}
    if function is not None:
        versions = {entry.domain: entry.version for entry in function.opset_import} | {node.domain: 1}
    if oldest and "" in versions:
        nodes = _walk([node] if function is None else function.node)
        versions[""] = max(MINIMUM_OPSET, *(_since(n, versions[""]) for n in nodes))
        for entry in function.opset_import if function else ():
            entry.version = versions[entry.domain]
    versions.setdefault("", MINIMUM_OPSET)  # runtimes want the standard domain named in any model
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _since(node: NodeProto, version: int) -> int:
    """Return the oldest opset in which ``node`` means the same."""
    if node.domain or not onnx.defs.has(node.op_type, version):
        return 1
    return int(onnx.defs.get_schema(node.op_type, version).since_version)


def _walk(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _walk(graph.node)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _captured(graph: GraphProto, outer: frozenset[str]) -> Iterator[str]:
    """Yield names that ``graph`` reads and does not define; ``outer`` are those of the graphs around it."""
    initializers = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    known = {i.name for i in graph.input} | initializers | outer | {""}
    for node in graph.node:
        yield from (name for name in node.input if name not in known)
        for subgraph in _subgraphs(node):
            yield from _captured(subgraph, frozenset(known))
        known.update(node.output)
    yield from (o.name for o in graph.output if o.name not in known)


def _declared_type(signature: OpSignature, name: str) -> int | None:
    domain = "" if signature.domain == "ai.onnx" else signature.domain
    try:
        attributes = onnx.defs.get_schema(signature.op_type, signature.version, domain).attributes
    except onnx.defs.SchemaError:
        return None
    return int(attributes[name].type.value) if name in attributes else None
