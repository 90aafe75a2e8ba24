"""Attention as torch's exporters and the models of Hugging Face write it, as small models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

B, S, H, D = 2, 6, 4, 8
HIDDEN = H * D
ROOT = D**-0.25
"""What queries and keys are both multiplied by, so that scores are by 1 / sqrt(D)."""


@dataclass(frozen=True)
class Spelling:
    """A model of one attention, and the call that it comes to.

    Parameters
    ----------
    nodes
        The model's nodes, in ONNX's text form; they make ``y`` of ``q``, ``k``, ``v`` and the constants of ``attention_model``.
    inputs
        The inputs' types and shapes, in text.
    shapes
        Shapes of the call's operands and its result.
    attributes
        Of the call, without its scale.
    """

    nodes: str
    inputs: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, int]
    output: str = f"float[{B}, {S}, {HIDDEN}] y"
    opset: int = 20
    scale: float = D**-0.5


JOINED = f"float[{B}, {S}, {HIDDEN}] q, float[{B}, {S}, {HIDDEN}] k, float[{B}, {S}, {HIDDEN}] v"
ROWS, HEADS = (B, S, HIDDEN), (B, H, S, D)
SPLIT = """
    [qr] q4 = Reshape (q, split) [qt] qh = Transpose <perm = [0, 2, 1, 3]> (q4)
    [vr] v4 = Reshape (v, split) [vt] vh = Transpose <perm = [0, 2, 1, 3]> (v4)
    [kr] k4 = Reshape (k, split)
"""
JOIN = "[yt] yt = Transpose <perm = [0, 2, 1, 3]> (yh) [out] y = Reshape (yt, join)"
SQUEEZED_KEYS = """
    [kt] kh = Transpose <perm = [0, 2, 1, 3]> (k4) [k3] k3 = Reshape (kh, flat)
    [k3t] k3t = Transpose <perm = [0, 2, 1]> (k3) [kk] kk = Reshape (k3t, unflat)
    [qs] qs = Mul (qh, root) [ks] ks = Mul (kk, root)
"""
TRANSPOSED_KEYS = "[kt] ks = Transpose <perm = [0, 2, 3, 1]> (k4)"
GUARD = "[nan] nan = IsNaN (w) [pick] p = Where (nan, zero, w) [pv] yh = MatMul (p, vh)"
JOINED_HEADS = {"q_num_heads": H, "kv_num_heads": H}
CAUSAL = JOINED_HEADS | {"is_causal": 1}
KEYS_OF_HALF = (
    f"float[{B}, {H}, {S}, {D}] q, float[{B}, {H // 2}, {S}, {D}] k, float[{B}, {H // 2}, {S}, {D}] v"
)
GROUPS = """
    [ku] ku = Unsqueeze (k, two) [ke] ke = Expand (ku, groups)
    [vu] vu = Unsqueeze (v, two) [ve] ve = Expand (vu, groups) [vr] vh = Reshape (ve, heads)
"""
GROUPED = ((B, H, S, D), (B, H // 2, S, D), (B, H // 2, S, D), (B, H, S, D))

SPELLINGS = {
    "torch": Spelling(
        f"{SPLIT}{SQUEEZED_KEYS} [qk] s = MatMul (qs, ks) [sm] w = Softmax (s) [pv] yh = MatMul (w, vh) {JOIN}",
        JOINED, (ROWS,) * 4, JOINED_HEADS,
    ),
    "torch, masked": Spelling(
        f"{SPLIT}{SQUEEZED_KEYS} [qk] s = MatMul (qs, ks) [add] m = Add (s, mask) [sm] w = Softmax (m) {GUARD} {JOIN}",
        f"{JOINED}, float[{B}, 1, {S}, {S}] mask", (*(ROWS,) * 3, (B, 1, S, S), ROWS), JOINED_HEADS,
    ),
    "torch, causal": Spelling(
        f"{SPLIT}{SQUEEZED_KEYS} [qk] s = MatMul (qs, ks) [add] m = Add (s, later) [sm] w = Softmax (m) "
        f"[pv] yh = MatMul (w, vh) {JOIN}",
        JOINED, (ROWS,) * 4, CAUSAL,
    ),
    "torch, a mask of zeros": Spelling(
        f"{SPLIT}{SQUEEZED_KEYS} [qk] s = MatMul (qs, ks) [add] m = Add (s, zeros) [sm] w = Softmax (m) {GUARD} {JOIN}",
        JOINED, (ROWS,) * 4, JOINED_HEADS,
    ),
    "eager, scores divided": Spelling(
        f"{SPLIT}{TRANSPOSED_KEYS} [qk] s = MatMul (qh, ks) [sd] d = Div (s, size) [add] m = Add (mask, d) "
        f"[sm] w = Softmax <axis = 3> (m) [pv] yh = MatMul (w, vh) {JOIN}",
        f"{JOINED}, float[{B}, 1, 1, {S}] mask", (*(ROWS,) * 3, (B, 1, 1, S), ROWS), JOINED_HEADS,
    ),
    "eager, joined to two dimensions": Spelling(
        f"{SPLIT}{TRANSPOSED_KEYS} [qk] s = MatMul (qh, ks) [where] m = Where (earlier, s, least) "
        f"[sm] w = Softmax (m) [pv] yh = MatMul (w, vh) "
        "[yt] yt = Transpose <perm = [0, 2, 1, 3]> (yh) [out] y = Reshape (yt, join2)",
        JOINED, (ROWS,) * 4, CAUSAL, output=f"float[{B * S}, {HIDDEN}] y", scale=1.0,
    ),
    "shared keys": Spelling(
        f"{GROUPS} [kr] kr = Reshape (ke, heads) [kt] kt = Transpose <perm = [0, 1, 3, 2]> (kr) "
        "[qk] s = MatMul (q, kt) [sm] w = Softmax (s) [pv] y = MatMul (w, vh)",
        KEYS_OF_HALF, GROUPED, {}, output=f"float[{B}, {H}, {S}, {D}] y", scale=1.0,
    ),
    "shared keys, squeezed": Spelling(
        f"{GROUPS} [k3] k3 = Reshape (ke, flat) [k3t] k3t = Transpose <perm = [0, 2, 1]> (k3) "
        "[kk] kk = Reshape (k3t, unflat) [ks] ks = Mul (root, kk) "
        "[qk] s = MatMul (q, ks) [sm] w = Softmax (s) [pv] y = MatMul (w, vh)",
        KEYS_OF_HALF, GROUPED, {}, output=f"float[{B}, {H}, {S}, {D}] y", scale=ROOT,
    ),
    "Attention of split heads": Spelling(
        f"{SPLIT} [kt] kh = Transpose <perm = [0, 2, 1, 3]> (k4) "
        f"[att] yh = Attention <is_causal = 1, softcap = 2.0> (qh, kh, vh) {JOIN}",
        JOINED, (ROWS,) * 4, CAUSAL, opset=23,
    ),
}  # fmt: skip


def attention_model(nodes: str, inputs: str, output: str, opset: int = 20) -> onnx.ModelProto:
    """Return the model of these nodes, with the constants that they may read."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {{ {nodes} }}'
    )
    earlier = np.tril(np.ones((S, S), bool))
    constants = {
        "split": np.array([B, S, -1, D]),
        "join": np.array([B, S, -1]),
        "join2": np.array([B * S, HIDDEN]),
        "flat": np.array([-1, S, D]),
        "unflat": np.array([B, H, D, S]),
        "heads": np.array([B, H, S, D]),
        "groups": np.array([B, H // 2, 2, S, D]),
        "two": np.array([2]),
        "root": np.float32(ROOT),
        "negative": np.float32(-0.5),
        "size": np.float32(D**0.5),
        "zero": np.zeros(1, np.float32),
        "zeros": np.zeros((B, 1, S, S), np.float32),
        "later": np.where(earlier, 0, -np.inf).astype(np.float32),
        "earlier": earlier,
        "least": np.float32(np.finfo(np.float32).min),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in used
    )
    return model
