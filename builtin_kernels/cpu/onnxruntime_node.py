"""ONNX Runtime's CPU kernels as tactics: one node, or one fused body, at a time."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cpu.onnxruntime_c import ELEMENT_TYPES, is_available
from tactician.builtin_kernels.cpu.onnxruntime_session import (
    PythonSession,
    Session,
    create_session,
    is_installed,
    shared_session,
)
from tactician.plugins.reference import formal_name
from tactician.plugins.target import Artifacts, Device
from tactician.signature import OpSignature, TensorType
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import ANY_OP, Launch, Tactic

Array = np.ndarray[Any, Any]

MAX_BINDINGS = 8
"""Sets of buffers, and sets of packed weights, that one launch remembers."""

MAX_TRIAL_BYTES = 1 << 28
"""Largest inputs and outputs, together, that are made up to see whether a session runs."""

_DOMAINS = ("ai.onnx", "ai.onnx.ml", "com.microsoft")
_TYPES = frozenset(
    {"float16", "float32", "float64", "bool", "string"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_PACKED_OPS = frozenset(
    ("ai.onnx::" + name)
    for name in [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM",
        "GRU",
        "RNN",
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    ]
)
"""Operators whose kernels lay constant weights out anew when they have them beforehand."""
_FORM = FusedForm(
    tuple(f"ai.onnx::{name}" for name in ("Conv", "ConvTranspose", "Gemm", "MatMul")),
    epilogue=tuple(
        f"ai.onnx::{name}"
        for name in (
            "Add",
            "Mul",
            "Div",
            "Erf",
            "Relu",
            "Clip",
            "LeakyRelu",
            "HardSigmoid",
            "Sigmoid",
            "Tanh",
        )
    ),
    longest=7,  # a product, its bias, and the five operators of GELU
)
"""What ONNX Runtime's own optimizer makes one kernel of, or at least one session."""

_refusals: dict[str, str | None] = {}
"""What came of trying, by content key of the model and number of threads."""


_INEXACT_OPS = {
    "CastLike": "ignores the attribute 'saturate'",
    "DFT": "is less exact than ONNX's own tests ask for",
    "STFT": "is less exact than ONNX's own tests ask for",
    "MaxUnpool": "places values wrongly where an output shape is given",
}
"""Operators that ONNX Runtime computes otherwise than ONNX defines, seen with its version 1.31.1."""


@dataclass(frozen=True)
class OnnxRuntime(Tactic):
    """One node through ONNX Runtime's CPU provider.

    Parameters
    ----------
    packed
        Whether constant inputs are given to ONNX Runtime beforehand, which keeps a copy in the layout that
        suits its kernels (blocked channels for convolutions, panels for matrix products), made when a launch
        first meets the weights.
    """

    op: ClassVar[str | tuple[str, ...]] = ANY_OP
    target: ClassVar[str] = "cpu"
    library: ClassVar[str] = "onnxruntime"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (_FORM,)
    packed: bool = False

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        """Offer packed weights where there are any worth it, and weights as they are."""
        if _weights(signature):
            yield cls(packed=True)
        yield cls()

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline what ONNX Runtime refuses to create a session for, in its own words."""
        if not is_installed():
            return "onnxruntime is not installed"
        if signature.body is None and signature.domain not in _DOMAINS:
            return f"ONNX Runtime knows no operators of domain '{signature.domain}'"
        for tensor in _types(signature):
            if tensor is not None and (reason := _refused_type(tensor, bindable=_is_bindable(signature))):
                return reason
        if signature.body is None and (reason := _inexact(signature)):
            return f"ONNX Runtime's {signature.op_type} {reason}"
        if self.packed and not _weights(signature):
            return "no constant weights to pack"
        key = self._model(signature, ())[0] + str(device.facts["threads"])
        if key not in _refusals:
            _refusals[key] = self._refusal(signature, device)
        return _refusals[key]

    def _refusal(self, signature: OpSignature, device: Device) -> str | None:
        """Try it: what ONNX Runtime has no kernel for shows when a session is made, or when it first runs."""
        try:
            launch = self.prepare(signature, device)
            if _can_be_tried(signature):
                inputs, outputs = (
                    [None if t is None else np.ones(t.dims, t.numpy_dtype) for t in types]
                    for types in (signature.inputs, signature.outputs)
                )
                launch(inputs, outputs, None, None)
        except Exception as error:  # ONNX Runtime has types of its own for what it refuses
            return "ONNX Runtime: " + _brief(error)
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Create the session, of the model that the engine stores or that is serialized now."""
        if self.packed:
            weights = _weights(signature)
            key, make = self._model(signature, weights)
            model, threads = device.artifacts.get(key, make), int(device.facts["threads"])
            return _PackedLaunch(signature, weights, lambda values: create_session(model, threads, values))
        key, make = self._model(signature, ())
        threads = int(device.facts["threads"])
        bindable = _is_bindable(signature)
        create = create_session if bindable else PythonSession
        session = shared_session(key, lambda: create(device.artifacts.get(key, make), threads))
        device.artifacts.get(key, make)  # in use, also where the session was there already
        return _BoundLaunch(session, signature) if bindable else _run_launch(session, signature)

    def _model(self, signature: OpSignature, weights: Sequence[int]) -> tuple[str, Callable[[], bytes]]:
        """Return key and maker of the model; an engine that stores it is loaded without ONNX."""

        def make() -> bytes:
            from tactician.plugins.node_model import node_model

            model = node_model(signature, external=weights, oldest_opset=True)
            return bytes(model.SerializeToString(deterministic=True))

        return Artifacts.key("onnxruntime", str(self.version), str(self.packed), signature.key), make


class _BoundLaunch:
    """A launch on buffers: bound once for each set of pointers, and written in place."""

    def __init__(self, session: Session, signature: OpSignature, fixed: Sequence[int] = ()) -> None:
        self._session = session
        self._inputs = _fed(signature, fixed)
        self._outputs = _wanted(signature)
        self._bindings: OrderedDict[tuple[int, ...], Callable[[], None]] = OrderedDict()

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        key = (*(_pointer(inputs[i]) for i in self._inputs), *(_pointer(outputs[i]) for i in self._outputs))
        run = self._bindings.get(key)
        if run is None:
            run = self._session.bind([inputs[i] for i in self._inputs], [outputs[i] for i in self._outputs])
            _remember(self._bindings, key, run)
        run()


class _PackedLaunch:
    """A launch with weights that a session was given beforehand: one session for each set of weights.

    Constants do not change, so a set is known by its addresses. All the same some of its elements are
    compared at each call, since tests of a kernel do write other values to the same memory.
    """

    def __init__(
        self, signature: OpSignature, weights: Sequence[int], create: Callable[[dict[str, Array]], Session]
    ) -> None:
        self._signature = signature
        self._weights = weights
        self._create = create
        self._sets: OrderedDict[tuple[int, ...], tuple[_BoundLaunch, _Samples]] = OrderedDict()

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        key = tuple(_pointer(inputs[i]) for i in self._weights)
        known = self._sets.get(key)
        if known is None or known[1].changed():
            arrays = {i: inputs[i] for i in self._weights}
            session = self._create({formal_name(i): array for i, array in arrays.items()})
            known = _BoundLaunch(session, self._signature, self._weights), _Samples(list(arrays.values()))
            _remember(self._sets, key, known)
        known[0](inputs, outputs, workspace, stream)


class _Samples:
    """A few elements of each of some arrays, to see whether these were written to."""

    COUNT = 16

    def __init__(self, arrays: Sequence[Array]) -> None:
        # these views also keep the memory from being handed out again under the same address
        self._views = [a.reshape(-1)[:: max(1, a.size // self.COUNT)] for a in arrays]
        self._values = [v.tobytes() for v in self._views]

    def changed(self) -> bool:
        """Return whether any of the elements differs from what it was."""
        return any(v.tobytes() != old for v, old in zip(self._views, self._values, strict=True))


def _run_launch(session: PythonSession, signature: OpSignature) -> Launch:
    """Return a launch for what has no fixed buffers: dynamic shapes, strings, sequences."""
    fed, wanted = _fed(signature, ()), _wanted(signature)

    def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> Sequence[Any]:
        values: list[Any] = [None] * len(outputs)
        for i, result in zip(wanted, session.run([inputs[i] for i in fed]), strict=True):
            values[i] = result if isinstance(result, list | dict) or result is None else np.asarray(result)
            if outputs[i] is not None:
                np.copyto(outputs[i], values[i])
        return values

    return launch


def _weights(signature: OpSignature) -> tuple[int, ...]:
    """Return the constant inputs that are worth giving to a session beforehand; empty if none is."""
    if not signature.is_static or not _has_packed_op(signature):
        return ()
    weights = tuple(i for i in _fed(signature, ()) if signature.is_constant(i))
    return weights if len(weights) < len(_fed(signature, ())) else ()


def _has_packed_op(signature: OpSignature) -> bool:
    if signature.body is None:
        return signature.op in _PACKED_OPS
    # the names as they stand in the serialized body; a name found by chance costs no more than a measurement
    return any(op.partition("::")[2].encode() in signature.body for op in _PACKED_OPS)


def _fed(signature: OpSignature, fixed: Sequence[int]) -> list[int]:
    """Return the indices of the inputs that the model has as inputs, in the model's order."""
    return [
        i
        for i, tensor in enumerate(signature.inputs)
        if tensor is not None and i not in fixed and signature.known(i) is None
    ]


def _wanted(signature: OpSignature) -> list[int]:
    return [i for i, tensor in enumerate(signature.outputs) if tensor is not None]


def _types(signature: OpSignature) -> tuple[TensorType | None, ...]:
    return (*signature.inputs, *signature.outputs)


def _refused_type(tensor: TensorType, *, bindable: bool) -> str | None:
    if tensor.dtype.startswith(("optional(", "map(")):
        return f"values of type {tensor.dtype} can't be passed to ONNX Runtime from Python"
    element = tensor.dtype.removeprefix("sequence(").removesuffix(")")
    if element not in _TYPES and not (bindable and is_available() and element in ELEMENT_TYPES):
        return f"ONNX Runtime takes no NumPy arrays of type {element}"
    return None


def _inexact(signature: OpSignature) -> str | None:
    """Return how ONNX Runtime computes something else than ONNX defines, or None."""
    x = signature.input(0)
    if signature.op_type == "Attention" and x is not None and x.dtype == "float16":
        return "rounds the scores to half precision before their softmax"
    single = x is not None and x.is_static and len(x.dims) > 2 and math.prod(x.dims[2:]) == 1
    if signature.op_type == "InstanceNormalization" and single:
        return "cancels large numbers where there is one element in a channel"
    return _INEXACT_OPS.get(signature.op_type)


def _pointer(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _remember(entries: OrderedDict[tuple[int, ...], Any], key: tuple[int, ...], value: Any) -> None:
    entries[key] = value
    while len(entries) > MAX_BINDINGS:
        entries.popitem(last=False)


def _is_bindable(signature: OpSignature) -> bool:
    """Return whether every input and output is a buffer of known size."""
    return all(t is None or (t.is_static and t.dtype != "string") for t in _types(signature))


def _can_be_tried(signature: OpSignature) -> bool:
    """Return whether any values will do: whole numbers may be indices or shapes, of which many are wrong."""
    types = [t for t in _types(signature) if t is not None]
    return (
        _is_bindable(signature)
        and sum(t.nbytes for t in types) <= MAX_TRIAL_BYTES
        and not any(
            signature.inputs[i].dtype in ("int32", "int64")  # type: ignore[union-attr]  # fed inputs are present
            for i in _fed(signature, ())
        )
    )


def _brief(error: Exception) -> str:
    """Return the first line of an ONNX Runtime error without its codes and where in its sources it arose."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    before, place, after = line.partition("/onnxruntime_src/")
    opening = after.find("(")
    if not place or opening < 0:
        return line[:300]
    depth = 0
    for end in range(opening, len(after)):  # to where the parameters of the C++ function end
        depth += (after[end] == "(") - (after[end] == ")")
        if not depth:
            return f"{before}{after[end + 1 :].removeprefix(' const').strip()}"[:300]
    return line[:300]


TACTICS: list[type[Tactic]] = [OnnxRuntime]
