"""The tactic says what it does not run, offers a dozen candidates, and all of them compile without a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import tactician_triton
from calls import SHAPES, call
from tactician.testing import offline_device
from tactician_triton import MAX_CANDIDATES, TiledGemm, product_of

ARCHITECTURES = ("sm_80", "sm_90a")


@pytest.fixture(params=ARCHITECTURES)
def device(request):
    return offline_device("cuda", request.param)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (call("MatMul", (4, 5), (5, 6), dtype="float32"), "float16 and bfloat16 only, not float32"),
        (call("MatMul", (4, "n"), (5, 6)), "needs static shapes"),
        (call("MatMul", (4, 0), (0, 6)), "there is nothing to multiply"),
        (call("MatMul", (0, 4), (4, 6)), "there is nothing to multiply"),
        (call("MatMul", (2, 1, 4, 5), (1, 3, 5, 6)), "batches (2, 1) and (1, 3) broadcast in part"),
        (call("MatMul", (70000, 4, 5), (70000, 5, 6)), "a batch of 70000; a grid can number 65535"),
        (call("MatMul", (), (5, 6)), "shapes () and (5, 6) can't be multiplied"),
        (call("Gemm", (4, 5), (6, 7)), "shapes (4, 5) and (6, 7) can't be multiplied"),
        (call("Gemm", (4, 5), (5, 6), (6,), version=6), "before opset 7 C broadcasts in another way"),
        (call("Gemm", (4, 5), (5, 6), (5,)), "C, float16[5], doesn't broadcast to float16[4, 6]"),
        (call("Gemm", (4, 5), (5, 6), {"alpha": float("inf")}), "alpha inf or beta 1.0 is not finite"),
        (call("Relu", (4, 5), (5, 6)), "Relu is no matrix product"),
    ],
)
def test_it_says_why_not(device, signature, reason):
    assert TiledGemm().decline(signature, device) == reason
    assert [t.decline(signature, device) for t in TiledGemm.candidates(signature, device)] == [reason]


def test_operands_of_two_types_are_declined(device):
    signature = call("MatMul", (4, 5), (5, 6))
    a, b = signature.inputs
    mixed = replace(signature, inputs=(a, replace(b, dtype="bfloat16")))
    assert "are not of one type" in TiledGemm().decline(mixed, device)


def test_huge_matrices_are_declined(device):
    signature = call("MatMul", (65536, 2), (2, 32768))
    assert "has more than" in TiledGemm().decline(signature, device)


def test_what_does_not_fit_is_declined(device):
    signature = call("MatMul", (512, 4096), (4096, 512))
    reason = TiledGemm(256, 256, 128, 8, 4).decline(signature, device)
    assert reason.startswith("stages take 524288 bytes of shared memory; a block has ")
    parts = TiledGemm(split_k=8).decline(call("MatMul", (30000, 64), (64, 30000)), device)
    assert parts == "8 parts of 900000000 results need more than 31 bits"


@pytest.mark.parametrize(
    ("shapes", "batch", "strides", "m"),
    [
        (((7, 12), (12, 9)), 1, (0, 0), 7),
        (((2, 3, 5, 12), (12, 9)), 1, (0, 0), 30),
        (((2, 3, 5, 12), (1, 1, 12, 9)), 1, (0, 0), 30),
        (((5, 12), (2, 3, 12, 9)), 6, (0, 108), 5),
        (((2, 3, 5, 12), (2, 3, 12, 9)), 6, (60, 108), 5),
        (((1, 3, 5, 12), (3, 12, 9)), 3, (60, 108), 5),
        (((12,), (12,)), 1, (0, 0), 1),
        (((12,), (4, 12, 5)), 4, (0, 60), 1),
        (((4, 5, 12), (12,)), 1, (0, 0), 20),
    ],
)
def test_batches_become_strides(shapes, batch, strides, m):
    product = product_of(call("MatMul", *shapes))
    assert (product.batch, (product.stride_a, product.stride_b), product.m) == (batch, strides, m)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_candidates_are_few_different_and_accepted(device, name, dtype):
    signature = call(*SHAPES[name], dtype=dtype)
    candidates = list(TiledGemm.candidates(signature, device))
    assert 0 < len(candidates) <= MAX_CANDIDATES
    assert len(set(candidates)) == len(candidates)
    assert [c.decline(signature, device) for c in candidates] == [None] * len(candidates)
    assert candidates == list(TiledGemm.candidates(signature, device))
    split = [c for c in candidates if c.split_k > 1]
    assert all(c.workspace(signature, device) == 4 * c.split_k * product_of(signature).size for c in split)
    assert all(c.workspace(signature, device) == 0 for c in candidates if c.split_k == 1)


def test_k_is_split_where_multiprocessors_would_idle(device):
    assert any(c.split_k > 1 for c in TiledGemm.candidates(call(*SHAPES["narrowing"]), device))
    assert all(c.split_k == 1 for c in TiledGemm.candidates(call(*SHAPES["square"]), device))


@pytest.mark.parametrize(
    ("architecture", "name", "dtype", "count"),
    [
        *(("sm_90a", name, "float16", MAX_CANDIDATES) for name in ("narrowing", "context", "odd")),
        *(("sm_90a", name, "bfloat16", 2) for name in SHAPES),
        *(("sm_80", name, "float16", 2) for name in SHAPES),
    ],
)
def test_candidates_compile(architecture, name, dtype, count):
    device, signature = offline_device("cuda", architecture), call(*SHAPES[name], dtype=dtype)
    for candidate in list(TiledGemm.candidates(signature, device))[:count]:
        candidate.prepare(signature, device)  # raises if a block takes more shared memory than there is
        compiled = candidate.source(product_of(signature)).compile(device.facts["sm"])
        assert compiled.shared_bytes <= candidate.shared_bytes()


def test_importing_the_plugin_does_not_import_triton():
    script = "import sys, tactician_triton; print('triton' in sys.modules, 'numpy' in sys.modules)"
    folder = tactician_triton.__file__.rpartition("/tactician_triton/")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
