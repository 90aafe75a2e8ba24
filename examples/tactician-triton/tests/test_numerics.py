"""The kernels compute the products, on the CPU, through Triton's interpreter: all modes, odd shapes.

In float16 only: the interpreter multiplies bfloat16 as if its bits were integers. On a GPU both are checked.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calls import call, exact
from tactician_triton import TiledGemm

TOLERANCE = 5e-4
"""Of the relative error; rounding results to float16 makes 2e-4 of it."""

SMALL = TiledGemm(block_m=16, block_n=32, block_k=16, group_m=2)
SPLIT = TiledGemm(block_m=16, block_n=32, block_k=16, group_m=2, split_k=2)
DEEP = TiledGemm(block_m=32, block_n=16, block_k=32, group_m=8, split_k=4)
TACTICS = (SMALL, SPLIT, DEEP)

MATMULS = [
    ((32, 32), (32, 32)),
    ((64, 128), (128, 64)),
    ((37, 70), (70, 45)),
    ((1, 65), (65, 130)),
    ((1, 1), (1, 1)),
    ((80, 17), (17, 100)),
    ((100, 33), (33, 1)),
    ((3, 20, 48), (3, 48, 40)),
    ((2, 3, 21, 19), (2, 3, 19, 18)),
    ((2, 3, 5, 12), (12, 9)),
    ((7, 12), (2, 3, 12, 9)),
    ((1, 3, 5, 40), (3, 40, 9)),
    ((50,), (50,)),
    ((50,), (4, 50, 5)),
    ((4, 5, 50), (50,)),
]
GEMMS = [
    *((x, y, c, {}) for x in (0, 1) for y in (0, 1) for c in (None, (41,))),
    *((0, 1, c, {"alpha": 0.3, "beta": -1.7}) for c in ((), (1,), (41,), (1, 41), (35, 1), (35, 41))),
    (1, 1, None, {"alpha": 2.5}),
    (1, 0, (35, 41), {"beta": 0.0}),
]


def cases():
    for tactic in TACTICS:
        for shapes in MATMULS:
            yield tactic, call("MatMul", *shapes)
        for trans_a, trans_b, c, scale in GEMMS:
            a, b = ((83, 35) if trans_a else (35, 83)), ((41, 83) if trans_b else (83, 41))
            attributes = {"transA": trans_a, "transB": trans_b, **scale}
            yield tactic, call("Gemm", a, b, *([] if c is None else [c]), attributes)
    # whole tiles, transposed: no masks
    yield SMALL, call("Gemm", (64, 32), (64, 64), (64,), {"transA": 1, "transB": 1})
    yield DEEP, call("Gemm", (128, 64), (64, 128), (64,), {"transA": 1, "transB": 1})


CASES = list(cases())


def drawn(signature):
    rng = np.random.default_rng(len(str(signature)))
    return [rng.standard_normal(t.dims).astype(t.numpy_dtype) for t in signature.inputs]


@pytest.fixture(scope="module")
def outputs():
    """Return the outputs of all cases; one process runs them, since Triton takes the variable when it is imported."""
    script = Path(__file__).with_name("interpreted.py")
    data = pickle.dumps([(tactic, signature, drawn(signature)) for tactic, signature in CASES])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], input=data, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{t.split_k}-{s}" for t, s in CASES])
def test_the_product_is_right(outputs, number):
    _, signature = CASES[number]
    wanted = exact(signature, drawn(signature))
    got = outputs[number].astype(np.float64)
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= TOLERANCE * np.linalg.norm(wanted)
