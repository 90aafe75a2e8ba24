"""What PTX arithmetic instructions compute, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_SIZES = (1, 2, 4, 8)
TYPES: dict[str, np.dtype[Any]] = {
    **{f"{letter}{8 * n}": np.dtype(f"{kind}{n}") for letter, kind in ("uu", "si", "bu") for n in _SIZES},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "pred": np.dtype(bool),
}  # fmt: skip


class PtxError(Exception):
    """The kernel breaks a rule of the machine, or uses an instruction that the interpreter doesn't know."""


def operate(
    parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array], carry: Array, lanes: Any
) -> Array:
    """Return the result of an arithmetic instruction.

    ``get(operand, type)`` reads an operand of the running ``lanes``; ``carry`` holds all carry flags.
    """
    name, kind = parts[0], parts[-1]
    if "cc" in parts or name in ("addc", "subc", "madc"):
        return _with_carry(parts, [get(o, kind) for o in operands[1:]], carry, lanes)
    if "wide" in parts:
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        a, b = (get(o, kind).astype(TYPES[wide]) for o in operands[1:3])
        return a * b if name == "mul" else a * b + get(operands[3], wide)
    if name in ("shl", "shr"):
        return _shift(name, get(operands[1], kind), get(operands[2], "u32"))
    if name in _MIXED:
        return _MIXED[name](parts, operands, get)
    values = [get(o, kind) for o in operands[1:]]
    if TYPES[kind].kind == "f":
        return _floating(name, parts, values)
    if name not in _INTEGER:
        raise PtxError(f"instruction {'.'.join(parts)} is not known")
    return np.asarray(_INTEGER[name](parts, *values)).astype(
        TYPES[kind] if name not in ("clz", "popc", "bfind") else np.uint32
    )


def convert(parts: Sequence[str], values: Sequence[Array]) -> Array:
    """Return ``cvt`` of ``values``: rounding, saturation and the 16-bit floats."""
    target, source = parts[-2], parts[-1]
    x = values[0]
    if target == "tf32":  # to nearest, ties away from zero, 10 bits of mantissa
        return (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    if target == "bf16":
        return x.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    if source == "bf16":
        return x.astype(np.float32).astype(TYPES[target])
    if target in ("bf16x2", "f16x2"):
        half: Any = ml_dtypes.bfloat16 if target == "bf16x2" else np.float16
        high, low = (v.astype(half).view(np.uint16).astype(np.uint32) for v in values)
        return high << 16 | low
    dtype = TYPES[target]
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for part in parts:
        if part in rounding and x.dtype.kind == "f":
            x = rounding[part](x)
    if "sat" in parts and dtype.kind == "f":
        x = np.nan_to_num(np.clip(x, 0, 1), nan=0.0)
    if x.dtype.kind == "f" and dtype.kind in "iu":
        return _saturate(x, dtype)
    if (
        dtype == np.float32
        and x.dtype.kind in "fiu"
        and x.itemsize == 8
        and ("rz" in parts or "rm" in parts or "rp" in parts)
    ):
        return _rounded(x.astype(np.float64), next(p for p in parts if p in ("rz", "rm", "rp")))
    return x.astype(dtype)


def _saturate(x: Array, dtype: np.dtype[Any]) -> Array:
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    result = np.where(x >= high, limits.max, np.where(x <= low, limits.min, 0)).astype(dtype)
    inside = (x > low) & (x < high)
    result[inside] = x[inside].astype(dtype)
    if dtype.itemsize == 8:
        result[np.isnan(x)] = np.array([1 << 63], np.uint64).view(dtype)[0]
    return result


def _rounded(exact: Array, mode: str) -> Array:
    """Round float64 values to float32 toward zero, down or up."""
    near = exact.astype(np.float32)
    wrong_high = near.astype(np.float64) > exact
    wrong_low = near.astype(np.float64) < exact
    down = np.nextafter(near, np.float32(-np.inf))
    up = np.nextafter(near, np.float32(np.inf))
    if mode == "rm":
        return np.where(wrong_high, down, near)
    if mode == "rp":
        return np.where(wrong_low, up, near)
    return np.where(wrong_high & (exact > 0), down, np.where(wrong_low & (exact < 0), up, near))


def _floating(name: str, parts: Sequence[str], values: list[Array]) -> Array:
    dtype = values[0].dtype
    mode = next((p for p in parts if p in ("rz", "rm", "rp")), None)
    wide: Any = np.float64 if dtype.itemsize < 8 else np.longdouble
    if name in ("add", "sub", "mul", "fma", "mad"):
        x = [v.astype(wide) for v in values]
        exact = {"add": lambda: x[0] + x[1], "sub": lambda: x[0] - x[1], "mul": lambda: x[0] * x[1]}.get(
            name, lambda: x[0] * x[1] + x[2]
        )()
        result = _rounded(exact, mode) if mode and dtype == np.float32 else exact.astype(dtype)
    elif name == "div":
        result = (values[0].astype(wide) / values[1].astype(wide)).astype(dtype)
    elif name in ("min", "max"):
        pick = {
            ("min", False): np.fmin,
            ("max", False): np.fmax,
            ("min", True): np.minimum,
            ("max", True): np.maximum,
        }
        result = pick[name, "NaN" in parts](values[0], values[1])
    elif name == "copysign":
        result = np.copysign(values[1], values[0])
    elif name in _UNARY:
        exact = values[0] if name in ("neg", "abs") else values[0].astype(wide)
        result = _UNARY[name](exact).astype(dtype)
    else:
        raise PtxError(f"instruction {'.'.join(parts)} is not known")
    return np.nan_to_num(np.clip(result, 0, 1), nan=0.0).astype(dtype) if "sat" in parts else result


_UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def _shift(name: str, x: Array, bits: Array) -> Array:
    width = 8 * x.itemsize
    inside = bits < width
    amount = np.minimum(bits, width - 1).astype(x.dtype)
    if name == "shl":
        return np.where(inside, x << amount, np.zeros_like(x))
    return np.where(
        inside,
        x >> amount,
        np.where(x < 0, -1, 0).astype(x.dtype) if x.dtype.kind == "i" else np.zeros_like(x),
    )


def _with_carry(parts: Sequence[str], values: list[Array], carry: Array, lanes: Any) -> Array:
    """``add``, ``sub`` and ``mad`` of 32 bits that set or use the carry flag, in 64-bit arithmetic."""
    x = [v.view(np.uint32).astype(np.uint64) for v in values]
    incoming = carry[lanes] if parts[0] in ("addc", "subc", "madc") else np.uint64(0)
    if parts[0].startswith("mad"):
        product = x[0] * x[1]
        product = product >> np.uint64(32) if "hi" in parts else product & np.uint64(0xFFFFFFFF)
        total = product + x[2] + incoming
    elif parts[0].startswith("sub"):
        total = x[0] - x[1] - incoming
    else:
        total = x[0] + x[1] + incoming
    if "cc" in parts:
        carry[lanes] = total >> np.uint64(32) & np.uint64(1)
    return (total & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _multiply(parts: Sequence[str], a: Array, b: Array) -> Array:
    if "hi" not in parts:
        return a * b
    if a.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        return (a.astype(wide) * b.astype(wide) >> (8 * a.itemsize)).astype(a.dtype)
    if a.dtype.kind == "i":
        high = _high64(a.view(np.uint64), b.view(np.uint64))
        high = high - np.where(a < 0, b.view(np.uint64), 0) - np.where(b < 0, a.view(np.uint64), 0)
        return high.astype(np.uint64).view(np.int64)
    return _high64(a, b)


def _high64(a: Array, b: Array) -> Array:
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    low = (middle & mask) + a0 * b1
    return a1 * b1 + (middle >> half) + (low >> half)


def _divide(a: Array, b: Array) -> Array:
    safe = np.where(b == 0, 1, b).astype(a.dtype)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, -1 if a.dtype.kind == "i" else np.iinfo(a.dtype).max, quotient).astype(a.dtype)


def _leading_zeros(x: Array) -> Array:
    count = np.full(x.shape, 8 * x.itemsize, np.uint32)
    value = x.astype(np.uint64)
    while value.any():
        count = np.where(value != 0, count - 1, count)
        value = value >> np.uint64(1)
    return count


def _ones(x: Array) -> Array:
    return np.bitwise_count(x)


_INTEGER: dict[str, Callable[..., Array]] = {
    "add": lambda p, a, b: a + b,
    "sub": lambda p, a, b: a - b,
    "mul": _multiply,
    "mad": lambda p, a, b, c: _multiply(p, a, b) + c,
    "div": lambda p, a, b: _divide(a, b),
    "rem": lambda p, a, b: a - _divide(a, b) * b,
    "min": lambda p, a, b: np.minimum(a, b),
    "max": lambda p, a, b: np.maximum(a, b),
    "abs": lambda p, a: np.abs(a),
    "neg": lambda p, a: -a,
    "not": lambda p, a: ~a,
    "and": lambda p, a, b: a & b,
    "or": lambda p, a, b: a | b,
    "xor": lambda p, a, b: a ^ b,
    "cnot": lambda p, a: a == 0,
    "clz": lambda p, a: _leading_zeros(a),
    "popc": lambda p, a: _ones(a),
}


def _logic3(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    a, b, c = (get(o, "b32") for o in operands[1:4])
    table = int(operands[4], 0)
    result = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


def _extract(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    """``bfe``: a field of bits, sign-extended for signed types."""
    x = get(operands[1], parts[-1])
    start, length = (get(o, "u32").astype(np.int64) & 255 for o in operands[2:4])
    width = 8 * x.itemsize
    left = np.clip(width - start - length, 0, width - 1).astype(x.dtype)
    right = np.clip(width - length, 0, width - 1).astype(x.dtype)
    return np.where(length == 0, 0, x << left >> right).astype(x.dtype)


def _insert(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    a, b = (get(o, parts[-1]) for o in operands[1:3])
    start, length = (get(o, "u32").astype(a.dtype) for o in operands[3:5])
    one = a.dtype.type(1)
    mask = ((one << length) - one) << start
    return (b & ~mask) | (a << start & mask)


def _permute(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    """``prmt`` in its default mode."""
    a, b, selector = (get(o, "b32").astype(np.uint64) for o in operands[1:4])
    both = a | b << np.uint64(32)
    result = np.zeros_like(both)
    for k in range(4):
        choice = selector >> np.uint64(4 * k) & np.uint64(15)
        byte = both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        byte = np.where(choice & np.uint64(8), np.where(byte & np.uint64(128), 255, 0), byte).astype(
            np.uint64
        )
        result |= byte << np.uint64(8 * k)
    return result.astype(np.uint32)


def _funnel(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    low, high = (get(o, "b32").astype(np.uint64) for o in operands[1:3])
    bits = get(operands[3], "u32").astype(np.uint64)
    bits = bits & np.uint64(31) if "wrap" in parts else np.minimum(bits, np.uint64(32))
    both = high << np.uint64(32) | low
    shifted = both >> bits if "r" in parts else both << bits >> np.uint64(32)
    return (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _dot2(parts: Sequence[str], operands: Sequence[str], get: Callable[[str, str], Array]) -> Array:
    """``dp2a`` of unsigned numbers: two 16-bit parts of a times two bytes of b, added to c."""
    if tuple(parts[-2:]) != ("u32", "u32"):
        raise PtxError(f"instruction {'.'.join(parts)} is not known")
    a, b, c = (get(o, "u32") for o in operands[1:4])
    shift = 16 if "hi" in parts else 0
    low, high = b >> np.uint32(shift) & np.uint32(255), b >> np.uint32(shift + 8) & np.uint32(255)
    return c + (a & np.uint32(0xFFFF)) * low + (a >> np.uint32(16)) * high


_MIXED: dict[str, Callable[[Sequence[str], Sequence[str], Callable[[str, str], Array]], Array]] = {
    "lop3": _logic3,
    "bfe": _extract,
    "bfi": _insert,
    "prmt": _permute,
    "shf": _funnel,
    "dp2a": _dot2,
}
