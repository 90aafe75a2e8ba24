"""Symbolic dimensions of the inputs, bound to numbers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from onnx import ModelProto, ValueInfoProto
from tactician.errors import ShapeError


def bind_shapes(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[str]) -> None:
    """Set the dimensions of the ``inputs`` that ``shapes`` names, and their symbols wherever they stand.

    Raises
    ------
    ShapeError
        If an input is unknown or no tensor, a rank differs, or a dimension contradicts the model or another binding.
    """
    if not shapes:
        return
    values = {v.name: v for v in proto.graph.input if v.name in inputs}
    symbols: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        if name not in values:
            near = difflib.get_close_matches(name, values, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            listed = ", ".join(f"{n} {_text(present_dims(v))}" for n, v in values.items())
            raise ShapeError(
                f"shapes are given for '{name}', but the model has no such input{hint}; its inputs are {listed}"
            )
        _bind(values[name], tuple(dims), symbols)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param][0]
    # what was inferred or declared for other dimensions would contradict those now bound
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def present_dims(value: ValueInfoProto) -> list[int | str] | None:
    """Return the dimensions of ``value``, ``"?"`` for those that are unknown; None where the rank is."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]


def _bind(value: ValueInfoProto, dims: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    where = f"input '{value.name}'"
    if not value.type.HasField("tensor_type"):
        raise ShapeError(f"{where} is no tensor; it has no shape that could be given")
    if any(want < 0 for want in dims):
        raise ShapeError(
            f"{where}: shape {list(dims)} has a negative dimension; give each one as a number from 0 up"
        )
    present = present_dims(value)
    if present is not None and len(present) != len(dims):
        raise ShapeError(
            f"{where} has {len(present)} dimensions, {_text(present)}, but {len(dims)} are given, {list(dims)}; "
            f"give {_usage(value.name, present)}"
        )
    for have, want in zip(present or (), dims, strict=False):
        if isinstance(have, int) and have != want:
            raise ShapeError(
                f"{where} is {_text(present)} in the model, but {list(dims)} is given: {have} is fixed; "
                f"give {_usage(value.name, present)}, or export the model again"
            )
        if isinstance(have, str) and have != "?":
            number, other = symbols.setdefault(have, (want, value.name))
            if number != want:
                raise ShapeError(
                    f"{where}: '{have}' is given as {want}, but as {number} for input '{other}'; it is one dimension, give one number"
                )
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for want in dims:
        shape.dim.add(dim_value=want)


def _text(dims: Sequence[int | str] | None) -> str:
    return "of unknown rank" if dims is None else f"[{', '.join(map(str, dims))}]"


def _usage(name: str, present: Sequence[int | str] | None) -> str:
    return (
        f"--shapes {name}:{'x'.join(str(d).upper() if isinstance(d, str) else str(d) for d in present or ())}"
    )
