"""The one instruction of wgmma that a kernel uses, as a C++ function: its list of operands depends on its width."""

from __future__ import annotations

KINDS = {"float16": "f16", "bfloat16": "bf16"}
"""Names of the element types in the instruction."""
INTEGERS = {"int8": "s8", "uint8": "u8"}
KINDS_8BIT = INTEGERS | {"float8e4m3fn": "e4m3", "float8e5m2": "e5m2"}
"""The same of 8-bit elements."""


def multiply_text(columns: int, dtype: str, trans_a: bool, trans_b: bool) -> str:
    """Return ``multiply(sums, a, b, add)``: 64 rows times ``columns`` columns, 16 steps of k.

    Parameters
    ----------
    columns
        A multiple of 8 up to 256; a thread holds ``columns / 2`` sums.
    dtype
        Element type of both operands.
    trans_a, trans_b
        Whether m, or n, is what lies contiguous in shared memory, instead of k (the instruction's major-ness).
    """
    kind, count = KINDS[dtype], columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void multiply(float (&sums)[{count}], u64 a, u64 b, u32 add) {{
    asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{sums}}}, %{count}, %{count + 1},"
        " p, 1, 1, {int(trans_a)}, {int(trans_b)};}}" : {operands} : "l"(a), "l"(b), "r"(add));
}}
"""


def multiply_8bit_text(columns: int, type_a: str, type_b: str) -> str:
    """Return ``multiply(sums, a, b, add)``: 64 rows times ``columns`` columns of 8-bit elements, 32 steps of k.

    Both operands are K-major, which is all that the instruction takes. Sums are int32 of integers and float of fp8.

    Parameters
    ----------
    columns
        A multiple of 16 from 32 to 256; a thread holds ``columns / 2`` sums.
    type_a, type_b
        Element types of the operands: both integers or both fp8, not necessarily the same.
    """
    count, is_integer = columns // 2, type_a in INTEGERS
    sums = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+{"r" if is_integer else "f"}"(sums[{i}])' for i in range(count))
    kind = f"{'s32' if is_integer else 'f32'}.{KINDS_8BIT[type_a]}.{KINDS_8BIT[type_b]}"
    scales = "" if is_integer else ", 1, 1"
    return f"""
__device__ __forceinline__ void multiply(Sum (&sums)[{count}], u64 a, u64 b, u32 add) {{
    asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{columns}k32.{kind} {{{sums}}}, %{count}, %{count + 1},"
        " p{scales};}}" : {operands} : "l"(a), "l"(b), "r"(add));
}}
"""


def multiply_held_text(columns: int, dtype: str, trans_b: bool) -> str:
    """Return ``multiply_held(sums, a, b, add)``: as ``multiply``, with the left operand in registers.

    Parameters
    ----------
    columns
        As of ``multiply_text``, and so ``dtype`` and ``trans_b``; a thread holds 8 elements of the left operand.
    """
    kind, count = KINDS[dtype], columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    left = ", ".join(f"%{count + i}" for i in range(4))
    return f"""
__device__ __forceinline__ void multiply_held(float (&sums)[{count}], const u32 (&a)[4], u64 b, u32 add) {{
    asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 5}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{sums}}}, {{{left}}}, %{count + 4},"
        " p, 1, 1, {int(trans_b)};}}" : {operands} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}}
"""
