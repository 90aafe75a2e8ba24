"""What cuBLASLt is asked for, by bindings that do in NumPy what the library's descriptors say."""

from __future__ import annotations

import ctypes
import math
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import gemm, matmul
from memory_bound_cases import Case
from quantised_cases import E4M3, Quantised
from signatures import make_signature
from tactician.builtin_kernels.cuda import cublaslt, cublaslt_plan
from tactician.builtin_kernels.cuda.cublaslt import CublasLt
from tactician.builtin_kernels.cuda.cublaslt_8bit import CublasLt8bit
from tactician.builtin_kernels.cuda.cublaslt_plan import LibraryError
from tactician.plugins.reference import reference_for
from tactician.tactics.sampling import sample_inputs

Array = np.ndarray[Any, Any]


class MatmulAlgoConfigAttribute(IntEnum):
    """Settings of an algorithm, numbered as in the library."""

    ID, TILE_ID, SPLITK_NUM, REDUCTION_SCHEME, CTA_SWIZZLING = range(5)
    CUSTOM_OPTION, STAGES_ID, INNER_SHAPE_ID, CLUSTER_SHAPE_ID = range(5, 9)


TYPES = {
    0: np.float32,
    2: np.float16,
    3: np.int8,
    10: np.int32,
    14: ml_dtypes.bfloat16,
    28: ml_dtypes.float8_e4m3fn,
    29: ml_dtypes.float8_e5m2,
}
"""Element types by the library's numbers."""


class Epilogue(IntEnum):
    """What follows the product, numbered as in the library."""

    RELU, BIAS, RELU_BIAS = 2, 4, 6


def names(**values: int) -> SimpleNamespace:
    """Return an object with these attributes."""
    return SimpleNamespace(**values)


class FakeLibrary:
    """The part of the bindings that is used: three algorithms, of which one doesn't fit."""

    MatmulAlgoConfigAttribute = MatmulAlgoConfigAttribute
    MatmulDescAttribute = names(
        TRANSA=3, TRANSB=4, EPILOGUE=7, BIAS_POINTER=8, A_SCALE_POINTER=17, B_SCALE_POINTER=18, FAST_ACCUM=25
    )
    MatrixLayoutAttribute = names(BATCH_COUNT=5, STRIDED_BATCH_OFFSET=6)
    MatmulPreferenceAttribute = names(
        MAX_WORKSPACE_BYTES=1,
        MIN_ALIGNMENT_A_BYTES=5,
        MIN_ALIGNMENT_B_BYTES=6,
        MIN_ALIGNMENT_C_BYTES=7,
        MIN_ALIGNMENT_D_BYTES=8,
    )
    Epilogue = Epilogue
    cuBLASLtError = RuntimeError  # noqa: N815  # the library's own name
    matmul_algo_dtype = np.dtype([("data_", "<u8", (8,))])
    matmul_heuristic_result_dtype = np.dtype(
        [
            ("algo", matmul_algo_dtype),
            ("workspace_size", "<u8"),
            ("state", "<i4"),
            ("waves_count", "<f4"),
            ("reserved", "<i4", (4,)),
        ]
    )

    def __init__(self) -> None:
        self.objects: dict[int, dict[Any, Any]] = {}
        self.compute: list[int] = []

    def _new(self, *values: Any) -> int:
        key = len(self.objects) + 1
        self.objects[key] = {"made": values}
        return key

    def create(self) -> int:
        return self._new()

    def _set(self, target: int, kind: int, address: int, size: int) -> None:
        self.objects[target][int(kind)] = int.from_bytes(ctypes.string_at(address, size), "little")

    matmul_desc_create = matrix_layout_create = matmul_preference_create = _new
    matmul_desc_set_attribute = matrix_layout_set_attribute = matmul_preference_set_attribute = _set

    def _destroy(self, target: int) -> None:
        self.objects[target] = {}

    matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy

    def get_matmul_algo_config_attribute_dtype(self, kind: int) -> Any:
        return np.uint16 if kind >= 7 else np.uint32

    def matmul_algo_get_heuristic(self, *arguments: Any) -> None:
        count, results, found = arguments[-3:]
        assert count >= 3
        memory = np.frombuffer(
            (ctypes.c_char * (count * self.matmul_heuristic_result_dtype.itemsize)).from_address(results),
            self.matmul_heuristic_result_dtype,
        )
        for i, state in enumerate((0, 7, 0)):
            memory[i]["algo"]["data_"][:] = [
                20 + i | 3 << 8 | 1 << 16 | 5 << 48,
                2 | 4 << 8,
                0,
                0,
                0,
                0,
                0,
                0,
            ]
            memory[i]["state"] = state
        ctypes.c_int32.from_address(found).value = 3

    def matmul_algo_config_get_attribute(
        self, algo: int, kind: int, address: int, size: int, written: int
    ) -> None:
        ctypes.memset(address, ctypes.c_uint8.from_address(algo + int(kind)).value, 1)

    def matmul_algo_config_set_attribute(self, algo: int, kind: int, address: int, size: int) -> None:
        ctypes.memmove(algo + int(kind), address, 1)

    def matmul_algo_init(self, handle: int, compute: int, *rest: int) -> None:
        self.compute.append(compute)
        number, algo = rest[-2:]
        if number < 20:
            raise RuntimeError("NOT_SUPPORTED")
        ctypes.memset(algo, 0, 64)
        ctypes.memset(algo, number, 1)

    def matmul_algo_check(self, *arguments: Any) -> None:
        memory = (ctypes.c_char * self.matmul_heuristic_result_dtype.itemsize).from_address(arguments[-1])
        np.frombuffer(memory, self.matmul_heuristic_result_dtype)["workspace_size"][:] = 512

    def matmul(
        self,
        handle: int,
        operation: int,
        alpha: int,
        a: int,
        la: int,
        b: int,
        lb: int,
        beta: int,
        c: int,
        lc: int,
        d: int,
        ld: int,
        algo: int,
        workspace: int,
        size: int,
        stream: int,
    ) -> None:
        assert (size, stream) == (512, 99)
        described = self.objects[operation]
        batch = self.objects[ld].get(5, 1)
        for i in range(batch):
            left, right, out = (self._matrix(p, self.objects[o], i) for p, o in ((a, la), (b, lb), (d, ld)))
            left = left.T if described.get(3) else left
            right = right.T if described.get(4) else right
            number = ctypes.c_int32 if out.dtype == np.int32 else ctypes.c_float
            factor = math.prod(float(_elements(described[s], 1)[0]) for s in (17, 18) if s in described)
            wide = (
                number.from_address(alpha).value
                * factor
                * (left.astype(np.float64) @ right.astype(np.float64))
            )
            if described.get(7) in (self.Epilogue.BIAS, self.Epilogue.RELU_BIAS):
                wide += _elements(described[8], out.shape[0], out.dtype)[:, None].astype(np.float64)
            relu = described.get(7) in (self.Epilogue.RELU, self.Epilogue.RELU_BIAS)
            out[:] = np.maximum(wide, 0) if relu else wide

    def _matrix(self, address: int, layout: dict[Any, Any], i: int) -> Array:
        kind, rows, columns, leading = layout["made"]
        dtype = np.dtype(TYPES[kind])
        start = address + dtype.itemsize * i * layout.get(6, 0)
        return _elements(start, leading * columns, dtype).reshape(columns, leading)[:, :rows].T


def _elements(address: int, count: int, dtype: Any = np.float32) -> Array:
    nbytes = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    for module in (cublaslt, cublaslt_plan):
        monkeypatch.setattr(module, "library", lambda: fake)
    monkeypatch.setattr(cublaslt_plan, "_handle", lambda index: 1)
    return fake


DEVICE: Any = SimpleNamespace(
    facts={"driver": "1.0"}, index=0, core=SimpleNamespace(set_current=lambda: None)
)

CASES = [
    *(gemm(5, 7, 9, x, y, c) for x in (0, 1) for y in (0, 1) for c in (None, (7,))),
    gemm(5, 7, 9, alpha=-0.5),
    matmul((3, 5, 9), (3, 9, 7)),
    matmul((5, 9), (3, 9, 7)),
    matmul((3, 5, 9), (9, 7)),
]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(CASES)])
def test_row_major_product(library: FakeLibrary, case: Case) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes)
    tactics = list(CublasLt.candidates(signature, DEVICE))
    assert [(t.algo_id, t.tf32) for t in tactics] == [(20, False), (22, False), (20, True), (22, True)]
    assert (tactics[0].tile, tactics[0].split_k, tactics[0].stages, tactics[0].inner) == (3, 1, 5, 0)
    for tactic in tactics:
        assert tactic.decline(signature, DEVICE) is None
        assert tactic.workspace(signature, DEVICE) == 512
        assert tactic.numerics(signature) == ({"tf32"} if tactic.tf32 else set())
        arrays = [a for a in case.inputs if a is not None]
        output = np.full(signature.outputs[0].dims, np.nan, np.float32)  # type: ignore[union-attr]  # is there
        tensors = [SimpleNamespace(pointer=a.ctypes.data) for a in (*arrays, output)]
        tactic.prepare(signature, DEVICE)(tensors[:-1], tensors[-1:], None, SimpleNamespace(handle=99))
        assert library.compute[-1] == (77 if tactic.tf32 else 68)
        a, b = (
            x.T if case.attributes.get(k) else x for x, k in zip(arrays, ("transA", "transB"), strict=False)
        )
        wanted = case.attributes.get("alpha", 1.0) * (a.astype(np.float64) @ b)
        np.testing.assert_allclose(
            output, wanted + (arrays[2] if len(arrays) > 2 else 0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (gemm(5, 7, 9, c=(5, 1)), "column"),
        (gemm(5, 7, 9, c=(7,), beta=0.5), "unscaled"),
        (gemm(5, 7, 0), "side"),
        (gemm(5, 7, 9, dtype=np.float64), "float64"),
    ],
)
def test_declines(library: FakeLibrary, case: Case, words: str) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes)
    (tactic,) = CublasLt.candidates(signature, DEVICE)
    assert words in str(tactic.decline(signature, DEVICE))


def test_an_algorithm_that_is_not_there(library: FakeLibrary) -> None:
    case = gemm(5, 7, 9)
    signature = make_signature(case.op, case.inputs, case.attributes)
    assert "NOT_SUPPORTED" in str(CublasLt(3).decline(signature, DEVICE))


def test_without_driver_or_library(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gemm(5, 7, 9)
    signature = make_signature(case.op, case.inputs, case.attributes)
    bare: Any = SimpleNamespace(facts={"driver": ""})
    assert "driver" in str(CublasLt().decline(signature, bare))

    def missing() -> None:
        raise LibraryError("cuBLASLt can't be loaded")

    monkeypatch.setattr(cublaslt, "library", missing)
    assert "loaded" in str(CublasLt().decline(signature, DEVICE))


INTEGERS = ("int8", "int8", "int32")
EIGHT_BIT = [
    Quantised(5, 7, 9, INTEGERS),
    Quantised(5, 7, 9, INTEGERS, stored="kn"),
    Quantised(5, 7, 9, INTEGERS, batch=3),
    Quantised(5, 7, 9, E4M3, columns=False),
    Quantised(5, 7, 9, E4M3, columns=False, bias=True, relu=True),
    Quantised(5, 7, 9, ("float8e4m3fn", "float8e5m2", "bfloat16"), columns=False, gemm=True, bias=True),
    Quantised(5, 7, 9, ("float8e4m3fn", "float8e4m3fn", "float"), columns=False, relu=True),
]


@pytest.mark.parametrize("case", EIGHT_BIT, ids=str)
def test_8bit_product(library: FakeLibrary, case: Quantised) -> None:
    signature = case.signature()
    tactics = list(CublasLt8bit.candidates(signature, DEVICE))
    expected = (
        [(20, False), (22, False)] if case.is_integer else [(20, True), (22, True), (20, False), (22, False)]
    )
    assert [(t.algo_id, t.fast) for t in tactics] == expected
    inputs = [a for a in sample_inputs(signature, np.random.default_rng(0)) if a is not None]
    (wanted,) = reference_for(signature)(inputs)
    for tactic in tactics:
        assert tactic.decline(signature, DEVICE) is None
        assert tactic.numerics(signature) == ({"reduced-accumulator"} if tactic.fast else set())
        output = np.zeros(wanted.shape, wanted.dtype)
        tensors = [SimpleNamespace(pointer=a.ctypes.data) for a in (*inputs, output)]
        tactic.prepare(signature, DEVICE)(tensors[:-1], tensors[-1:], None, SimpleNamespace(handle=99))
        assert library.compute[-1] == (72 if case.is_integer else 68)
        found, exact = output.astype(np.float64), wanted.astype(np.float64)
        assert np.linalg.norm(found - exact) <= (0 if case.is_integer else 1e-2) * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Quantised(5, 7, 9, ("int8", "int8", "float16")), "int8 to int32"),
        (Quantised(5, 7, 9, ("uint8", "int8", "int32")), "not uint8"),
        (Quantised(5, 7, 9, E4M3), "each column"),
        (Quantised(5, 7, 9, (*E4M3[:2], "float"), columns=False, bias=True), "no bias"),
    ],
)
def test_8bit_declines(library: FakeLibrary, case: Quantised, words: str) -> None:
    (tactic,) = CublasLt8bit.candidates(case.signature(), DEVICE)
    assert words in str(tactic.decline(case.signature(), DEVICE))
