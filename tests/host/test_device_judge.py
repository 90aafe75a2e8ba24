"""Judging results on the device: the kernels, from their PTX, and what is left for the host to judge."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tactician.plugins.examiner import Examiner
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature, TensorType
from tactician.tactics.device_judge import FEWEST, DeviceJudge
from tactician.tactics.expected import Expected

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice
from tactician.builtin_kernels.cuda.examiner import BLOCKS, THREADS, kernel_source

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def square_error(x: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], allowed: float, root: float) -> float:
    device = PtxDevice()
    partial = device.empty((3,), np.dtype(np.float64))
    scalars = np.uint64(x.size), np.float64(allowed), np.float64(root)
    kernel = device.compile(kernel_source(x.dtype.name, "square_error"))
    kernel.launch(None, 3, THREADS, device.upload(x), device.upload(wanted), partial, *scalars)
    return float(device.download(partial).sum())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_sum_of_squares(dtype: str) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal(2000)
    x = (wanted + 1e-3 * rng.standard_normal(2000)).astype(TYPES[dtype])
    exact = float(((x.astype(np.float64) - wanted) ** 2).sum())
    assert square_error(x, wanted, 1.0, 1.0) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.0])
def test_one_element_that_is_off_is_found(bad: float) -> None:
    wanted = np.random.default_rng(1).standard_normal(1999)
    x = wanted.astype(np.float32)
    assert np.isfinite(square_error(x, wanted, 1e-2, 1.0))
    x[1998] = wanted[1998] + bad
    assert not np.isfinite(square_error(x, wanted, 1e-2, 1.0))


@pytest.mark.parametrize("nbytes", [1, 5, 4096, 4099])
def test_bytes_that_differ(nbytes: int) -> None:
    device = PtxDevice()
    x = np.random.default_rng(2).integers(0, 256, nbytes).astype(np.uint8)
    for place in (None, 0, nbytes - 1, nbytes // 2):
        other = x.copy()
        if place is not None:
            other[place] ^= 1
        flags = device.empty((2,), np.dtype(np.uint32))
        kernel = device.compile(kernel_source("float16", "difference"))
        kernel.launch(None, 2, THREADS, device.upload(x), device.upload(other), flags, np.uint64(nbytes))
        assert bool(device.download(flags).any()) == (place is not None)
    assert BLOCKS >= 2


class HostExaminer(Examiner):
    """Does on arrays what a device does on its tensors."""

    TYPES = ("float32",)

    def hold(self, values: np.ndarray[Any, Any]) -> Any:
        return values.copy()

    def copy(self, tensor: Any, nbytes: int, stream: Any) -> Any:
        return tensor.copy()

    def same(self, tensor: Any, other: Any, nbytes: int, stream: Any) -> bool:
        return tensor.tobytes() == other.tobytes()

    def square_error(self, tensor: Any, held: Any, allowed: float, root: float, stream: Any) -> float:
        off = np.abs(tensor.reshape(-1).astype(np.float64) - held)
        return float((off**2).sum()) if (off <= allowed * (np.abs(held) + root)).all() else np.inf


def judge_of(size: int, dtype: str = "float32", op: str = "Tanh") -> tuple[DeviceJudge, np.ndarray[Any, Any]]:
    kind = TensorType(dtype, (size,))
    signature = OpSignature(f"ai.onnx::{op}", 21, (), (kind,), (kind,), (None,))
    x = np.random.default_rng(3).standard_normal(size).astype(kind.numpy_dtype)
    expected = Expected(signature, reference_for, [[x]])
    return DeviceJudge(HostExaminer(), signature, expected), np.tanh(x)


def test_a_right_result_has_the_error_that_the_host_finds() -> None:
    judge, y = judge_of(FEWEST)
    assert judge.can_judge(0)
    found = judge.error(0, [y], frozenset(), None)
    (comparison,), limit = judge._expected.judge(0, [y], frozenset())
    assert found == (pytest.approx(comparison.error), limit)


def test_a_wrong_result_is_left_to_the_host() -> None:
    judge, y = judge_of(FEWEST)
    y[7] += 0.5
    assert judge.can_judge(0)
    assert judge.error(0, [y], frozenset(), None) is None


@pytest.mark.parametrize(
    ("size", "dtype", "op"),
    [(FEWEST - 1, "float32", "Tanh"), (FEWEST, "float64", "Tanh"), (FEWEST, "int32", "Neg")],
)
def test_what_the_device_does_not_judge(size: int, dtype: str, op: str) -> None:
    judge, _ = judge_of(size, dtype, op)
    assert not judge.can_judge(0)
