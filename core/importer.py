"""An ONNX model becomes a network: read, checked, brought to a recent opset, shapes bound and inferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx import ModelProto
from tactician.errors import InvalidModelError, TacticianError
from tactician.function_inlining import inline_functions
from tactician.model_checks import (
    check_operators,
    check_structure,
    check_text,
    check_versions,
    one_line,
    run_checker,
)
from tactician.model_file import ModelFile, read_model
from tactician.opset_conversion import modernize
from tactician.shape_binding import bind_shapes
from tactician.shape_inference import infer_types

if TYPE_CHECKING:
    from tactician.plugins.op import Op

NEWEST_NEEDED_IR = 10
"""IR version that networks are written in where their opset asks for no newer one."""


def import_model(
    source: Any, shapes: Mapping[str, tuple[int, ...]] | None = None, ops: Mapping[str, Op] | None = None
) -> ir.Model:
    """Return ``source`` as a network whose nodes are named and whose types are known as far as they can be.

    Parameters
    ----------
    source
        Path of an ONNX file, its bytes, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``Network``. It is not changed.
    shapes
        Input name to dimensions, to bind symbolic ones.
    ops
        Plugins' operators by name (``"domain::Name"``).

    Returns
    -------
    onnx_ir.Model
        Functions are inlined, weights are initializers (mapped from their files where they lie in files of their own),
        and nodes are in topological order with unique names.

    Raises
    ------
    InvalidModelError
        If the model is damaged or breaks the specification.
    ExternalDataError
        If a weight file is missing, too short or outside of the model's folder.
    UnknownOpError
        If an operator is known neither to ONNX nor to a plugin.
    ShapeError
        If shapes do not fit together, or ``shapes`` does not fit the model.
    """
    try:
        return _import(read_model(source), shapes or {}, ops or {})
    except TacticianError:
        raise
    except MemoryError as error:
        raise InvalidModelError("the model needs more memory than there is to be read") from error
    except Exception as error:  # a damaged file can make any library below fail in any way
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {one_line(cause)}"
        raise InvalidModelError(
            f"the model can't be imported; it is damaged, or not understood: {said}"
        ) from error


def _import(file: ModelFile, shapes: Mapping[str, tuple[int, ...]], ops: Mapping[str, Op]) -> ir.Model:
    proto = file.proto
    check_text(proto)
    check_versions(proto)
    inputs = _drop_initializer_inputs(proto, file)
    proto = inline_functions(proto)
    check_structure(proto)
    check_operators(proto, ops)
    run_checker(proto)
    proto = modernize(proto)
    bind_shapes(proto, shapes, inputs)
    model = ir.serde.deserialize_model(infer_types(proto, ops))
    _attach_weights(model, file)
    _name_nodes(model)
    return model


def _drop_initializer_inputs(proto: ModelProto, file: ModelFile) -> list[str]:
    """Take inputs that have an initializer for constants (IR version 3 lists them all); return the others' names."""
    small = {t.name for t in proto.graph.initializer}
    kept = [i for i in proto.graph.input if i.name not in small]
    if len(kept) != len(proto.graph.input):
        copies = ModelProto()
        copies.graph.input.extend(kept)
        del proto.graph.input[:]
        proto.graph.input.extend(copies.graph.input)
    proto.ir_version = max(proto.ir_version, NEWEST_NEEDED_IR)
    return [i.name for i in kept if i.name not in file.weights]


def _attach_weights(model: ir.Model, file: ModelFile) -> None:
    graph = model.graph
    for value in list(graph.inputs):
        tensor = file.weights.get(value.name or "")
        if tensor is not None:
            graph.inputs.remove(value)
            value.const_value = tensor
            value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
            graph.register_initializer(value)


def _name_nodes(model: ir.Model) -> None:
    """Give every node of the main graph a name of its own: that of the file if it is unique, else operator and position."""
    taken: set[str] = set()
    for position, node in enumerate(model.graph):
        name = node.name or ""
        if not name or name in taken:
            name = f"{name or node.op_type}_{position}"
            while name in taken:
                name += "_"
        node.name = name
        taken.add(name)
