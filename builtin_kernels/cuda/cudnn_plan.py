"""Graphs described to cuDNN, and their execution plans; the library is imported when first needed."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from tactician.errors import TacticError

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
"""The library's names of the element types that are handed to it."""

WORKSPACE_LIMIT = 1 << 28
"""Scratch memory, in bytes, that a plan may ask for."""

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


class PlanGraph(ABC):
    """Operators described to the library, and the plans that its heuristics propose for them.

    Parameters
    ----------
    dtype
        Element type of the tensors: one of ``DTYPES``.
    context
        Where plans will run, as ``cudnn.pygraph`` takes it: a handle.

    Raises
    ------
    LibraryError
        If the library has no plan.
    """

    what: ClassVar[str]
    """What is described, for messages."""

    def __init__(self, dtype: str, context: Mapping[str, Any]) -> None:
        self._cudnn = cudnn = library()
        self._kind = getattr(cudnn.data_type, DTYPES[dtype])
        with _BUILDING:
            self._graph = cudnn.pygraph(
                io_data_type=self._kind,
                intermediate_data_type=cudnn.data_type.FLOAT,
                compute_data_type=cudnn.data_type.FLOAT,
                **context,
            )
            try:
                self._describe()
                self._graph.validate()
                self._graph.build_operation_graph()
                self._graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
                self._filter()
            except (
                Exception
            ) as error:  # the frontend has an exception class of its own and plain RuntimeErrors
                raise LibraryError(f"cuDNN has no plan for this {self.what}: {_first_line(error)}") from error
        names = (self._graph.get_plan_name_at_index(i) for i in range(self._graph.get_execution_plan_count()))
        self._indices = {name: i for i, name in reversed(list(enumerate(names)))}
        self._workspaces: dict[str, int] = {}
        self._written: dict[str, bytes] = {}

    @abstractmethod
    def _describe(self) -> None:
        """Add tensors and operators to the graph."""

    @abstractmethod
    def _filter(self) -> None:
        """Leave out the plans that may not be used."""

    def _tensor(self, uid: int, dims: Sequence[int], strides: Sequence[int]) -> Any:
        return self._graph.tensor(uid=uid, dim=list(dims), stride=list(strides), data_type=self._kind)

    def _output(self, tensor: Any, uid: int, dims: Sequence[int], strides: Sequence[int]) -> None:
        made = tensor.set_output(True).set_uid(uid).set_data_type(self._kind)
        made.set_dim(list(dims)).set_stride(list(strides))

    def _notes(self, *names: str) -> list[Any]:
        return [getattr(self._cudnn.numerical_note, name) for name in names]

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
            # some plans are compiled when they are built, which takes seconds
            nbytes = self._workspaces[name] if name in self._workspaces else self._build(name, engine, knobs)
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
            nbytes = int(self._graph.get_workspace_size_plan_at_index(index))
            # only the plan that was built last can be written: later it would have to be built once more
            self._written[name] = bytes(self._graph.serialize())
        except Exception as error:  # as above
            raise LibraryError(f"cuDNN refuses the plan {name}: {_first_line(error)}") from error
        self._workspaces[name] = nbytes
        return nbytes

    def serialized(self, engine: int, knobs: str) -> bytes:
        """Build a plan and return it as bytes, its compiled kernels included."""
        name = plan_name(engine, knobs)
        with _BUILDING:
            if name not in self._written:
                self._build(name, engine, knobs)
            return self._written[name]

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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


_LOCK = threading.Lock()
_BUILDING = threading.RLock()
"""Held while the handle for building is in use: the library's handles are for one thread at a time."""
_HANDLES: dict[tuple[int, str], int] = {}
