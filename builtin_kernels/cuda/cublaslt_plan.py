"""A product described to cuBLASLt, through the bindings of nvmath; they are imported when first needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tactician.builtin_kernels.cuda.gemm_problem import GemmProblem
from tactician.errors import TacticError

WORKSPACE_LIMIT = 32 << 20
"""Scratch memory, in bytes, that an algorithm may ask for."""

ALIGNMENT = 16
"""Bytes that every tensor is known to be aligned to."""

# values of cudaDataType_t
_TYPES = {
    "float32": 0,
    "float16": 2,
    "int8": 3,
    "int32": 10,
    "bfloat16": 14,
    "float8e4m3fn": 28,
    "float8e5m2": 29,
}
# values of cublasComputeType_t
_COMPUTE_32F, _COMPUTE_32I, _COMPUTE_32F_FAST_TF32 = 68, 72, 77
_TRANSPOSED = 1

_SETTINGS = {
    "algo_id": "ID",
    "tile": "TILE_ID",
    "stages": "STAGES_ID",
    "split_k": "SPLITK_NUM",
    "reduction": "REDUCTION_SCHEME",
    "swizzle": "CTA_SWIZZLING",
    "custom": "CUSTOM_OPTION",
    "inner": "INNER_SHAPE_ID",
    "cluster": "CLUSTER_SHAPE_ID",
}
"""Name of each setting among the library's attributes of an algorithm."""


@dataclass(frozen=True)
class EightBit:
    """What a product of 8-bit operands is to the library beside its sizes.

    Parameters
    ----------
    a, b, d
        Element types of the operands and of the result.
    scaled
        Whether a, and whether b, is multiplied by a number in device memory.
    relu
        Whether results below 0 become 0.
    fast
        Whether tensor cores add fp8 up alone; otherwise their sums are promoted to float32 on the way.
    """

    a: str
    b: str
    d: str
    scaled: tuple[bool, bool] = (False, False)
    relu: bool = False
    fast: bool = False


class LibraryError(TacticError):
    """cuBLASLt is missing or refuses something."""


@cache
def library() -> Any:
    """Return the bindings.

    Raises
    ------
    LibraryError
        If nvmath is not installed or finds no cuBLASLt.
    """
    try:
        from nvmath.bindings import cublasLt

        cublasLt.get_version()
    except Exception as error:  # the bindings have many ways to say that a library is not there
        raise LibraryError(
            f"cuBLASLt can't be loaded ({type(error).__name__}: {error}); "
            "install nvmath-python and nvidia-cublas"
        ) from error
    return cublasLt


class MatmulPlan:
    """The descriptors of one product, and the algorithm that was chosen for it.

    Operands and results are of the problem's type, or of those of ``eight_bit``. The library is column-major. It is
    asked for d transposed, ``op(b)^T op(a)^T``, whose operands are the row-major matrices as they lie in memory.

    Raises
    ------
    LibraryError
        If the library refuses the product.
    """

    def __init__(
        self, problem: GemmProblem, tf32: bool, device: Any, eight_bit: EightBit | None = None
    ) -> None:
        self.workspace_bytes = 0
        self._eight_bit = eight_bit
        a, b, d = (eight_bit.a, eight_bit.b, eight_bit.d) if eight_bit else (problem.dtype,) * 3
        self._types = tuple(_TYPES[kind] for kind in (b, a, d))
        single = "int32" if d == "int32" else "float32"  # what alpha and beta are of
        self._single = _TYPES[single]
        self._lt = lt = library()
        self._problem, self._tf32 = problem, tf32
        device.core.set_current()
        self._handle = _handle(device.index)
        self._algo = np.zeros(1, lt.matmul_algo_dtype)
        self._alpha, self._beta = np.array([problem.alpha], single), np.zeros(1, single)
        self._has_bias = problem.bias == "row"
        self._compute = _COMPUTE_32F_FAST_TF32 if tf32 else _COMPUTE_32I if d == "int32" else _COMPUTE_32F
        owned: list[tuple[Callable[[int], None], int]] = []
        weakref.finalize(self, _destroy, owned)
        self._operation = _call(lt.matmul_desc_create, self._compute, self._single)
        owned.append((lt.matmul_desc_destroy, self._operation))
        self._describe_operation()
        sides = (
            (problem.row_b, problem.n if problem.trans_b else problem.k, problem.stride_b),
            (problem.row_a, problem.k if problem.trans_a else problem.m, problem.stride_a),
            (problem.n, problem.m, problem.stride_d),
        )
        self._layouts = []
        for kind, (rows, columns, stride) in zip(self._types, sides, strict=True):
            layout = _call(lt.matrix_layout_create, kind, rows, columns, rows)
            owned.append((lt.matrix_layout_destroy, layout))
            self._describe_batch(layout, stride)
            self._layouts.append(layout)

    def proposals(self, count: int) -> Iterator[dict[str, int]]:
        """Yield the settings of up to ``count`` algorithms that the heuristic proposes, best first."""
        lt, kinds = self._lt, self._lt.MatmulPreferenceAttribute
        preference = _call(lt.matmul_preference_create)
        try:
            values: list[tuple[Any, Any]] = [(kinds.MAX_WORKSPACE_BYTES, np.uint64(WORKSPACE_LIMIT))]
            for side in "ABCD":
                values.append((getattr(kinds, f"MIN_ALIGNMENT_{side}_BYTES"), np.uint32(ALIGNMENT)))
            for kind, value in values:
                _set(lt.matmul_preference_set_attribute, preference, kind, value)
            results = np.zeros(count, lt.matmul_heuristic_result_dtype)
            found = np.zeros(1, np.int32)
            try:
                lt.matmul_algo_get_heuristic(
                    self._handle, self._operation, *self._operands(), preference, count,
                    results.ctypes.data, found.ctypes.data,
                )  # fmt: skip
            except lt.cuBLASLtError:
                return  # the library has nothing for this product
        finally:
            lt.matmul_preference_destroy(preference)
        for result in results[: int(found[0])]:
            if int(result["state"]) == 0:
                algo = np.array([result["algo"]], lt.matmul_algo_dtype)
                yield {name: self._setting(algo, kind) for name, kind in _SETTINGS.items()}

    def configure(self, settings: Mapping[str, int]) -> None:
        """Choose the algorithm with these settings and learn what scratch memory it needs.

        Raises
        ------
        LibraryError
            If this device or this product has no such algorithm.
        """
        lt, (first, second, result_type) = self._lt, self._types
        address = self._algo.ctypes.data
        _call(
            lt.matmul_algo_init, self._handle, self._compute, self._single, first, second, result_type,
            result_type, settings["algo_id"], address,
        )  # fmt: skip
        for name, kind in _SETTINGS.items():
            # 0 is what a new algorithm has; some algorithms refuse to be told even that
            if name != "algo_id" and settings[name]:
                attribute = lt.MatmulAlgoConfigAttribute[kind]
                dtype = np.dtype(lt.get_matmul_algo_config_attribute_dtype(attribute))
                value = np.array([settings[name]], dtype)
                _call(
                    lt.matmul_algo_config_set_attribute, address, attribute, value.ctypes.data, value.nbytes
                )
        result = np.zeros(1, lt.matmul_heuristic_result_dtype)
        _call(
            lt.matmul_algo_check,
            self._handle,
            self._operation,
            *self._operands(),
            address,
            result.ctypes.data,
        )
        if int(result["state"][0]) != 0:
            raise LibraryError(f"cuBLASLt has no algorithm {dict(settings)} for {self._problem}")
        self.workspace_bytes = int(result["workspace_size"][0])

    def run(
        self, a: int, b: int, bias: int, d: int, workspace: int, stream: int, scales: tuple[int, int] = (0, 0)
    ) -> None:
        """Enqueue the product of the matrices at these addresses on the raw stream ``stream``."""
        lt, kinds = self._lt, self._lt.MatmulDescAttribute
        pointers: list[tuple[Any, int]] = [(kinds.BIAS_POINTER, bias)] if self._has_bias else []
        if self._eight_bit is not None:
            # b comes first
            addresses = zip((kinds.B_SCALE_POINTER, kinds.A_SCALE_POINTER), scales, strict=True)
            pointers += [found for found, has in zip(addresses, self._eight_bit.scaled, strict=True) if has]
        for kind, address in pointers:
            _set(lt.matmul_desc_set_attribute, self._operation, kind, np.uint64(address))
        first, second, _, result = self._operands()
        _call(
            lt.matmul, self._handle, self._operation, self._alpha.ctypes.data, b, first, a, second,
            self._beta.ctypes.data, d, result, d, result, self._algo.ctypes.data,
            workspace, self.workspace_bytes, stream,
        )  # fmt: skip

    def _operands(self) -> tuple[int, int, int, int]:
        first, second, result = self._layouts
        return first, second, result, result

    def _describe_operation(self) -> None:
        lt, kinds = self._lt, self._lt.MatmulDescAttribute
        values: list[tuple[Any, Any]] = []
        if self._problem.trans_b:
            values.append((kinds.TRANSA, np.int32(_TRANSPOSED)))
        if self._problem.trans_a:
            values.append((kinds.TRANSB, np.int32(_TRANSPOSED)))
        relu = self._eight_bit is not None and self._eight_bit.relu
        if self._eight_bit is not None and self._eight_bit.fast:
            values.append((kinds.FAST_ACCUM, np.int8(1)))
        if relu or self._has_bias:
            name = "RELU_BIAS" if relu and self._has_bias else "RELU" if relu else "BIAS"
            values.append((kinds.EPILOGUE, np.int32(int(lt.Epilogue[name]))))
        if self._has_bias:
            # the heuristic wants some address; the real one comes with each launch
            values.append((kinds.BIAS_POINTER, np.uint64(ALIGNMENT)))
        for kind, value in values:
            _set(lt.matmul_desc_set_attribute, self._operation, kind, value)

    def _describe_batch(self, layout: int, stride: int) -> None:
        kinds = self._lt.MatrixLayoutAttribute
        if self._problem.batch > 1:
            _set(
                self._lt.matrix_layout_set_attribute, layout, kinds.BATCH_COUNT, np.int32(self._problem.batch)
            )
            _set(self._lt.matrix_layout_set_attribute, layout, kinds.STRIDED_BATCH_OFFSET, np.int64(stride))

    def _setting(self, algo: np.ndarray[Any, Any], kind: str) -> int:
        attribute = self._lt.MatmulAlgoConfigAttribute[kind]
        value = np.zeros(1, np.dtype(self._lt.get_matmul_algo_config_attribute_dtype(attribute)))
        written = np.zeros(1, np.uint64)
        _call(
            self._lt.matmul_algo_config_get_attribute,
            algo.ctypes.data, attribute, value.ctypes.data, value.nbytes, written.ctypes.data,
        )  # fmt: skip
        return int(value[0])


@cache
def _handle(device_index: int) -> int:
    """Return the library's handle for the current device, ``device_index``; one serves all threads."""
    return int(_call(library().create))


def _set(function: Callable[..., None], target: int, kind: Any, value: Any) -> None:
    box = np.array([value])
    _call(function, target, kind, box.ctypes.data, box.nbytes)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # the bindings raise their own type for every status
        raise LibraryError(f"cuBLASLt refused {getattr(function, '__name__', function)}: {error}") from error


def _destroy(owned: list[tuple[Callable[[int], None], int]]) -> None:
    for function, descriptor in reversed(owned):
        function(descriptor)
