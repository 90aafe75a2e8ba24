"""All that a tactic may look at: the types, attributes and known constants of one operator call."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import ml_dtypes
import msgspec
import numpy as np

Dim = int | str | None
"""A dimension: a number, a symbol that binds at run time, or unknown."""

MAX_KNOWN_INTEGERS = 64
"""Integer constants of at most this many elements travel with their values in a signature."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of one tensor, row-major and contiguous.

    Parameters
    ----------
    dtype
        ONNX element type in NumPy's spelling (``"float32"``, ``"bfloat16"``, ``"int4"``, ``"string"`` …), or
        ``"sequence(float32)"`` / ``"optional(…)"`` for values that are no tensors.
    shape
        Dimensions, or None where even the rank is unknown.
    """

    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def is_tensor(self) -> bool:
        """Whether this is a dense tensor, not a sequence, a map or an optional."""
        return "(" not in self.dtype

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return self.is_tensor and self.shape is not None and all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions as numbers.

        Raises
        ------
        ValueError
            If a dimension is symbolic or unknown.
        """
        if not self.is_static or self.shape is None:
            raise ValueError(f"{self} is not static")
        return tuple(int(d) for d in self.shape if isinstance(d, int))

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None if unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of a static type."""
        return math.prod(self.dims)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy (or ml_dtypes) type of one element."""
        return numpy_dtype(self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of one element as stored in memory (4-bit types take a whole byte)."""
        return self.numpy_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of a static type."""
        return self.size * self.itemsize

    def __str__(self) -> str:
        """Compact form, such as ``float32[1, 3, N, ?]``."""
        if self.shape is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Blob:
    """An attribute that is no plain value: a serialized ONNX tensor, graph, sparse tensor or type, or a list of them."""

    kind: str
    data: tuple[bytes, ...]


AttributeValue = (
    int
    | float
    | str
    | bytes
    | tuple[int, ...]
    | tuple[float, ...]
    | tuple[str, ...]
    | tuple[bytes, ...]
    | Blob
)


@dataclass(frozen=True)
class Constant:
    """What is known of an input that is a constant: its value where that is small enough to matter for the choice.

    Integer and boolean constants of at most ``MAX_KNOWN_INTEGERS`` elements and floating-point scalars have a value;
    weights do not, so that two layers that differ in their weights alone share one signature.
    """

    value: bytes | None = None


Role = Literal["prologue", "anchor", "epilogue"]


@dataclass(frozen=True)
class Part:
    """One operator of a fused node.

    Parameters
    ----------
    role
        Whether it is what the node forms around, or comes before or after that.
    signature
        The operator's call by itself.
    inputs
        Where each of its inputs comes from: the number of an input of the fused node, ``-1 - k`` for the output of
        part ``k``, None where it is absent.
    """

    role: Role
    signature: OpSignature
    inputs: tuple[int | None, ...]


@dataclass(frozen=True)
class OpSignature:
    """One operator call as a value: equal signatures are measured once.

    Parameters
    ----------
    op
        Domain and name, ``"ai.onnx::Conv"``.
    version
        Opset version of the domain that the node is written in.
    attributes
        Name and value of each attribute that the node sets, sorted by name.
    inputs, outputs
        Types in order; None where an optional input or output is absent.
    constants
        Parallel to ``inputs``: what is known of the constant ones, None for the others.
    body
        Serialized ONNX FunctionProto of a fused node: the subgraph that it stands for; None for a single operator.
    parts
        The operators of a node that the builder fused for a tactic's ``fused_forms``, in the order in which they are
        computed; the last one computes the node's output. Empty for other nodes.
    """

    op: str
    version: int
    attributes: tuple[tuple[str, AttributeValue], ...]
    inputs: tuple[TensorType | None, ...]
    outputs: tuple[TensorType | None, ...]
    constants: tuple[Constant | None, ...]
    body: bytes | None = None
    parts: tuple[Part, ...] = ()

    @property
    def anchor(self) -> OpSignature:
        """The call that a fused node forms around; of a single operator, this signature itself."""
        return next((part.signature for part in self.parts if part.role == "anchor"), self)

    @property
    def domain(self) -> str:
        """The operator's domain, ``"ai.onnx"`` for the standard one."""
        return self.op.partition("::")[0]

    @property
    def op_type(self) -> str:
        """The operator's name within its domain."""
        return self.op.partition("::")[2]

    @property
    def is_static(self) -> bool:
        """Whether every input and output is a tensor of known shape."""
        return all(t is None or t.is_static for t in (*self.inputs, *self.outputs))

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of attribute ``name``, or ``default`` where the node does not set it."""
        return self._attributes.get(name, default)

    def input(self, index: int) -> TensorType | None:
        """Return the type of input ``index``, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def is_constant(self, index: int) -> bool:
        """Return whether input ``index`` is a constant."""
        return index < len(self.constants) and self.constants[index] is not None

    def known(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return the value of constant input ``index`` where the signature carries it, else None."""
        constant = self.constants[index] if index < len(self.constants) else None
        tensor = self.input(index)
        if constant is None or constant.value is None or tensor is None:
            return None
        return np.frombuffer(constant.value, tensor.numpy_dtype).reshape(tensor.dims)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical form: the signature's name in caches and lock files."""
        return hashlib.sha256(msgspec.json.encode(self.to_plain())).hexdigest()

    @cached_property
    def _attributes(self) -> dict[str, AttributeValue]:
        return dict(self.attributes)

    def to_plain(self) -> dict[str, Any]:
        """Return the signature as JSON-ready values; ``from_plain`` undoes it exactly."""
        return {
            "op": self.op,
            "version": self.version,
            "attributes": [[name, *_attribute_to_plain(value)] for name, value in self.attributes],
            "inputs": [_type_to_plain(t) for t in self.inputs],
            "outputs": [_type_to_plain(t) for t in self.outputs],
            "constants": [c if c is None else [_text(c.value)] for c in self.constants],
            "body": _text(self.body),
            # left out where there are none, so that the keys of single operators stay what they were
            **({"parts": [_part_to_plain(part) for part in self.parts]} if self.parts else {}),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> OpSignature:
        """Return the signature that ``to_plain`` made ``plain`` of."""
        return cls(
            plain["op"],
            plain["version"],
            tuple((name, _attribute_from_plain(tag, value)) for name, tag, value in plain["attributes"]),
            tuple(_type_from_plain(t) for t in plain["inputs"]),
            tuple(_type_from_plain(t) for t in plain["outputs"]),
            tuple(c if c is None else Constant(_data(c[0])) for c in plain["constants"]),
            _data(plain["body"]),
            tuple(_part_from_plain(part) for part in plain.get("parts", ())),
        )

    def bound(
        self, inputs: tuple[TensorType | None, ...], outputs: tuple[TensorType | None, ...]
    ) -> OpSignature:
        """Return the same call with other input and output types.

        Raises
        ------
        ValueError
            If it has parts: their types would no longer fit.
        """
        if self.parts:
            raise ValueError(f"{self} is made of parts, whose types are fixed; bind those of the network")
        return replace(self, inputs=inputs, outputs=outputs)

    def __str__(self) -> str:
        """Compact form, such as ``Conv(float32[1, 3, 8, 8], float32[4, 3, 3, 3]) -> float32[1, 4, 8, 8]``.

        A fused node is called after its operators, ``Conv+Relu(…)``.
        """
        name = self.op_type if self.domain == "ai.onnx" else self.op
        if self.parts:
            name = "+".join(part.signature.op_type for part in self.parts)
        inputs = ", ".join("-" if t is None else str(t) for t in self.inputs)
        return f"{name}({inputs}) -> {', '.join('-' if t is None else str(t) for t in self.outputs)}"


def _part_to_plain(part: Part) -> list[Any]:
    return [part.role, part.signature.to_plain(), list(part.inputs)]


def _part_from_plain(plain: list[Any]) -> Part:
    return Part(plain[0], OpSignature.from_plain(plain[1]), tuple(plain[2]))


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _data(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _type_to_plain(tensor: TensorType | None) -> list[Any] | None:
    return None if tensor is None else [tensor.dtype, None if tensor.shape is None else list(tensor.shape)]


def _type_from_plain(plain: list[Any] | None) -> TensorType | None:
    return None if plain is None else TensorType(plain[0], None if plain[1] is None else tuple(plain[1]))


def _attribute_to_plain(value: AttributeValue) -> tuple[str, Any]:
    """Return a tag and a JSON value; floats go as hexadecimal text, which keeps every bit and infinity."""
    match value:
        case Blob():
            return "blob:" + value.kind, [_text(d) for d in value.data]
        case tuple():
            tag = _attribute_to_plain(value[0])[0] if value else "i"
            return tag + "*", [_attribute_to_plain(v)[1] for v in value]
        case float():
            return "f", value.hex()
        case bytes():
            return "b", _text(value)
        case str():
            return "s", value
        case _:
            return "i", int(value)


def _attribute_from_plain(tag: str, plain: Any) -> AttributeValue:
    if tag.startswith("blob:"):
        return Blob(tag[5:], tuple(base64.b64decode(d) for d in plain))
    if tag.endswith("*"):
        return tuple(_attribute_from_plain(tag[:-1], v) for v in plain)  # type: ignore[return-value]  # one tag, one type
    decode: dict[str, Callable[[Any], Any]] = {"f": float.fromhex, "b": base64.b64decode, "s": str, "i": int}
    value: AttributeValue = decode[tag](plain)
    return value


def make_constant(array: np.ndarray[Any, Any]) -> Constant:
    """Return what a signature keeps of a constant input with value ``array``."""
    small_integer = array.dtype.kind in "iub" and array.size <= MAX_KNOWN_INTEGERS
    scalar = array.size == 1 and array.dtype.kind in "fV" and array.dtype != object
    return Constant(np.ascontiguousarray(array).tobytes() if small_integer or scalar else None)


_ML_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, kind))
    for name, kind in {
        "bfloat16": "bfloat16",
        "float8e4m3fn": "float8_e4m3fn",
        "float8e4m3fnuz": "float8_e4m3fnuz",
        "float8e5m2": "float8_e5m2",
        "float8e5m2fnuz": "float8_e5m2fnuz",
        "float8e8m0": "float8_e8m0fnu",
        "float4e2m1": "float4_e2m1fn",
        "int4": "int4",
        "uint4": "uint4",
        "int2": "int2",
        "uint2": "uint2",
    }.items()
    if hasattr(ml_dtypes, kind)
}
_ML_NAMES = {dtype: name for name, dtype in _ML_DTYPES.items()}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy type of the element type called ``name`` (``"string"`` is an object array)."""
    if name == "string":
        return np.dtype(object)
    return _ML_DTYPES.get(name) or np.dtype(name)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name, as ``TensorType`` spells it, of a NumPy type."""
    if dtype.kind in "OUST":
        return "string"
    return _ML_NAMES.get(dtype) or dtype.name
