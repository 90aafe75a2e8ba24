"""What cuDNN is asked for, by a frontend that computes what the graph says, and by the library itself where it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from attention_cases import SMALL as SMALL_ATTENTION
from conv_nhwc_cases import DEPTHWISE, ConvCase
from conv_nhwc_cases import SMALL as SMALL_NHWC
from convolution_cases import CONVOLUTIONS, conv
from hypothesis import given
from hypothesis import strategies as st
from memory_bound_cases import Case
from signatures import make_signature
from tactician.builtin_kernels.cuda import (
    cudnn_attention,
    cudnn_conv,
    cudnn_conv_graph,
    cudnn_memory,
    cudnn_plan,
)
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, conv_problem
from tactician.builtin_kernels.cuda.cudnn_attention import CudnnAttention
from tactician.builtin_kernels.cuda.cudnn_conv import CudnnConv
from tactician.builtin_kernels.cuda.cudnn_conv_graph import ConvGraph
from tactician.builtin_kernels.cuda.cudnn_plan import (
    KNOBS,
    LibraryError,
    parse_plan,
    plan_name,
)
from tactician.builtin_kernels.nhwc import CONV as NHWC_CONV
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Artifacts

Array = np.ndarray[Any, Any]

PLANS = ("eng44_k2=12_k18=0", "eng0", "eng7_k3=1", "eng9_k2=2")
"""What the fake library proposes; it refuses the third, and the last takes more memory than is given."""


class FakeTensor:
    """A tensor of a graph."""

    def __init__(self, dim: list[int], stride: list[int], uid: int, **_: Any) -> None:
        self.dim, self.stride, self.uid = dim, stride, uid

    def set(self, *_: Any) -> FakeTensor:
        return self

    set_output = set_data_type = set

    def set_stride(self, stride: list[int]) -> FakeTensor:
        self.stride = stride
        return self

    def view(self, array: Array) -> Array:
        """Return the elements of ``array`` that this tensor is, in its own order of dimensions."""
        flat = array.reshape(-1)
        assert sum((d - 1) * s for d, s in zip(self.dim, self.stride, strict=True)) == flat.size - 1
        steps = [s * flat.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.dim, steps)

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
        return self.made()

    def add(self, y: FakeTensor, bias: FakeTensor) -> FakeTensor:
        self.bias = True
        return self.made()

    def sdpa(self, q: FakeTensor, k: FakeTensor, v: FakeTensor, **options: Any) -> tuple[FakeTensor, None]:
        self.options = options
        return self.made(), None

    def made(self) -> FakeTensor:
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
        key = len(self.stored).to_bytes(4)
        self.stored[key] = self
        return list(key)

    def deserialize(self, handle: int, data: list[int]) -> None:
        assert handle == 17
        self.tensors, self.options, self.bias, self.result = (
            getattr(self.stored[bytes(data)], name) for name in ("tensors", "options", "bias", "result")
        )

    def _execute(self, arrays: dict[int, Array], workspace: int, handle: int) -> None:
        """Compute; the addresses are the arrays themselves."""
        given = {uid: tensor.view(arrays[uid]) for uid, tensor in self.tensors.items()}
        y = self._attention(given) if "attn_scale" in self.options else self._convolution(given)
        self.result.view(arrays[self.result.uid])[...] = y

    def _convolution(self, given: dict[int, Array]) -> Array:
        x, w, told = given[cudnn_conv_graph.X], given[cudnn_conv_graph.W], self.options
        attributes = {
            "pads": told["pre_padding"] + told["post_padding"],
            "strides": told["stride"],
            "dilations": told["dilation"],
            "group": x.shape[1] // w.shape[1],
        }
        (y,) = reference_for(make_signature("Conv", [x, w], attributes))([x, w])
        return y + given[cudnn_conv_graph.BIAS] if self.bias else y

    def _attention(self, given: dict[int, Array]) -> Array:
        q, k, v = (
            given[uid].astype(np.float64) for uid in (cudnn_attention.Q, cudnn_attention.K, cudnn_attention.V)
        )
        k, v = (np.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
        scores = self.options["attn_scale"] * q @ k.swapaxes(2, 3)
        if self.options["diagonal_band_right_bound"] is not None:
            assert self.options["diagonal_band_right_bound"] == 0
            scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v


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


@pytest.fixture(scope="module", autouse=True)
def _operators() -> None:
    load_plugins(BuilderConfig(plugins=("builtin",)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    for module in (cudnn_conv, cudnn_attention, cudnn_plan):
        monkeypatch.setattr(module, "library", lambda: FRONTEND)
        monkeypatch.setattr(module, "handle", lambda device: 17)
        monkeypatch.setattr(module, "build_handle", lambda device: 18)
    monkeypatch.setattr(cudnn_memory, "library", lambda: FRONTEND)
    memory = tmp_path_factory.mktemp("plans")
    monkeypatch.setattr(cudnn_memory, "folder", lambda: memory)
    cudnn_memory._asked.clear()
    graphs = cudnn_conv._graph, cudnn_attention._graph
    for graph in graphs:
        graph.cache_clear()
    yield SimpleNamespace(
        name="GPU",
        facts={"driver": "1.0", "arch": "sm_90a"},
        index=0,
        core=SimpleNamespace(set_current=lambda: None),
        artifacts=Artifacts(),
    )
    for graph in graphs:
        graph.cache_clear()


def problem_of(case: Case) -> ConvProblem | str:
    return conv_problem(make_signature(case.op, case.inputs, case.attributes))


NHWC = [*SMALL_NHWC, *(case for case in DEPTHWISE if case.dtype != np.float64)]
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


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in NHWC if c.shape[0]])
def test_the_graph_of_channels_last_tensors(device: Any, case: ConvCase) -> None:
    inputs = case.inputs()
    signature = make_signature(NHWC_CONV, inputs, case.attributes, version=1)
    tactic = next(iter(CudnnConv.candidates(signature, device)))
    assert tactic.decline(signature, device) is None
    output = np.full(signature.outputs[0].dims, np.nan, case.dtype)  # type: ignore[union-attr]  # is there
    tensors = [SimpleNamespace(pointer=a) for a in (*inputs, output)]
    tactic.prepare(signature, device)(tensors[:-1], tensors[-1:], None, SimpleNamespace(handle=99))
    (wanted,) = reference_for(signature)([a.astype(np.float64) for a in inputs])
    error = np.linalg.norm(output.astype(np.float64) - wanted)
    assert error <= 1e-2 * np.linalg.norm(wanted)


def attention_calls() -> list[Any]:
    """Return the calls that need no mask."""
    return [
        pytest.param(case, id=str(case))
        for case in SMALL_ATTENTION
        if len(case.inputs) == 3 and not case.attributes.get("softcap") and case.inputs[0].size  # type: ignore[union-attr]  # is there
    ]


@pytest.mark.parametrize("case", attention_calls())
def test_the_graph_means_the_attention(device: Any, case: Case) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    tactics = list(CudnnAttention.candidates(signature, device))
    assert [(t.engine, t.knobs) for t in tactics] == [(44, "tile_size:12,idx_mode:0"), (0, "")]
    assert tactics[0].decline(signature, device) is None
    assert tactics[0].workspace(signature, device) == 512
    operands: list[Any] = [a for a in case.inputs if a is not None]
    output = np.full(signature.outputs[0].dims, np.nan, operands[0].dtype)  # type: ignore[union-attr]  # is there
    tensors = [SimpleNamespace(pointer=a) for a in (*operands, output)]
    tactics[0].prepare(signature, device)(tensors[:-1], tensors[-1:], None, SimpleNamespace(handle=99))
    (wanted,) = reference_for(signature)([a.astype(np.float64) for a in operands])
    error = np.linalg.norm(output.astype(np.float64) - wanted)
    assert error <= 1e-2 * np.linalg.norm(wanted)
    few = case.inputs[0].shape[-2] < 64  # type: ignore[union-attr]  # is there
    assert tactics[0].numerics(signature) == ({"nondeterministic"} if few else set())


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in SMALL_ATTENTION if len(c.inputs) > 3])
def test_attention_with_a_mask_is_left_to_others(device: Any, case: Case) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    (tactic,) = CudnnAttention.candidates(signature, device)
    assert "masks other than the causal one" in str(tactic.decline(signature, device))


def test_a_plan_is_built_once(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = FakeGraph.build_plan_at_index

    def counted(graph: FakeGraph, index: int) -> None:
        built.append(index)
        build(graph, index)

    monkeypatch.setattr(FakeGraph, "build_plan_at_index", counted)
    signature = make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes)
    first, second = list(CudnnConv.candidates(signature, device))[:2]
    for tactic in (first, second):
        assert tactic.decline(signature, device) is None
        tactic.workspace(signature, device)
    assert len(built) == 2 * len(PLANS)  # without and with tf32
    for tactic in (second, first):
        tactic.prepare(signature, device)
    assert len(built) == 2 * len(PLANS), "each was written when it was built"


@pytest.mark.parametrize("tactic", [CudnnConv, CudnnAttention])
def test_what_was_proposed_once_is_remembered(
    device: Any, monkeypatch: pytest.MonkeyPatch, tactic: Any
) -> None:
    module = cudnn_conv if tactic is CudnnConv else cudnn_attention
    case = SERVED[0] if tactic is CudnnConv else next(c for c in SMALL_ATTENTION if len(c.inputs) == 3)
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    first = list(tactic.candidates(signature, device))
    cudnn_memory._asked.clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(module, "_graph", None)  # nothing is asked of the library
        again = list(tactic.candidates(signature, device))
        assert again == first
        assert [t.decline(signature, device) for t in again] == [None] * len(first)
        assert again[0].workspace(signature, device) == 512
    device.facts["driver"] = "2.0"
    asked: list[Any] = []
    graph = module._graph
    monkeypatch.setattr(module, "_graph", lambda *a: asked.append(a) or graph(*a))
    assert list(tactic.candidates(signature, device)) == first
    assert asked, "another driver is asked"


def test_a_memory_that_can_not_be_read_is_as_good_as_none(device: Any) -> None:
    signature = make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes)
    first = list(CudnnConv.candidates(signature, device))
    for path in cudnn_memory.folder().iterdir():
        path.write_text("{broken")
    cudnn_memory._asked.clear()
    assert list(CudnnConv.candidates(signature, device)) == first


def test_that_there_is_no_plan_is_not_remembered(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeGraph) -> None:
        raise RuntimeError("out of memory")

    signature = make_signature("Conv", SERVED[0].inputs, SERVED[0].attributes)
    with monkeypatch.context() as patch:
        patch.setattr(FakeGraph, "validate", fail)
        tactic, *_ = CudnnConv.candidates(signature, device)
        assert "out of memory" in str(tactic.decline(signature, device))
    cudnn_memory._asked.clear()
    assert len(list(CudnnConv.candidates(signature, device))) > 2


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
