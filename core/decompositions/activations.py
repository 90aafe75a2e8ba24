"""The activation functions that attributes of recurrent operators name."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tactician.decompositions.call import Call, require
from tactician.passes.writer import Writer

Activation = Callable[[Writer, ir.Value], ir.Value]

DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}

_PLAIN = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
}

_PARAMETERS: dict[str, tuple[tuple[str, float], ...]] = {
    "affine": (("alpha", 1.0), ("beta", 0.0)),
    "scaledtanh": (("alpha", 1.0), ("beta", 1.0)),
    "leakyrelu": (("alpha", 0.01),),
    "thresholdedrelu": (("alpha", 1.0),),
    "hardsigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "elu": (("alpha", 1.0),),
}
_WITH_PARAMETERS = {
    "leakyrelu": "LeakyRelu",
    "thresholdedrelu": "ThresholdedRelu",
    "hardsigmoid": "HardSigmoid",
    "elu": "Elu",
}


def activations(call: Call, number: int) -> list[Activation]:
    """Return the activation functions of direction ``number`` of a recurrent operator.

    Raises
    ------
    UnexpandableError
        If one is unknown.
    """
    defaults = DEFAULTS[call.signature.op_type]
    names = [str(n).lower() for n in call.attribute("activations") or ()] or [d.lower() for d in defaults] * 2
    values = {key: list(call.attribute(f"activation_{key}") or ()) for key in ("alpha", "beta")}
    found = []
    # parameters are given for those functions alone that have them, one after the other
    for name in names[: (number + 1) * len(defaults)]:
        require(name in _PLAIN or name in _PARAMETERS, f"activation '{name}' is unknown")
        own = {
            key: values[key].pop(0) if values[key] else default for key, default in _PARAMETERS.get(name, ())
        }
        found.append(_activation(name, own))
    require(len(found) >= (number + 1) * len(defaults), "activations are missing")
    return found[number * len(defaults) :]


def _activation(name: str, parameters: dict[str, float]) -> Activation:
    def apply(op: Writer, x: ir.Value) -> ir.Value:
        made: ir.Value
        match name:
            case "affine":
                made = op.Add(op.Mul(x, parameters["alpha"]), parameters["beta"])
            case "scaledtanh":
                made = op.Mul(op.Tanh(op.Mul(x, parameters["beta"])), parameters["alpha"])
            case _ if name in _PLAIN:
                made = getattr(op, _PLAIN[name])(x)
            case _:
                made = getattr(op, _WITH_PARAMETERS[name])(x, **parameters)
        return made

    return apply
