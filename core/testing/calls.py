"""Calls to hold tactics to: of the ONNX project's own tests, made of arrays, and of other shapes drawn by hypothesis."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import assume
from hypothesis import strategies as st
from onnx import AttributeProto
from tactician.errors import TacticianError
from tactician.network import tensor_type
from tactician.node_inference import data_type, infer_node
from tactician.plugins.reference import ops_in_use, reference_for
from tactician.signature import OpSignature, TensorType, dtype_name, make_constant
from tactician.tactics.sampling import sample_inputs

Array = np.ndarray[Any, Any]

EXTENTS = (1, 2, 3, 5, 8, 17, 32, 33)
"""Sides that dimensions are given: one, odd ones, and those around powers of two."""
MOST_ELEMENTS = 1 << 16
MOST_CONSTANT_ELEMENTS = 64
"""Integer inputs up to this size are taken for constants: axes, shapes, indices."""
COUNTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Standard operators that have as many results as their inputs' values make."""
_PLAIN = {
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.FLOAT,
    AttributeProto.FLOATS,
    AttributeProto.STRING,
    AttributeProto.STRINGS,
}


def make_signature(
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    version: int | None = None,
    constants: Collection[int] = (),
    outputs: int = 1,
) -> OpSignature:
    """Return the signature of ``op`` (``"ai.onnx::Conv"`` or ``"Conv"``) called with ``inputs``.

    Output types are those that the reference computes; dimensions that depend on the inputs' values are symbolic, as
    the operator's inference has them.

    Parameters
    ----------
    inputs
        Arrays; None where an optional input is absent.
    attributes
        Plain values: int, float, str, and lists of them.
    version
        Opset version; by default the newest.
    constants
        Indices of inputs that are constants.
    outputs
        Number of outputs.
    """
    name = op if "::" in op else f"ai.onnx::{op}"
    types = tuple(None if a is None else TensorType(dtype_name(a.dtype), a.shape) for a in inputs)
    values = tuple(
        (key, tuple(v) if isinstance(v, list | tuple) else v) for key, v in sorted((attributes or {}).items())
    )
    known = tuple(
        make_constant(a) if i in constants and a is not None else None for i, a in enumerate(inputs)
    )
    unknown = (TensorType("float32", None),) * outputs
    signature = OpSignature(name, version or onnx.defs.onnx_opset_version(), values, types, unknown, known)
    return signature.bound(types, _output_types(signature, reference_for(signature)(inputs)))


@cache
def standard_signatures(op: str) -> tuple[OpSignature, ...]:
    """Return the calls of a standard operator (``"ai.onnx::Softmax"``) that the installed onnx has tests of.

    Those in double precision are given in single precision too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tests compute infinities on purpose
        found: dict[str, OpSignature] = {}
        for case in _node_cases():
            (node, *more) = case.model.graph.node
            if more or node.domain or f"ai.onnx::{node.op_type}" != op:
                continue
            for signature in _signatures(case, node):
                found.setdefault(signature.key, signature)
    return tuple(found.values())


@st.composite
def resized(draw: st.DrawFn, signature: OpSignature) -> OpSignature:
    """Draw the same call with other extents: sides that are equal in ``signature`` are equal in the result.

    Constants keep their values. What the reference can't compute is not drawn.
    """
    free = [i for i, t in enumerate(signature.inputs) if t is not None and not signature.is_constant(i)]
    sides = sorted({d for i in free for d in signature.inputs[i].dims if d})  # type: ignore[union-attr]  # those there are
    new = {side: draw(st.sampled_from(EXTENTS)) for side in sides}
    types = tuple(
        TensorType(t.dtype, tuple(new.get(d, d) for d in t.dims)) if i in free and t is not None else t
        for i, t in enumerate(signature.inputs)
    )
    assume(all(t is None or t.size <= MOST_ELEMENTS for t in types))
    changed = signature.bound(types, signature.outputs)
    try:
        with np.errstate(all="ignore"):
            results = reference_for(changed)(sample_inputs(changed, np.random.default_rng(0)))
        outputs = _output_types(changed, results)
    except Exception:  # extents that don't fit together end in any way
        outputs = ()
    assume(len(outputs) == len(signature.outputs))
    assume(all(0 < r.size <= MOST_ELEMENTS for r in results))
    drawn = changed.bound(types, outputs)
    assume(_is_valid(drawn))
    return drawn


def _output_types(signature: OpSignature, results: Sequence[Array]) -> tuple[TensorType, ...]:
    """Return the types of ``results``, with the dimensions that the operator's inference leaves open."""
    computed = tuple(TensorType(dtype_name(r.dtype), r.shape) for r in results)
    op = ops_in_use().get(signature.op)
    inferred: Sequence[TensorType | None] | None = None
    if op is not None:
        inferred = op.infer(signature)
    elif signature.op_type in COUNTING:
        inferred = _inferred(signature)
    if inferred is None or len(inferred) < len(computed):
        return computed
    return tuple(map(_left_open, computed, inferred))


def _left_open(computed: TensorType, inferred: TensorType | None) -> TensorType:
    if inferred is None or inferred.shape is None or inferred.rank != computed.rank:
        return computed
    dims = tuple(c if isinstance(d, int) else d for c, d in zip(computed.dims, inferred.shape, strict=True))
    return TensorType(computed.dtype, dims)


def _is_valid(signature: OpSignature) -> bool:
    """Return whether onnx's inference finds the same types: the reference computes more than the standard allows."""
    if signature.domain != "ai.onnx":
        return True
    inferred = _inferred(signature)
    return inferred is not None and all(
        o is None or not o.is_static or t is None or not t.is_static or o.dims == t.dims
        for o, t in zip(inferred, signature.outputs, strict=True)
    )


def _inferred(signature: OpSignature) -> tuple[TensorType | None, ...] | None:
    """Return the types of the outputs as onnx infers them, None for what it leaves open; None where it refuses the call."""
    if signature.domain != "ai.onnx":
        return None
    values: list[ir.Value | None] = []
    for i, tensor in enumerate(signature.inputs):
        if tensor is None:
            values.append(None)
            continue
        value = ir.Value(
            name=f"input_{i}", shape=ir.Shape(tensor.dims), type=ir.TensorType(data_type(tensor.dtype))
        )
        known = signature.known(i)
        value.const_value = None if known is None else ir.tensor(known, name=value.name)
        values.append(value)
    attributes = dict(signature.attributes) or None
    node = ir.node(signature.op_type, values, attributes, num_outputs=len(signature.outputs), name="call")
    for i, output in enumerate(node.outputs):
        output.name = f"output_{i}"
    try:
        infer_node(node, signature.version)
    except TacticianError:
        return None
    return tuple(tensor_type(output) for output in node.outputs)


@cache
def _node_cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    return [case for case in load_model_tests(kind="node") if case.model is not None]


def _signatures(case: Any, node: Any) -> list[OpSignature]:
    """Return the call of a test case with one node; none where it is of a kind that has no signature here."""
    if not case.data_sets or any(a.type not in _PLAIN for a in node.attribute):
        return []
    values = dict(zip([v.name for v in case.model.graph.input], case.data_sets[0][0], strict=False))
    inputs = [values.get(name) if name else None for name in node.input]
    if any(a is not None and not isinstance(a, np.ndarray | np.generic) for a in inputs):
        return []
    arrays = [None if a is None else np.asarray(a) for a in inputs]
    if any(a is not None and a.dtype.kind in "OUS" for a in arrays):
        return []
    single = [a.astype(np.float32) if a is not None and a.dtype == np.float64 else a for a in arrays]
    made = [_call(case, node, given) for given in (single, arrays)]
    return [signature for signature in made if signature is not None]


def _call(case: Any, node: Any, inputs: Sequence[Array | None]) -> OpSignature | None:
    small = [
        i
        for i, a in enumerate(inputs)
        if a is not None and a.dtype.kind == "i" and i > 0 and a.size <= MOST_CONSTANT_ELEMENTS
    ]
    attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    version = next(o.version for o in case.model.opset_import if not o.domain)
    try:
        return make_signature(node.op_type, inputs, attributes, version, small, len(node.output))
    except Exception:  # optional outputs, and what else the reference evaluator alone can't do
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
