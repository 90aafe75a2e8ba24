"""A convolution described to cuDNN as a graph, and its execution plans; the library is imported when first needed."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.errors import TacticError

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
"""The library's names of the element types that are handed to it."""

WORKSPACE_LIMIT = 1 << 28
"""Scratch memory, in bytes, that a plan may ask for."""

X, W, BIAS, Y = 1, 2, 3, 4
"""Numbers of the tensors in every graph, by which a stored plan finds them again."""

_NEVER = (
    "NONDETERMINISTIC",
    "REDUCED_PRECISION_REDUCTION",
    "FFT",
    "WINOGRAD_TILE_6x6",
    "WINOGRAD_TILE_13x13",
)
_NEVER_IN_HALF = ("WINOGRAD", "WINOGRAD_TILE_4x4")
_TF32 = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS")
"""Notes of plans that round float32 operands."""

KNOBS = {
    1: "swizzle",
    2: "tile_size",
    4: "edge",
    11: "multiply",
    12: "split_k_buf",
    13: "tilek",
    14: "stages",
    15: "reduction_mode",
    17: "split_k_slc",
    18: "idx_mode",
    23: "specfilt",
    24: "kernel_cfg",
    25: "workspace",
    27: "tile_cga_m",
    28: "tile_cga_n",
    29: "block_size",
    30: "occupancy",
    31: "array_size_per_thread",
    33: "split_cols",
    34: "tile_rows",
    35: "tile_cols",
    36: "load_size",
    37: "cta_count",
    38: "stream_k",
    39: "split_p_slc",
    40: "tile_m",
    41: "tile_n",
    42: "warp_spec_cfg",
    43: "swap_ab",
}
"""Names of the library's knobs (``cudnnBackendKnobType_t``); others go by their number, ``k3``."""

_NAME = re.compile(r"eng(?P<engine>\d+)(?P<knobs>(?:_k\d+=-?\d+)*)")
_KNOB = re.compile(r"_k(\d+)=(-?\d+)")


class LibraryError(TacticError):
    """cuDNN is missing or refuses something."""


@cache
def library() -> Any:
    """Return the Python frontend.

    Raises
    ------
    LibraryError
        If the frontend is not installed or finds no cuDNN.
    """
    try:
        import cudnn

        cudnn.backend_version()
    except Exception as error:  # a missing package, a missing shared library, a version that is too old
        raise LibraryError(
            f"cuDNN can't be loaded ({type(error).__name__}: {error}); install nvidia-cudnn-frontend and nvidia-cudnn-cu13"
        ) from error
    return cudnn


class ConvGraph:
    """A convolution with an optional bias, and the plans that the library's heuristics propose for it.

    Parameters
    ----------
    problem
        Of one of ``DTYPES``.
    tf32
        Whether float32 operands are rounded; plans that round them and plans that don't are never mixed.
    context
        Where plans will run, as ``cudnn.pygraph`` takes it: a handle.

    Raises
    ------
    LibraryError
        If the library has no plan.
    """

    def __init__(self, problem: ConvProblem, tf32: bool, context: Mapping[str, Any]) -> None:
        self._cudnn = cudnn = library()
        kind = getattr(cudnn.data_type, DTYPES[problem.dtype])
        with _BUILDING:
            self._graph = cudnn.pygraph(
                io_data_type=kind,
                intermediate_data_type=cudnn.data_type.FLOAT,
                compute_data_type=cudnn.data_type.FLOAT,
                **context,
            )
            try:
                self._describe(problem, kind)
                self._graph.validate()
                self._graph.build_operation_graph()
                self._graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
                self._filter(problem.dtype, tf32)
            except (
                Exception
            ) as error:  # the frontend has an exception class of its own and plain RuntimeErrors
                raise LibraryError(f"cuDNN has no plan for this convolution: {_first_line(error)}") from error
        names = (self._graph.get_plan_name_at_index(i) for i in range(self._graph.get_execution_plan_count()))
        self._indices = {name: i for i, name in reversed(list(enumerate(names)))}

    def proposals(self, count: int) -> Iterator[tuple[int, str]]:
        """Yield engine and knobs of up to ``count`` plans that can be built, best first."""
        for name in sorted(self._indices, key=self._indices.__getitem__):
            if count == 0:
                return
            try:
                engine, knobs = parse_plan(name)
                self.build(engine, knobs)
            except LibraryError:
                continue
            count -= 1
            yield engine, knobs

    def build(self, engine: int, knobs: str) -> int:
        """Build a plan, one that the heuristics proposed or any other, and return its workspace in bytes.

        Raises
        ------
        LibraryError
            If the library refuses the plan, or it rounds what it may not, or takes too much scratch memory.
        """
        name = plan_name(engine, knobs)
        with _BUILDING:
            nbytes = self._build(name, engine, knobs)
        if nbytes > WORKSPACE_LIMIT:
            raise LibraryError(
                f"plan {name} asks for {nbytes} bytes of scratch memory; at most {WORKSPACE_LIMIT} are given"
            )
        return nbytes

    def _build(self, name: str, engine: int, knobs: str) -> int:
        try:
            if name not in self._indices:
                self._indices[name] = self._graph.get_execution_plan_count()
                self._graph.create_execution_plan(engine, self._knobs(knobs))
            index = self._indices[name]
            self._graph.build_plan_at_index(index)
            return int(self._graph.get_workspace_size_plan_at_index(index))
        except Exception as error:  # as above
            raise LibraryError(f"cuDNN refuses the plan {name}: {_first_line(error)}") from error

    def serialized(self, engine: int, knobs: str) -> bytes:
        """Build a plan and return it as bytes, its compiled kernels included."""
        with _BUILDING:  # the plan that was built last is the one that is written
            self.build(engine, knobs)
            return bytes(self._graph.serialize())

    def _describe(self, problem: ConvProblem, kind: Any) -> None:
        window, graph = problem.window, self._graph
        # the library takes two or three spatial dimensions
        flat = (window.size[0], window.kernel[0], window.before[0], window.after[0]) == (1, 1, 0, 0)
        first = 1 if flat else 0
        channels, filters = problem.groups * problem.channels, problem.groups * problem.filters

        def tensor(uid: int, *dims: int) -> Any:
            return graph.tensor(uid=uid, dim=list(dims), stride=_strides(dims), data_type=kind)

        y = graph.conv_fprop(
            tensor(X, problem.batch, channels, *window.size[first:]),
            tensor(W, filters, problem.channels, *window.kernel[first:]),
            pre_padding=list(window.before[first:]),
            post_padding=list(window.after[first:]),
            stride=list(window.strides[first:]),
            dilation=list(window.dilations[first:]),
        )
        if problem.bias:
            y = graph.add(y, tensor(BIAS, 1, filters, *(1 for _ in window.size[first:])))
        dims = (problem.batch, filters, *window.out[first:])
        y.set_output(True).set_uid(Y).set_data_type(kind).set_dim(list(dims)).set_stride(_strides(dims))

    def _filter(self, dtype: str, tf32: bool) -> None:
        def notes(*names: str) -> list[Any]:
            return [getattr(self._cudnn.numerical_note, name) for name in names]

        self._graph.deselect_numeric_notes(notes(*_NEVER))
        if dtype != "float32":
            self._graph.deselect_numeric_notes(notes(*_NEVER_IN_HALF))
        elif tf32:
            self._graph.select_numeric_notes(notes(_TF32[0]))
        else:
            self._graph.deselect_numeric_notes(notes(*_TF32))

    def _knobs(self, text: str) -> dict[Any, int]:
        members = self._cudnn.knob_type.__members__
        unknown = [name for name, _ in _pairs(text) if name.upper() not in members]
        if unknown:
            raise LibraryError(f"the frontend can't set {', '.join(unknown)}")
        return {members[name.upper()]: value for name, value in _pairs(text)}


class StoredPlan:
    """A plan restored from its serialized form, on one GPU."""

    def __init__(self, data: bytes, handle: int) -> None:
        self._cudnn, self._handle = library(), handle
        self._graph = self._cudnn.pygraph(handle=handle)
        with _LOCK:
            # the plan is warmed up on the handle's stream, and the one that it was last given may be gone
            self._cudnn.set_stream(handle=handle, stream=0)
            self._graph.deserialize(handle, list(data))

    def run(self, pointers: dict[int, int], workspace: int, stream: int) -> None:
        """Enqueue the plan on ``stream``; ``pointers`` has the address of each tensor of the graph."""
        with _LOCK:  # the stream belongs to the handle, which all plans of a GPU share
            self._cudnn.set_stream(handle=self._handle, stream=stream)
            self._graph._execute(pointers, workspace, self._handle)


def handle(device: Any) -> int:
    """Return the library's handle for the plans that run on a GPU, made on first use."""
    return _handle(device, "run")


def build_handle(device: Any) -> int:
    """Return the library's handle for the plans that are built for a GPU, made on first use.

    It is another one than ``handle``, whose stream is that of the last plan that ran, and may be gone.
    """
    return _handle(device, "build")


def _handle(device: Any, purpose: str) -> int:
    with _LOCK:
        key = (device.index, purpose)
        if key not in _HANDLES:
            device.core.set_current()
            _HANDLES[key] = library().create_handle()
        return _HANDLES[key]


def parse_plan(name: str) -> tuple[int, str]:
    """Return engine and knobs of the plan that the library calls ``"eng41_k2=0_k13=1"``: 41, ``"tile_size:0,tilek:1"``.

    Raises
    ------
    LibraryError
        If the name has another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise LibraryError(f"the plan's name '{name}' has no engine and knobs")
    knobs = [(int(number), value) for number, value in _KNOB.findall(match["knobs"])]
    return int(match["engine"]), ",".join(
        f"{KNOBS.get(number, f'k{number}')}:{value}" for number, value in knobs
    )


def plan_name(engine: int, knobs: str) -> str:
    """Return what the library calls the plan; ``parse_plan`` undoes it."""
    numbers = {name: number for number, name in KNOBS.items()}
    pairs = _pairs(knobs)
    return "".join(
        [f"eng{engine}", *(f"_k{numbers.get(k) or int(k.removeprefix('k'))}={v}" for k, v in pairs)]
    )


def _pairs(knobs: str) -> list[tuple[str, int]]:
    try:
        return [(name, int(value)) for name, _, value in (k.partition(":") for k in knobs.split(",") if k)]
    except ValueError as error:
        raise LibraryError(f"knobs '{knobs}' are not of the form name:number,name:number") from error


def _strides(dims: Sequence[int]) -> list[int]:
    return [math.prod(dims[i + 1 :]) for i in range(len(dims))]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


_LOCK = threading.Lock()
_BUILDING = threading.RLock()
"""Held while the handle for building is in use: the library's handles are for one thread at a time."""
_HANDLES: dict[tuple[int, str], int] = {}
