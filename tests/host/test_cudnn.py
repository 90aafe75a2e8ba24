"""What cuDNN is asked for, by a frontend that computes what the graph says, and by the library itself where it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from convolution_cases import CONVOLUTIONS, conv
from hypothesis import given
from hypothesis import strategies as st
from memory_bound_cases import Case
from signatures import make_signature
from tactician.builtin_kernels.cuda import cudnn_conv, cudnn_plan
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, conv_problem
from tactician.builtin_kernels.cuda.cudnn_conv import CudnnConv
from tactician.builtin_kernels.cuda.cudnn_plan import (
    KNOBS,
    ConvGraph,
    LibraryError,
    parse_plan,
    plan_name,
)
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Artifacts

Array = np.ndarray[Any, Any]

PLANS = ("eng44_k2=12_k18=0", "eng0", "eng7_k3=1", "eng9_k2=2")
"""What the fake library proposes; it refuses the third, and the last takes more memory than is given."""


class FakeTensor:
    """A tensor of a graph."""

    def __init__(self, dim: list[int], stride: list[int], uid: int, **_: Any) -> None:
        assert stride == [int(np.prod(dim[i + 1 :])) for i in range(len(dim))]
        self.dim, self.uid = dim, uid

    def set(self, *_: Any) -> FakeTensor:
        return self

    set_output = set_data_type = set_stride = set

    def set_uid(self, uid: int) -> FakeTensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> FakeTensor:
        self.dim = dim
        return self


class FakeGraph:
    """A graph that computes a convolution with ONNX's reference, from nothing but what it was told."""

    stored: dict[bytes, FakeGraph] = {}  # noqa: RUF012  # by serialized form

    def __init__(self, **context: Any) -> None:
        self.tensors: dict[int, FakeTensor] = {}
        self.bias = False
        self.notes: list[str] = []

    def tensor(self, **options: Any) -> FakeTensor:
        made = self.tensors[options["uid"]] = FakeTensor(**options)
        return made

    def conv_fprop(self, x: FakeTensor, w: FakeTensor, **options: list[int]) -> FakeTensor:
        self.options = options
        return FakeTensor([], [], 0)

    def add(self, y: FakeTensor, bias: FakeTensor) -> FakeTensor:
        self.bias = True
        self.result = FakeTensor([], [], 0)
        return self.result

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        self.notes += [f"-{n}" for n in notes]

    def select_numeric_notes(self, notes: list[str]) -> None:
        self.notes += notes

    def ignore(self, *_: Any) -> None:
        """Do nothing."""

    validate = build_operation_graph = create_execution_plans = ignore

    def get_execution_plan_count(self) -> int:
        return len(PLANS)

    def get_plan_name_at_index(self, index: int) -> str:
        return PLANS[index]

    def create_execution_plan(self, engine: int, knobs: dict[str, int]) -> None:
        raise RuntimeError(f"no engine {engine} with {knobs}\nsecond line")

    def build_plan_at_index(self, index: int) -> None:
        if index == 2:
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nof no use to anybody")

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return (512, 0, 0, 1 << 40)[index]

    def serialize(self) -> list[int]:
        key = bytes([len(self.stored)])
        self.stored[key] = self
        return list(key)

    def deserialize(self, handle: int, data: list[int]) -> None:
        assert handle == 17
        self.tensors, self.options, self.bias = (
            getattr(self.stored[bytes(data)], name) for name in ("tensors", "options", "bias")
        )

    def _execute(self, arrays: dict[int, Array], workspace: int, handle: int) -> None:
        """Compute; the addresses are the arrays themselves."""
        x, w = (arrays[u].reshape(self.tensors[u].dim) for u in (cudnn_plan.X, cudnn_plan.W))
        told = self.options
        attributes = {
            "pads": told["pre_padding"] + told["post_padding"],
            "strides": told["stride"],
            "dilations": told["dilation"],
            "group": x.shape[1] // w.shape[1],
        }
        signature = make_signature("Conv", [x, w], attributes)
        (y,) = reference_for(signature)([x, w])
        if self.bias:
            y = y + arrays[cudnn_plan.BIAS].reshape(self.tensors[cudnn_plan.BIAS].dim)
        arrays[cudnn_plan.Y][...] = y.reshape(arrays[cudnn_plan.Y].shape)


class _Names:
    def __getattr__(self, name: str) -> str:
        return name


FRONTEND = SimpleNamespace(
    data_type=_Names(),
    heur_mode=_Names(),
    numerical_note=_Names(),
    knob_type=SimpleNamespace(__members__={"TILE_SIZE": "tile", "IDX_MODE": "index"}),
    pygraph=FakeGraph,
    backend_version=lambda: 91900,
    set_stream=lambda handle, stream: None,
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (cudnn_conv, cudnn_plan):
        monkeypatch.setattr(module, "library", lambda: FRONTEND)
    monkeypatch.setattr(cudnn_conv, "handle", lambda device: 17)
    monkeypatch.setattr(cudnn_conv, "build_handle", lambda device: 18)
    graphs = cudnn_conv._graph
    graphs.cache_clear()
    yield SimpleNamespace(
        name="GPU",
        facts={"driver": "1.0", "arch": "sm_90a"},
        index=0,
        core=SimpleNamespace(set_current=lambda: None),
        artifacts=Artifacts(),
    )
    graphs.cache_clear()


def problem_of(case: Case) -> ConvProblem | str:
    return conv_problem(make_signature(case.op, case.inputs, case.attributes))


SERVED = [
    c
    for c in CONVOLUTIONS
    if isinstance(p := problem_of(c), ConvProblem) and not p.is_empty and p.dtype == "float32"
]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(SERVED)])
def test_the_graph_means_the_convolution(device: Any, case: Case) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes)
    tactics = list(CudnnConv.candidates(signature, device))
    assert [(t.engine, t.knobs, t.tf32) for t in tactics] == [
        (engine, knobs, tf32)
        for tf32 in (False, True)
        for engine, knobs in ((44, "tile_size:12,idx_mode:0"), (0, ""))
    ]
    tactic = tactics[0]
    assert tactic.decline(signature, device) is None
    assert tactic.workspace(signature, device) == 512
    operands: list[Any] = [a for a in case.inputs if a is not None]
    output = np.full(signature.outputs[0].dims, np.nan, np.float32)  # type: ignore[union-attr]  # is there
    tensors = [SimpleNamespace(pointer=a) for a in (*operands, output)]
    tactic.prepare(signature, device)(tensors[:-1], tensors[-1:], None, SimpleNamespace(handle=99))
    (wanted,) = reference_for(signature)([a.astype(np.float64) for a in operands])
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)


def test_a_stored_plan_needs_no_heuristics(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes)
    tactic = CudnnConv(44, "tile_size:12,idx_mode:0")
    tactic.prepare(signature, device)
    monkeypatch.setattr(cudnn_conv, "_graph", None)
    tactic.prepare(signature, device)


@pytest.mark.parametrize(
    ("dtype", "tf32", "selected", "deselected"),
    [
        (np.float32, False, set(), {"-TENSOR_CORE", "-DOWN_CONVERT_INPUTS"}),
        (np.float32, True, {"TENSOR_CORE"}, set()),
        (np.float16, False, set(), {"-WINOGRAD", "-WINOGRAD_TILE_4x4"}),
    ],
)
def test_numerics_are_never_mixed(
    device: Any, dtype: Any, tf32: bool, selected: set[str], deselected: set[str]
) -> None:
    problem = problem_of(conv((1, 4, 5, 5), (4, 4, 3, 3), np.dtype(dtype)))
    assert isinstance(problem, ConvProblem)
    notes = set(ConvGraph(problem, tf32, {})._graph.notes)
    assert {n for n in notes if not n.startswith("-")} == selected
    assert deselected < notes
    assert {"-NONDETERMINISTIC", "-FFT"} < notes
    assert CudnnConv(tf32=tf32).numerics(make_signature("Conv", SERVED[0].inputs)) == (
        {"tf32"} if tf32 else set()
    )


@pytest.mark.parametrize(
    ("tactic", "words"),
    [
        (CudnnConv(3), "cuDNN refuses the plan eng3: no engine 3"),
        (CudnnConv(3, "tilek:1"), "the frontend can't set tilek"),
        (CudnnConv(3, "tile_size"), "not of the form"),
        (CudnnConv(7, "k3:1"), "CUDNN_STATUS_NOT_SUPPORTED"),
        (CudnnConv(9, "tile_size:2"), "bytes of scratch memory"),
    ],
)
def test_refused_plans_say_why(device: Any, tactic: CudnnConv, words: str) -> None:
    reason = tactic.decline(make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes), device)
    assert words in str(reason)
    assert "\n" not in str(reason)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (conv((1, 4, 5, 5), (4, 4, 3, 3), np.dtype(np.float64)), "float64"),
        (conv((0, 3, 5, 5), (4, 3, 3, 3)), "no output"),
    ],
)
def test_declines(device: Any, case: Case, words: str) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes)
    (tactic,) = CudnnConv.candidates(signature, device)
    assert words in str(tactic.decline(signature, device))


def test_tf32_is_for_float32(device: Any) -> None:
    case = conv((1, 4, 5, 5), (4, 4, 3, 3), np.dtype(np.float16))
    signature = make_signature(case.op, case.inputs, case.attributes)
    assert "float16" in str(CudnnConv(tf32=True).decline(signature, device))
    assert not any(t.tf32 for t in CudnnConv.candidates(signature, device))


def test_without_driver_or_library(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes)
    bare: Any = SimpleNamespace(facts={"driver": ""})
    assert "driver" in str(CudnnConv().decline(signature, bare))

    def missing() -> None:
        raise LibraryError("cuDNN can't be loaded; install it")

    monkeypatch.setattr(cudnn_conv, "library", missing)
    (tactic,) = CudnnConv.candidates(signature, device)
    assert tactic.decline(signature, device) == "cuDNN can't be loaded; install it"


@given(
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 99)), unique_by=lambda k: k[0], max_size=6),
)
def test_names_of_plans_round_trip(engine: int, knobs: list[tuple[int, int]]) -> None:
    name = "".join([f"eng{engine}", *(f"_k{k}={v}" for k, v in knobs)])
    assert plan_name(*parse_plan(name)) == name


def test_names_of_plans_are_words_where_they_can_be() -> None:
    assert parse_plan("eng41_k2=0_k13=-1_k99=7") == (41, "tile_size:0,tilek:-1,k99:7")
    assert len(set(KNOBS.values())) == len(KNOBS)
    with pytest.raises(LibraryError, match="no engine"):
        parse_plan("engine 4")


H200 = """{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
"multiProcessorCount": 132, "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
"reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
"maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "smClockRateKHz": 1980000,
"memClockRateKHz": 3201000, "l2CacheSize": 62914560, "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000,
"totalGlobalMem": 150754820096, "cudaDeviceId": 0}"""
"""What the library wants to know of a GPU that is not there."""


class TestWithTheLibrary:
    """Plans are made without a GPU, for the description of one."""

    @pytest.fixture
    def context(self) -> dict[str, Any]:
        cudnn = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
        return {"device_property": cudnn.create_device_properties(H200), "sm_version": 90}

    @pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(CONVOLUTIONS)])
    def test_there_are_plans(self, context: dict[str, Any], case: Case) -> None:
        problem = problem_of(case)
        assert isinstance(problem, ConvProblem)
        if problem.dtype not in cudnn_plan.DTYPES or problem.is_empty:
            return
        graph = ConvGraph(problem, False, context)
        proposals = list(graph.proposals(3))
        assert proposals
        for engine, knobs in proposals:
            assert graph.build(engine, knobs) <= cudnn_plan.WORKSPACE_LIMIT
            assert graph.serialized(engine, knobs)

    def test_settings_can_be_given(self, context: dict[str, Any]) -> None:
        problem = problem_of(conv((1, 64, 28, 28), (64, 64, 3, 3), pads=[1, 1, 1, 1]))
        assert isinstance(problem, ConvProblem)
        engine, knobs = next(p for p in ConvGraph(problem, False, context).proposals(8) if p[1])
        fresh = ConvGraph(problem, False, context)
        fresh._indices.clear()
        assert fresh.build(engine, knobs) >= 0
        with pytest.raises(LibraryError, match="refuses"):
            fresh.build(999, "")
