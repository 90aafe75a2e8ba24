"""Attention as strided heads of queries, keys and values with a mask, or the reason why kernels can't make it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, Shape, broadcast_strides, ceil_div
from tactician.signature import OpSignature, TensorType

ATTENTION_OP = "ai.onnx::Attention"

ELEMENTS = {"float16": "f16", "bfloat16": "bf16"}
"""C types of the element types that are multiplied."""

MASKS = {"bool": "u8", "float16": "f16", "bfloat16": "bf16", "float32": "float"}
"""C types of masks: of truth (attend where true), or of numbers that are added to the scores."""

WIDEST_HEAD = 256
VECTOR = 8
"""Elements of 16 bytes: what is moved at once, so heads must be whole multiples of it."""

_DOUBLE = 11
_KNOWN = ("scale", "is_causal", "softcap", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode")


@dataclass(frozen=True)
class Walk:
    """Elements from one batch, head and row of a tensor to the next; those of a row are neighbours."""

    batch: int
    head: int
    row: int


@dataclass(frozen=True)
class Mask:
    """A mask's element type, and its elements from one batch, head, query and key to the next: 0 where it repeats."""

    dtype: str
    batch: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class AttentionProblem:
    """``y[b, h] = softmax(cap(scale * q[b, h] @ k[b, g].T) + mask[b, h]) @ v[b, g]`` for ``g = h * kv_heads // heads``.

    ``q`` is [queries, head_size], ``k`` [keys, head_size], ``v`` [keys, value_size]; keys beyond ``keys`` that a
    mask does not reach are left out. ``cap(x)`` is ``softcap * tanh(x / softcap)``, or x where softcap is 0.
    """

    dtype: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int
    scale: float
    q: Walk
    k: Walk
    v: Walk
    y: Walk
    causal: bool = False
    softcap: float = 0.0
    mask: Mask | None = None
    has_lengths: bool = False
    """Whether each batch has its own number of keys, in input 6."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no result to write."""
        return self.batch * self.heads * self.queries == 0

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def mask_vector(self) -> int:
        """Neighbouring mask elements that can be loaded at once: 2, or 1 where rows start at odd places."""
        m = self.mask
        return 1 if m is None or m.key == 0 or (m.batch | m.head | m.query | self.keys) % 2 else 2

    def tiles(self, block: int, packed: int) -> int:
        """Return the blocks of ``block`` rows, where the queries of ``packed`` heads are one row after the other."""
        return ceil_div(self.queries * packed, block) * self.batch * (self.heads // packed)

    def macros(self) -> dict[str, int | str]:
        """Return the macros that kernels of this family share."""
        macros: dict[str, int | str] = {
            "HEADS": f"{self.heads}u",
            "KV_GROUP": f"{self.group}u",
            "QUERIES": f"{self.queries}u",
            "KEYS": f"{self.keys}u",
            "HEAD_SIZE": f"{self.head_size}u",
            "VALUE_SIZE": f"{self.value_size}u",
            # hexadecimal: every bit arrives
            "SCALE": self.scale.hex(),
            "SOFTCAP": self.softcap.hex(),
            "HAS_SOFTCAP": int(self.softcap > 0),
            "CAUSAL": int(self.causal),
            "HAS_LENGTHS": int(self.has_lengths),
        }
        for name, walk in (("Q", self.q), ("K", self.k), ("V", self.v), ("Y", self.y)):
            macros |= {f"{name}_BATCH": f"{walk.batch}ull", f"{name}_HEAD": f"{walk.head}u"}
            macros[f"{name}_ROW"] = f"{walk.row}u"
        mask = self.mask or Mask("bool", 0, 0, 0, 0)
        return macros | {
            "HAS_MASK": int(self.mask is not None),
            "MASK_ADDS": int(mask.dtype != "bool"),
            "MASK_BATCH": f"{mask.batch}ull",
            "MASK_HEAD": f"{mask.head}u",
            "MASK_QUERY": f"{mask.query}u",
            "MASK_KEY": f"{mask.key}u",
            "MASK_VECTOR": self.mask_vector,
        }


def attention_problem(signature: OpSignature) -> AttentionProblem | str:
    """Return the attention that ``signature`` asks for, or why kernels can't make it."""
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None or signature.op != ATTENTION_OP:
        return f"{signature.op_type} is no attention"
    reason = _unsupported(signature)
    if reason is not None:
        return reason
    q, k, v = (signature.input(i) for i in range(3))
    if q is None or k is None or v is None:
        return "queries, keys or values are absent"
    if q.dtype not in ELEMENTS or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"element types {q.dtype}, {k.dtype} and {v.dtype} are not supported"
    return _problem(signature, q, k, v)


def _unsupported(signature: OpSignature) -> str | None:
    if signature.input(4) is not None or signature.input(5) is not None:
        return "a cache of past keys and values is not implemented"
    if any(t is not None for t in signature.outputs[1:]):
        return "present keys and values and the scores are not computed"
    if signature.attribute("softmax_precision") == _DOUBLE:
        return "the softmax is computed in float32, not in float64"
    for name in ("left_window_size", "right_window_size"):
        if signature.attribute(name, -1) not in (None, -1):
            return f"attribute {name}={signature.attribute(name)} is not implemented"
    known = (*_KNOWN, "softmax_precision", "left_window_size", "right_window_size")
    unknown = [name for name, _ in signature.attributes if name not in known]
    return f"attribute {unknown[0]} is not known" if unknown else None


def _problem(signature: OpSignature, q: TensorType, k: TensorType, v: TensorType) -> AttentionProblem | str:
    shapes = f"shapes {q.dims}, {k.dims} and {v.dims}"
    heads, kv_heads = signature.attribute("q_num_heads"), signature.attribute("kv_num_heads")
    split = [_split(t.dims, n) for t, n in ((q, heads), (k, kv_heads), (v, kv_heads))]
    if any(s is None for s in split):
        return f"{shapes} are not whole heads of 3 or 4 dimensions"
    (batch, heads, queries, size), (_, kv_heads, keys, _), (*_, value_size) = split  # type: ignore[misc]  # none is None
    if split[1] != (batch, kv_heads, keys, size) or split[2] != (batch, kv_heads, keys, value_size):
        return f"{shapes} do not fit together"
    if kv_heads == 0 or heads % kv_heads:
        return f"{heads} heads of queries do not share {kv_heads} heads of keys evenly"
    for number in (size, value_size):
        if number % VECTOR or not VECTOR <= number <= WIDEST_HEAD:
            return f"heads of {size} and {value_size} elements; multiples of {VECTOR} up to {WIDEST_HEAD} are covered"
    if keys == 0:
        return "there are no keys"
    scale = signature.attribute("scale")
    scale = 1 / math.sqrt(size) if scale is None else float(np.float32(scale))
    softcap = float(np.float32(signature.attribute("softcap", 0.0) or 0.0))
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(softcap)):
        return f"scale {scale} with softcap {softcap} is not implemented"
    lengths = signature.input(6)
    if lengths is not None and (lengths.dtype != "int64" or lengths.dims != (batch,)):
        return f"nonpad_kv_seqlen is {lengths}, not one int64 for each batch"
    causal = bool(signature.attribute("is_causal", 0))
    mask = _mask(signature.input(3), (batch, heads, queries, keys), causal)
    if isinstance(mask, str):
        return mask
    reached = keys if mask is None or mask.key == 0 else min(keys, signature.inputs[3].dims[-1])  # type: ignore[union-attr]  # it is there
    problem = AttentionProblem(
        q.dtype, batch, heads, kv_heads, queries, reached, size, value_size, scale,
        q=_walk(len(q.dims), heads, queries, size), k=_walk(len(k.dims), kv_heads, keys, size),
        v=_walk(len(v.dims), kv_heads, keys, value_size), y=_walk(len(q.dims), heads, queries, value_size),
        causal=causal, softcap=max(softcap, 0.0), mask=mask, has_lengths=lengths is not None,
    )  # fmt: skip
    spans = [w.head * h + w.row * n for w, h, n in (
        (problem.q, heads, queries), (problem.k, kv_heads, keys), (problem.v, kv_heads, keys),
        (problem.y, heads, queries),
    )]  # fmt: skip
    spans += [mask.head * heads + mask.query * queries + keys] if mask else []
    if max(*spans, problem.tiles(16, 1)) > MAX_INDEX_32 // 2:
        return f"{shapes} need more than 31 bits"
    return problem


def _split(dims: Shape, heads: int | None) -> tuple[int, int, int, int] | None:
    """Return batch, heads, length and size of [batch, heads, length, size] or [batch, length, heads * size]."""
    if len(dims) == 4:
        return dims[0], dims[1], dims[2], dims[3]
    if len(dims) != 3 or not heads or heads < 0 or dims[2] % heads:
        return None
    return dims[0], heads, dims[1], dims[2] // heads


def _walk(rank: int, heads: int, rows: int, size: int) -> Walk:
    step, head = (size, rows * size) if rank == 4 else (heads * size, size)
    return Walk(heads * rows * size, head, step)


def _mask(tensor: TensorType | None, scores: Shape, causal: bool) -> Mask | str | None:
    if tensor is None:
        return None
    dims, (_, _, queries, keys) = tensor.dims, scores
    if tensor.dtype not in MASKS:
        return f"a mask of {tensor.dtype} is not supported"
    if not 1 <= len(dims) <= 4 or dims[-1] == 0 or dims[-1] > keys or (dims[-1] == 1 and keys > 1):
        return f"a mask of shape {dims} for {keys} keys is not supported"
    if causal and (1, *dims)[-2] != queries:
        return "a causal mask joined with one that repeats over the queries: ONNX's reference takes it another way"
    try:
        # one that is shorter than the keys ends them for all
        strides = broadcast_strides(dims, (*scores[:3], dims[-1]))
    except ValueError:
        return f"a mask of shape {dims} doesn't broadcast to {scores}"
    return Mask(tensor.dtype, *strides)
