"""Elementwise ONNX operators as C expressions: the table that the pointwise generator draws on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

C_TYPES = {
    "float32": "float",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "double",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "int64": "i64",
    "uint64": "u64",
    "bool": "u8",
    "float8e4m3fn": "f8e4m3",
    "float8e5m2": "f8e5m2",
}
"""Element types in memory, by name."""

HALF_TYPES = ("float16", "bfloat16")
QUARTER_TYPES = ("float8e4m3fn", "float8e5m2")
"""Types that are read only, to be converted."""
FLOAT_TYPES = ("float32", "float64", *HALF_TYPES, *QUARTER_TYPES)

COMPUTE_TYPES = C_TYPES | dict.fromkeys((*HALF_TYPES, *QUARTER_TYPES), "float") | {"bool": "bool"}
"""Types that expressions are computed in, by name."""

INT_LIMITS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}

# onnx.TensorProto.DataType, so that Cast needs no onnx
ONNX_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


class UnsupportedError(Exception):
    """A call that the pointwise kernels can't express; the message is the reason to decline with."""


@dataclass(frozen=True)
class Operand:
    """A value of an expression: a C identifier or literal, its type and shape, and what it is if known."""

    code: str
    dtype: str
    shape: tuple[int, ...]
    value: int | float | bool | None = None
    source: int | None = None
    """The input that it is read from, where it is one."""

    @property
    def is_float(self) -> bool:
        """Whether the element type is a floating-point one."""
        return self.dtype in FLOAT_TYPES


@dataclass(frozen=True)
class Call:
    """One operator call within an expression; ``operands`` holds None where an optional input is absent."""

    op: str
    version: int
    attributes: Mapping[str, Any]
    operands: tuple[Operand | None, ...]

    def __getitem__(self, index: int) -> Operand:
        """Return operand ``index``, which has to be there."""
        operand = self.get(index)
        if operand is None:
            raise UnsupportedError(f"{self.op} has no input {index}")
        return operand

    def get(self, index: int) -> Operand | None:
        """Return operand ``index``, or None where it is absent."""
        return self.operands[index] if index < len(self.operands) else None

    def attribute(self, name: str, default: Any) -> Any:
        """Return the attribute ``name``, or ``default``."""
        return self.attributes.get(name, default)


Rule = Callable[[Call], tuple[str, str]]
"""Returns the element type and the C expression of a call's result."""


def literal(value: int | float | bool, dtype: str) -> str:
    """Return ``value`` as a C literal of the type that ``dtype`` is computed in, every bit kept."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype not in FLOAT_TYPES:
        value = int(value)
        if dtype == "uint64":
            return f"{value}ull"
        return "(-9223372036854775807ll - 1)" if value == -(2**63) else f"(({COMPUTE_TYPES[dtype]}){value}ll)"
    value = float(value)
    single = dtype != "float64"
    if math.isnan(value):
        return "__int_as_float(0x7fc00000)" if single else "__longlong_as_double(0x7ff8000000000000ll)"
    if math.isinf(value):
        sign = "-" if value < 0 else ""
        return sign + (
            "__int_as_float(0x7f800000)" if single else "__longlong_as_double(0x7ff0000000000000ll)"
        )
    return f"({value.hex()}{'f' if single else ''})"


def apply_rule(call: Call) -> tuple[str, str]:
    """Return the element type and the C expression of ``call``.

    Raises
    ------
    UnsupportedError
        If the operator is not elementwise, or not for these types or attributes.
    """
    rule = RULES.get(call.op)
    if rule is None:
        raise UnsupportedError(f"{call.op} is not an elementwise operator")
    for operand in call.operands:
        if operand is not None and operand.dtype not in C_TYPES:
            raise UnsupportedError(f"element type {operand.dtype} is not supported")
        if operand is not None and operand.dtype in QUARTER_TYPES and call.op not in _CONVERSIONS:
            raise UnsupportedError(f"{operand.dtype} is converted only, and {call.op} is no conversion")
    return rule(call)


def _formula(template: str, *, floats_only: bool = True, short: str | None = None, **defaults: float) -> Rule:
    """Make a rule of a template over ``{x}``, ``{y}``, attributes, and ``{s}``, which is ``f`` in float.

    ``short`` takes its place for 16-bit floats: their rounding hides errors that spare instructions, which is what
    bounds kernels that move only 4 bytes for each element.
    """

    def rule(call: Call) -> tuple[str, str]:
        x = call[0]
        if floats_only and not x.is_float:
            raise UnsupportedError(f"{call.op} needs a floating-point type, not {x.dtype}")
        fields = {name: literal(call.attribute(name, value), x.dtype) for name, value in defaults.items()}
        fields |= {name: call[i].code for i, name in enumerate("xy"[: len(call.operands)])}
        chosen = short if short is not None and x.dtype in HALF_TYPES else template
        return x.dtype, chosen.format(s="" if x.dtype == "float64" else "f", **fields)

    return rule


def _operator(symbol: str) -> Rule:
    return lambda call: (call[0].dtype, f"{call[0].code} {symbol} {call[1].code}")


def _comparison(symbol: str) -> Rule:
    return lambda call: ("bool", f"{call[0].code} {symbol} {call[1].code}")


def _fold(template: str) -> Rule:
    """Make a rule of a variadic operator that combines ``{a}`` and ``{b}``."""

    def rule(call: Call) -> tuple[str, str]:
        code = call[0].code
        for i in range(1, len(call.operands)):
            code = template.format(a=f"({code})" if i > 1 else code, b=call[i].code)
        return call[0].dtype, code

    return rule


def _mean(call: Call) -> tuple[str, str]:
    dtype, total = RULES["Sum"](call)
    return dtype, f"({total}) * {literal(1 / len(call.operands), dtype)}"


def _signed(floating: str, integer: str) -> Rule:
    def rule(call: Call) -> tuple[str, str]:
        x = call[0]
        template = floating if x.is_float else integer
        return x.dtype, template.format(x=x.code, s="" if x.dtype == "float64" else "f")

    return rule


def _modulo(call: Call) -> tuple[str, str]:
    a, b = call[0], call[1]
    if call.attribute("fmod", 0):
        suffix = "" if a.dtype == "float64" else "f"
        return a.dtype, f"fmod{suffix}({a.code}, {b.code})" if a.is_float else f"{a.code} % {b.code}"
    return a.dtype, f"floor_modulo({a.code}, {b.code})"


def _power(call: Call) -> tuple[str, str]:
    x, y = call[0], call[1]
    if not x.is_float:
        if y.is_float:
            return x.dtype, f"({COMPUTE_TYPES[x.dtype]})pow((double){x.code}, (double){y.code})"
        return x.dtype, f"integer_power((i64){x.code}, (i64){y.code})"
    suffix, one = ("", "1.0") if x.dtype == "float64" else ("f", "1.0f")
    special = {
        1: x.code,
        2: f"{x.code} * {x.code}",
        3: f"{x.code} * {x.code} * {x.code}",
        0.5: f"sqrt{suffix}({x.code})",
        -0.5: f"{one} / sqrt{suffix}({x.code})",
        -1: f"{one} / {x.code}",
    }
    if y.value is not None and y.value in special:
        return x.dtype, special[y.value]
    return x.dtype, f"pow{suffix}({x.code}, ({COMPUTE_TYPES[x.dtype]}){y.code})"


def _shift(call: Call) -> tuple[str, str]:
    x, bits = call[0], call[1].code
    if x.dtype not in INT_LIMITS:
        raise UnsupportedError(f"can't shift {x.dtype}")
    width = INT_LIMITS[x.dtype]
    if call.attribute("direction", "LEFT") == "LEFT":
        return x.dtype, f"{bits} < {width} ? {x.code} << {bits} : 0"
    beyond = "0" if x.dtype.startswith("u") else f"{x.code} < 0 ? -1 : 0"
    return x.dtype, f"{bits} < {width} ? {x.code} >> {bits} : ({beyond})"


def _is_infinite(call: Call) -> tuple[str, str]:
    infinity = literal(math.inf, call[0].dtype)
    tests = []
    if call.attribute("detect_positive", 1):
        tests.append(f"{call[0].code} == {infinity}")
    if call.attribute("detect_negative", 1):
        tests.append(f"{call[0].code} == -{infinity}")
    return "bool", " || ".join(tests) or "false"


def _clip(call: Call) -> tuple[str, str]:
    x = call[0]
    bounds: list[str | None] = []
    for i, name in ((1, "min"), (2, "max")):
        operand, attribute = call.get(i), call.attribute(name, None)
        value = None if attribute is None else literal(attribute, x.dtype)
        bounds.append(operand.code if operand is not None else value)
    low, high = bounds
    code = x.code if low is None else f"not_below({x.code}, ({COMPUTE_TYPES[x.dtype]}){low})"
    return x.dtype, code if high is None else f"not_above({code}, ({COMPUTE_TYPES[x.dtype]}){high})"


def _gelu(call: Call) -> tuple[str, str]:
    x = call[0]
    if not x.is_float:
        raise UnsupportedError(f"{call.op} needs a floating-point type, not {x.dtype}")
    tanh = call.attribute("approximate", "none") == "tanh"
    if x.dtype != "float64":
        return x.dtype, f"{'gelu_tanh' if tanh else _GELU[x.dtype]}({x.code})"
    if tanh:
        inner = "{x} * ({a} + {b} * {x} * {x})"
        rule = _formula("{x} / ({one} + exp(-2 * " + inner + "))", one=1.0, a=_GELU_A, b=_GELU_A * 0.044715)
    else:
        # erfc keeps the small values of the negative tail, where 1 + erf cancels
        rule = _formula("{half} * {x} * erfc({x} * {a})", half=0.5, a=-math.sqrt(0.5))
    return rule(Call(call.op, call.version, {}, call.operands))


_GELU = {"float16": "gelu_f16", "bfloat16": "gelu_bf16", "float32": "gelu_f32"}
_GELU_A = math.sqrt(2 / math.pi)


def _divide(call: Call) -> tuple[str, str]:
    x, y = call[0], call[1]
    if x.dtype not in HALF_TYPES:
        return x.dtype, f"{x.code} / {y.code}"
    if y.value and _SAFE_DIVISOR < abs(y.value) < 1 / _SAFE_DIVISOR:
        return x.dtype, f"{x.code} * {literal(1 / y.value, y.dtype)}"
    return x.dtype, f"fast_quotient({x.code}, {y.code})"


_CONVERSIONS = ("Cast", "CastLike", "DequantizeLinear")
_SAFE_DIVISOR = 2.0**-100
"""A constant between this and its reciprocal can be inverted: neither is near the ends of float."""


def _cast_to(x: Operand, dtype: str) -> tuple[str, str]:
    if dtype not in C_TYPES or dtype in QUARTER_TYPES:
        raise UnsupportedError(f"cast to {dtype} is not supported")
    if dtype == "bool":
        return dtype, f"{x.code} != 0"
    if dtype in HALF_TYPES:
        if x.dtype == dtype:
            return dtype, x.code
        source = f"(double){x.code}" if x.dtype == "float64" else f"(float){x.code}"
        return dtype, f"to_float(narrow<{C_TYPES[dtype]}>({source}))"
    if x.is_float and dtype.startswith("uint"):
        return dtype, f"to_unsigned<{C_TYPES[dtype]}>({x.code})"
    return dtype, f"({COMPUTE_TYPES[dtype]}){x.code}"


def _cast(call: Call) -> tuple[str, str]:
    to = call.attribute("to", 0)
    if to not in ONNX_TYPES:
        raise UnsupportedError(f"cast to ONNX element type {to} is not supported")
    return _cast_to(call[0], ONNX_TYPES[to])


def _dropout(call: Call) -> tuple[str, str]:
    training = call.get(2)
    if training is not None and training.value is not False:
        raise UnsupportedError("training mode is not known to be off")
    return call[0].dtype, call[0].code


def _quantize(call: Call) -> tuple[str, str]:
    if call.attribute("block_size", 0):
        raise UnsupportedError("blocked quantisation is not supported")
    x, scale, zero = call[0], call[1], call.get(2)
    output = ONNX_TYPES.get(call.attribute("output_dtype", 0))
    dtype = zero.dtype if zero is not None else output or "uint8"
    if dtype not in ("int8", "uint8", "int16", "uint16"):
        raise UnsupportedError(f"quantisation to {dtype} is not supported")
    bits = INT_LIMITS[dtype]
    low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shift = "0" if zero is None else f"(i32){zero.code}"
    return dtype, f"quantize((float){x.code} / (float){scale.code}, {shift}, {low}, {high})"


def _dequantize(call: Call) -> tuple[str, str]:
    if call.attribute("block_size", 0):
        raise UnsupportedError("blocked quantisation is not supported")
    x, scale, zero = call[0], call[1], call.get(2)
    if x.is_float and x.dtype not in QUARTER_TYPES:
        raise UnsupportedError(f"dequantisation of {x.dtype} is not supported")
    wide = "float" if x.is_float else "i32"
    centred = f"({wide}){x.code}" if zero is None else f"(({wide}){x.code} - ({wide}){zero.code})"
    output = ONNX_TYPES.get(call.attribute("output_dtype", 0)) or scale.dtype
    return output, f"({COMPUTE_TYPES[output]}){centred} * {scale.code}"


def _where(call: Call) -> tuple[str, str]:
    return call[1].dtype, f"{call[0].code} ? {call[1].code} : {call[2].code}"


def _identity(call: Call) -> tuple[str, str]:
    return call[0].dtype, call[0].code


def _math(name: str) -> Rule:
    return _formula(name + "{s}({x})", short=_SHORT.get(name))


_SHORT = {"erf": "fast_erf({x})", "tanh": "fast_tanh({x})", "sqrt": "fast_root({x})"}


_FUNCTIONS = (
    *("Exp", "Log", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh"),
    *("Asinh", "Acosh", "Atanh", "Erf", "Sqrt"),
)

RULES: dict[str, Rule] = {
    **{name: _operator(s) for name, s in {"Add": "+", "Sub": "-", "Mul": "*"}.items()},
    **{name: _operator(s) for name, s in {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}.items()},
    **{name: _comparison(s) for name, s in {"Equal": "==", "Greater": ">", "GreaterOrEqual": ">="}.items()},
    **{name: _comparison(s) for name, s in {"Less": "<", "LessOrEqual": "<="}.items()},
    **{name: _comparison(s) for name, s in {"And": "&&", "Or": "||", "Xor": "!="}.items()},
    **{name: _math(name.lower()) for name in _FUNCTIONS},
    "Div": _divide,
    "Sum": _fold("{a} + {b}"),
    "Min": _fold("smaller({a}, {b})"),
    "Max": _fold("larger({a}, {b})"),
    "Mean": _mean,
    "Pow": _power,
    "Mod": _modulo,
    "BitShift": _shift,
    "BitwiseNot": lambda call: (call[0].dtype, f"~{call[0].code}"),
    "Not": lambda call: ("bool", f"!{call[0].code}"),
    "Where": _where,
    "Neg": _formula("-{x}", floats_only=False),
    "Abs": _signed("fabs{s}({x})", "{x} < 0 ? -{x} : {x}"),
    "Sign": _signed("{x} > 0 ? 1 : {x} < 0 ? -1 : {x}", "{x} > 0 ? 1 : {x} < 0 ? -1 : 0"),
    "Floor": _signed("floor{s}({x})", "{x}"),
    "Ceil": _signed("ceil{s}({x})", "{x}"),
    "Round": _signed("rint{s}({x})", "{x}"),
    "Reciprocal": _formula("{one} / {x}", short="fast_quotient({one}, {x})", one=1.0),
    "IsNaN": lambda call: ("bool", f"{call[0].code} != {call[0].code}"),
    "IsInf": _is_infinite,
    "Relu": _formula("{x} < 0 ? 0 : {x}", floats_only=False),
    "LeakyRelu": _formula("{x} < 0 ? {alpha} * {x} : {x}", alpha=0.01),
    "PRelu": _formula("{x} < 0 ? {y} * {x} : {x}", floats_only=False),
    "Elu": _formula(
        "{x} < 0 ? {alpha} * expm1{s}({x}) : {x}",
        short="{x} < 0 ? {alpha} * fast_expm1({x}) : {x}",
        alpha=1.0,
    ),
    "Celu": _formula(
        "{x} < 0 ? {alpha} * expm1{s}({x} / {alpha}) : {x}",
        short="{x} < 0 ? {alpha} * fast_expm1({x} * ({one} / {alpha})) : {x}",
        alpha=1.0,
        one=1.0,
    ),
    "Selu": _formula(
        "{gamma} * ({x} > 0 ? {x} : {alpha} * expm1{s}({x}))",
        short="{gamma} * ({x} > 0 ? {x} : {alpha} * fast_expm1({x}))",
        alpha=1.67326319217681884765625,
        gamma=1.05070102214813232421875,
    ),
    "Gelu": _gelu,
    "HardSigmoid": _formula(
        "not_above(not_below({alpha} * {x} + {beta}, {zero}), {one})", alpha=0.2, beta=0.5, zero=0.0, one=1.0
    ),
    "HardSwish": _formula(
        "{x} * not_above(not_below({x} * {a} + {b}, {zero}), {one})", a=1 / 6, b=0.5, zero=0.0, one=1.0
    ),
    "Mish": _formula("{x} * tanh{s}(softplus({x}))", short="fast_mish({x})"),
    "Sigmoid": _formula("{one} / ({one} + exp{s}(-{x}))", short="fast_sigmoid({x})", one=1.0),
    "Softplus": _formula("softplus({x})", short="fast_softplus({x})"),
    "Softsign": _formula(
        "{x} / ({one} + fabs{s}({x}))", short="fast_quotient({x}, {one} + fabsf({x}))", one=1.0
    ),
    "Swish": _formula(
        "{x} / ({one} + exp{s}(-{alpha} * {x}))",
        short="{x} * fast_sigmoid({alpha} * {x})",
        alpha=1.0,
        one=1.0,
    ),
    "ThresholdedRelu": _formula("{x} > {alpha} ? {x} : 0", alpha=1.0),
    "Shrink": _formula(
        "{x} < -{lambd} ? {x} + {bias} : {x} > {lambd} ? {x} - {bias} : 0", lambd=0.5, bias=0.0
    ),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda call: _cast_to(call[0], call[1].dtype),
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Identity": _identity,
    "Dropout": _dropout,
}
"""Operator type → rule."""
