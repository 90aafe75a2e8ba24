"""The PTX interpreter's instructions of tensor cores: ``mma.sync``, ``ldmatrix`` and ``cp.async``.

The lanes' places within the fragments are those of the PTX manual's figures for m16n8k8 and m16n8k16. An
asynchronous copy arrives at once, so a wait that comes too late for it is not found.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from ptx_arithmetic import PtxError

Array = np.ndarray[Any, np.dtype[Any]]
_LANE = np.arange(32)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4


def _names(operand: str) -> list[str]:
    return [r.strip() for r in operand.strip("<>").split(",")]


def _warps(run: Any, lanes: Any, what: str) -> Array:
    """Return the running threads as [warps, 32]."""
    number = np.arange(run.count)[lanes]
    if number.size % 32 or (run.laneid[number].reshape(-1, 32) != _LANE).any():
        raise PtxError(f"{what}: needs whole warps")
    return number.reshape(-1, 32)


def _fragment(run: Any, operand: str, warps: Array) -> Array:
    """Return the words of a fragment, [warps, 32, registers]."""
    words = [run.get(r, "b32", warps.reshape(-1)).view(np.uint32) for r in _names(operand)]
    return np.stack(words, -1).reshape(len(warps), 32, -1)


def _values(words: Array, kind: str) -> Array:
    """Return the elements of words, [..., elements of a word], in float64."""
    flat = np.ascontiguousarray(words)[..., None]
    if kind == "tf32":
        # the hardware drops what tf32 doesn't hold
        return (flat & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return flat.view(ml_dtypes.bfloat16 if kind == "bf16" else np.float16).astype(np.float64)


def _mma(run: Any, i: Any, lanes: Any) -> None:
    """``mma.sync`` m16n8k16 of halves and m16n8k8 of tf32: one layout of 32-bit words."""
    shape, kind = i.parts[3], i.parts[7]
    if (shape, kind) not in (("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "tf32")):
        raise PtxError(f"{i.text}: not known")
    warps = _warps(run, lanes, i.text)
    a, b, c = (_fragment(run, operand, warps) for operand in i.operands[1:4])
    per_word = 1 if kind == "tf32" else 2
    left = np.zeros((len(warps), 16, 8, per_word))
    right = np.zeros((len(warps), 8, 8, per_word))  # [word of k, column]
    for r in range(4):
        left[:, _GROUP + 8 * (r % 2), _IN_GROUP + 4 * (r // 2)] = _values(a[:, :, r], kind)
    for r in range(2):
        right[:, _IN_GROUP + 4 * r, _GROUP] = _values(b[:, :, r], kind)
    product = np.einsum("wmke,wkne->wmn", left, right)
    for r, name in enumerate(_names(i.operands[0])):
        place = (slice(None), _GROUP + 8 * (r // 2), 2 * _IN_GROUP + r % 2)
        total = product[place] + c[:, :, r].view(np.float32)
        run.put(name, total.astype(np.float32).reshape(-1), warps.reshape(-1))


def _ldmatrix(run: Any, i: Any, lanes: Any) -> None:
    """``ldmatrix`` x4: eight lanes name the 16-byte rows of each 8 x 8 matrix of halves."""
    warps = _warps(run, lanes, i.text)
    number = warps.reshape(-1)
    names = _names(i.operands[0])
    if "x4" not in i.parts or len(names) != 4:
        raise PtxError(f"{i.text}: not known")
    address = run.address(i.operands[1], number)
    place = run.shared.check(address, 16, run.block[number], run.warp[number], False, i.text)
    rows = run.shared.data[place[:, None] + np.arange(16)].view(np.uint16).reshape(len(warps), 4, 8, 8)
    if "trans" in i.parts:
        rows = rows.swapaxes(-1, -2)
    words = np.ascontiguousarray(rows).view(np.uint32)  # [warps, matrix, row, word]
    for m, name in enumerate(names):
        run.put(name, np.ascontiguousarray(words[:, m, _GROUP, _IN_GROUP]).reshape(-1), number)


def _copy(run: Any, i: Any, lanes: Any) -> None:
    """``cp.async``: copies at once, with zeros behind the bytes that are read; waits have nothing to do."""
    if "commit_group" in i.parts or "wait_group" in i.parts or "wait_all" in i.parts:
        return
    number = np.arange(run.count)[lanes]
    nbytes = int(i.operands[2])
    read = run.get(i.operands[3], "u32", number) if len(i.operands) > 3 else np.full(number.size, nbytes)
    if nbytes not in (4, 8, 16) or not np.isin(read, (0, nbytes)).all():
        raise PtxError(f"{i.text}: size not known")
    target = run.address(i.operands[0], number)
    to = run.shared.check(target, nbytes, run.block[number], run.warp[number], True, i.text)
    data = np.zeros((number.size, nbytes), np.uint8)
    full = read > 0
    if full.any():
        source = run.address(i.operands[1], number)[full]
        memory = run.kernel.memory
        data[full] = memory.data[memory.check(source, nbytes, i.text)[:, None] + np.arange(nbytes)]
    run.shared.data[to[:, None] + np.arange(nbytes)] = data


STEPS = {"mma": _mma, "ldmatrix": _ldmatrix, "cp": _copy}
