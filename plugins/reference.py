"""References: what any operator call must compute, with NumPy. The judge of every tactic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.errors import UnknownOpError
from tactician.plugins.op import Op, as_outputs
from tactician.signature import OpSignature

if TYPE_CHECKING:
    pass

Array = np.ndarray[Any, Any]
Computation = Callable[[Sequence[Any]], tuple[Any, ...]]
"""Computes all outputs of a call from its inputs: arrays, lists (sequences), None (absent or empty)."""

_NARROW_FLOATS = ("float16", "bfloat16", "float32")


def reference_for(signature: OpSignature, ops: Mapping[str, Op] | None = None) -> Computation:
    """Return the function that computes the outputs of ``signature``.

    Parameters
    ----------
    signature
        The call: an operator of a plugin, a standard one, or a fused node, whose meaning is its body.
    ops
        Custom operators by name; those that ``set_ops`` set, if None.

    Returns
    -------
    Callable
        Takes the inputs in the order of the signature. They may be wider floats than the signature says: then
        all is computed in the wider type, also within bodies and subgraphs.

    Raises
    ------
    UnknownOpError
        If neither ONNX nor a plugin defines the operator.
    """
    ops = ops_in_use() if ops is None else ops
    if signature.op in ops and signature.body is None:
        return _custom(signature, ops[signature.op])
    return _standard(signature, ops)


def one_node_model(signature: OpSignature) -> bytes:
    """Return ``signature`` as a serialized ONNX model; ``node_model.node_model`` has options."""
    from tactician.plugins.node_model import node_model

    return bytes(node_model(signature).SerializeToString(deterministic=True))


def formal_name(index: int) -> str:
    """Return what a one-node model calls input ``index``; the slash tells it from names in subgraphs."""
    return f"call/input_{index}"


def set_ops(ops: Mapping[str, Op]) -> None:
    """Make ``ops``, by name, the custom operators of this process.

    The plugin loader calls this with the operators of all loaded plugins, so that a tactic that runs
    references finds them with no more than a signature at hand.
    """
    global _ops
    _ops = MappingProxyType(dict(ops))


def ops_in_use() -> Mapping[str, Op]:
    """Return the custom operators that ``set_ops`` set last, by name."""
    return _ops


_ops: Mapping[str, Op] = MappingProxyType({})


def _custom(signature: OpSignature, op: Op) -> Computation:
    def compute(inputs: Sequence[Any]) -> tuple[Any, ...]:
        return as_outputs(op.reference(signature, *inputs))

    return compute


def _standard(signature: OpSignature, ops: Mapping[str, Op]) -> Computation:
    """Return what ONNX's own reference evaluator computes on a model of one node."""
    from tactician.plugins.evaluator import make_evaluator, widened
    from tactician.plugins.node_model import input_names, node_model, output_names

    model = node_model(signature, bake=False)
    names, outputs = input_names(signature), output_names(signature)
    evaluators: dict[bool, Any] = {}

    def evaluator(wide: bool) -> Any:
        if wide not in evaluators:
            try:
                evaluators[wide] = make_evaluator(widened(model) if wide else model, ops)
            except (
                RuntimeError
            ) as error:  # for a node within a subgraph, whose domain it does not know, no subclass
                if not isinstance(error, NotImplementedError) and "is not specified" not in str(error):
                    raise
                raise UnknownOpError(
                    f"operator '{signature.op}' is defined by no ONNX opset and no loaded plugin: {error}"
                ) from error
        return evaluators[wide]

    def compute(inputs: Sequence[Any]) -> tuple[Any, ...]:
        feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
        wanted = [name for name in outputs if name]
        with np.errstate(all="ignore"):
            results = iter(evaluator(_is_wide(signature, inputs)).run(wanted, feeds))
        return tuple(_as_value(next(results)) if name else None for name in outputs)

    evaluator(False)  # an operator that nobody knows is reported now
    return compute


def _is_wide(signature: OpSignature, inputs: Sequence[Any]) -> bool:
    """Return whether the inputs are double precision where the signature says less."""
    return any(
        tensor is not None and tensor.dtype in _NARROW_FLOATS and getattr(value, "dtype", None) == np.float64
        for tensor, value in zip(signature.inputs, inputs, strict=True)
    )


def _as_value(value: Any) -> Any:
    return value if value is None or isinstance(value, list | dict) else np.asarray(value)
