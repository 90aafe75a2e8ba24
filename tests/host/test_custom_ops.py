"""Custom operators of one file, from the model to the outputs: attributes, optional values, shapes, bodies, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from tactician import BuilderConfig, Engine, Network, Session, TensorType, build
from tactician.errors import (
    InvalidModelError,
    NoTacticError,
    ShapeError,
    UnknownOpError,
)
from tactician.importer import import_model
from tactician.network import signatures
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.signature import Blob, OpSignature
from tactician.tactics.record import Outcome

PLUGIN = '''
import json, os
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from tactician import Op, Tactic, TensorType, hookimpl

LOG = Path(__file__).with_suffix(".log")


def note(stage, signature):
    """Write down what reached a stage; Blob and tuples are told apart by their text."""
    seen = {name: repr(value) for name, value in signature.attributes}
    with LOG.open("a") as file:
        file.write(json.dumps([stage, os.getpid(), seen]) + "\\n")


def probe_infer(signature):
    note("infer", signature)
    return [signature.inputs[0]]


def probe_reference(signature, x):
    note("reference", signature)
    return x + x.dtype.type(signature.attribute("i", 1))


def take_infer(signature):
    x, count = signature.inputs[0], signature.known(1)
    return [TensorType(x.dtype, (None if count is None else int(count.reshape(())), *x.shape[1:]))]


def split_infer(signature):
    x = signature.inputs[0]
    return [x, x, TensorType("int64", ())]


def split_reference(signature, x, shift=None):
    y = x if shift is None else x + shift
    return np.maximum(y, 0), np.minimum(y, 0), np.array((y > 0).sum(), np.int64)


PROBE = Op("custom::Probe", probe_infer, probe_reference)
TAKE = Op("custom::Take", take_infer, lambda signature, x, count: x[: int(count.reshape(()))])
SPLIT = Op("custom::Split", split_infer, split_reference)
POSITIVE = Op(
    "custom::Positive",
    lambda signature: [TensorType(signature.inputs[0].dtype, ("positives",))],
    lambda signature, x: x[x > 0],
)


@dataclass(frozen=True)
class OwnProbe(Tactic):
    op = PROBE.name
    target = "cpu"

    def prepare(self, signature, device):
        note("prepare", signature)
        shift = np.float32(signature.attribute("i", 1))

        def launch(inputs, outputs, workspace, stream):
            np.add(inputs[0], shift, out=outputs[0])

        return launch


@dataclass(frozen=True)
class OwnTake(Tactic):
    op = TAKE.name
    target = "cpu"

    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            taken = inputs[0][: int(inputs[1].reshape(()))]
            if outputs[0] is None:
                return [taken]
            np.copyto(outputs[0], taken)

        return launch


@dataclass(frozen=True)
class OwnSplit(Tactic):
    """Shifts into the workspace, then writes the outputs that are there."""

    op = SPLIT.name
    target = "cpu"

    def decline(self, signature, device):
        return None if signature.is_static else "needs static shapes"

    def workspace(self, signature, device):
        return signature.inputs[0].nbytes

    def prepare(self, signature, device):
        x = signature.inputs[0]

        def launch(inputs, outputs, workspace, stream):
            assert (workspace is None) == (x.nbytes == 0)
            scratch = np.empty(0, np.uint8) if workspace is None else workspace
            assert scratch.nbytes >= x.nbytes and len(inputs) == len(signature.inputs)
            y = scratch[: x.nbytes].view(x.numpy_dtype).reshape(x.dims)
            shift = inputs[1] if len(inputs) > 1 else None
            np.copyto(y, inputs[0]) if shift is None else np.add(inputs[0], shift, out=y)
            first, second, third = (*outputs, None, None)[:3]
            if first is not None:
                np.maximum(y, 0, out=first)
            if second is not None:
                np.minimum(y, 0, out=second)
            if third is not None:
                third[...] = np.count_nonzero(y > 0)

        return launch


@dataclass(frozen=True)
class OwnPositive(Tactic):
    op = POSITIVE.name
    target = "cpu"

    def prepare(self, signature, device):
        return lambda inputs, outputs, workspace, stream: [inputs[0][inputs[0] > 0]]


@hookimpl
def ops():
    return [PROBE, TAKE, SPLIT, POSITIVE]


@hookimpl
def tactics():
    return [OwnProbe, OwnTake, OwnSplit, OwnPositive]
'''

Run = Callable[..., "Ran"]


class Ran:
    """What a build and a run of its saved engine came to."""

    def __init__(self, engine: Engine, outputs: dict[str, Any]) -> None:
        self.engine, self.outputs = engine, outputs
        self.types = {
            s.node: [None if t is None else str(TensorType(t[0], t[1])) for t in s.signature["outputs"]]
            for s in engine.plan.steps
        }
        self.tactics = {s.node: s.tactic for s in engine.plan.steps}


def parse(body: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 9, opset_import: ["": 18, "custom": 1, "own": 1]> {body}')


def random(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "custom.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def run(plugin: Path, tmp_path: Path) -> Run:
    """Build with the custom operators' own tactics, save, load, run."""

    def build_and_run(model: Any, feeds: dict[str, Any], **options: Any) -> Ran:
        options = {"sources": ("-reference",)} | options
        config = BuilderConfig(target="cpu", plugins=(str(plugin), "builtin"), **options)
        engine = build(parse(model) if isinstance(model, str) else model, config)
        engine.save(tmp_path / "model.tactician")
        session = Session(tmp_path / "model.tactician", plugins=[str(plugin), "builtin"])
        return Ran(engine, session.run(feeds))

    return build_and_run


TENSOR = numpy_helper.from_array(np.array([1.5, -2.5], np.float16), "t")
TYPE = helper.make_tensor_type_proto(TensorProto.FLOAT16, [2, "N"])
GRAPH = parser.parse_graph("body (float[3] a) => (float[3] b) { b = Neg(a) }")
SPARSE = helper.make_sparse_tensor(
    numpy_helper.from_array(np.array([3.0], np.float32), "v"),
    numpy_helper.from_array(np.array([1]), "i"),
    [4],
)
PLAIN = {
    "i": (-(1 << 40), -(1 << 40)),
    "f": (0.1, float(np.float32(0.1))),
    "s": ("naïve \n text", "naïve \n text"),
    "none": ("", ""),
    "ints": ([3, -1, 1 << 40], (3, -1, 1 << 40)),
    "floats": ([0.5, float("inf"), -1e-38], (0.5, float("inf"), float(np.float32(-1e-38)))),
    "strings": (["a", "", "é"], ("a", "", "é")),
}
"""Attributes that a signature has as plain values: what is written, what is read."""
MESSAGES: dict[str, tuple[Any, str]] = {
    "t": (TENSOR, "tensor"),
    "tensors": ([TENSOR, TENSOR], "tensors"),
    "tp": (TYPE, "type_proto"),
    "type_protos": ([TYPE], "type_protos"),
    "g": (GRAPH, "graph"),
    "graphs": ([GRAPH, GRAPH], "graphs"),
}
"""Those that it has as a Blob of serialized messages, with its kind."""


def probe_model(attributes: dict[str, Any]) -> onnx.ModelProto:
    model = parse("g (float[3] x) => (y) { [probe] y = custom.Probe(x) }")
    model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return model


class TestAttributes:
    def test_every_kind_reaches_every_stage_also_in_the_worker_process(self, run: Run, plugin: Path) -> None:
        written = {name: value for name, (value, _) in (PLAIN | MESSAGES).items()}
        x = random(3)
        ran = run(probe_model(written), {"x": x}, isolate=True, use_timing_cache=False, sources=())
        shift = np.float32(PLAIN["i"][1])
        np.testing.assert_allclose(ran.outputs["y"], x + shift, rtol=1e-6)
        log = [json.loads(line) for line in plugin.with_suffix(".log").read_text().splitlines()]
        assert {stage for stage, _, _ in log} == {"infer", "reference", "prepare"}
        other_processes = {pid for stage, pid, _ in log if stage == "prepare"} - {os.getpid()}
        assert len(other_processes) == 1
        ((_, signature),) = signatures(import_model(probe_model(written), None, self.ops(plugin))).items()
        expected = {name: repr(value) for name, value in signature.attributes}
        graphs = {"g", "graphs"}  # whose nodes are given names on the way
        for _, _, seen in log:
            assert seen.keys() == expected.keys()
            assert {k: v for k, v in seen.items() if k not in graphs} == {
                k: v for k, v in expected.items() if k not in graphs
            }
            assert all("Neg" in seen[name] for name in graphs)

    @staticmethod
    def ops(plugin: Path) -> Any:
        return load_plugins(BuilderConfig(plugins=(str(plugin), "builtin"))).ops

    def signature(self, plugin: Path, attributes: dict[str, Any]) -> OpSignature:
        return signatures(import_model(probe_model(attributes), None, self.ops(plugin)))["probe"]

    @pytest.mark.parametrize("name", PLAIN)
    def test_plain_ones_are_values(self, plugin: Path, name: str) -> None:
        written, read = PLAIN[name]
        signature = self.signature(plugin, {name: written})
        assert signature.attribute(name) == read
        assert type(signature.attribute(name)) is type(read)
        assert OpSignature.from_plain(json.loads(json.dumps(signature.to_plain()))) == signature

    @pytest.mark.parametrize("name", MESSAGES)
    def test_the_others_are_serialized_messages(self, plugin: Path, name: str) -> None:
        written, kind = MESSAGES[name]
        signature = self.signature(plugin, {name: written})
        messages = written if isinstance(written, list) else [written]
        blob = signature.attribute(name)
        assert isinstance(blob, Blob)
        assert blob.kind == kind
        assert len(blob.data) == len(messages)
        for data, message in zip(blob.data, messages, strict=True):
            read = type(message).FromString(data)
            if isinstance(message, onnx.TensorProto):
                np.testing.assert_array_equal(numpy_helper.to_array(read), numpy_helper.to_array(message))
            elif isinstance(message, onnx.GraphProto):
                assert [n.op_type for n in read.node] == ["Neg"]
            else:
                assert read == message
        assert OpSignature.from_plain(json.loads(json.dumps(signature.to_plain()))) == signature

    @pytest.mark.parametrize("value", [SPARSE, [SPARSE]], ids=["one", "several"])
    def test_sparse_tensors_are_refused(self, plugin: Path, value: Any) -> None:
        with pytest.raises(
            InvalidModelError, match=r"Probe 'probe': attribute 'w' is a sparse tensor.*dense"
        ):
            self.signature(plugin, {"w": value})

    def test_nodes_that_differ_in_an_attribute_alone_are_two_calls(self, plugin: Path) -> None:
        keys = {
            self.signature(plugin, {"t": numpy_helper.from_array(np.float32(v), "t")}).key for v in (1, 2)
        }
        assert len(keys) == 2

    def test_those_of_a_network_written_in_python(self, run: Run) -> None:
        net = Network()
        x = net.input("x", "float32", (3,))
        y = net.op("Probe", x, domain="custom", i=7, fs=[0.5, 2.0], words=["a", "b"], name="probe")
        net.output(y, "y")
        ran = run(net, {"x": random(3)})
        (step,) = ran.engine.plan.steps
        signature = OpSignature.from_plain(step.signature)
        assert signature.attributes == (("fs", (0.5, 2.0)), ("i", 7), ("words", ("a", "b")))
        np.testing.assert_allclose(ran.outputs["y"], random(3) + 7, rtol=1e-6)


def split(x: Any, shift: Any = 0) -> tuple[Any, Any, int]:
    y = x + np.float32(shift)
    return np.maximum(y, 0), np.minimum(y, 0), int((y > 0).sum())


class TestOptionalValues:
    @pytest.mark.parametrize("names", ["a, b, c", "a, , c", ", b", ", , c", "a"])
    def test_outputs_that_nobody_wants_are_absent(self, run: Run, names: str) -> None:
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        x = random(4, 5)
        model = f"g (float[4, 5] x) => ({', '.join(wanted)}) {{ [split] {names} = custom.Split(x) }}"
        ran = run(model, {"x": x})
        for name, value in zip("abc", split(x), strict=True):
            if name in wanted:
                np.testing.assert_array_equal(ran.outputs[name], value)
        assert set(ran.outputs) == set(wanted)
        assert ran.tactics == {"split": "custom.own_split()"}

    def test_outputs_that_are_named_and_not_read(self, run: Run) -> None:
        x = random(4, 5)
        ran = run("g (float[4, 5] x) => (y) { a, b, c = custom.Split(x)  y = Neg(b) }", {"x": x})
        np.testing.assert_array_equal(ran.outputs["y"], -split(x)[1])

    @pytest.mark.parametrize("call", ["custom.Split(x)", "custom.Split(x, )"])
    def test_an_input_may_be_left_out(self, run: Run, call: str) -> None:
        x = random(4, 5)
        ran = run(f"g (float[4, 5] x) => (a) {{ a, b, c = {call} }}", {"x": x})
        np.testing.assert_array_equal(ran.outputs["a"], split(x)[0])

    def test_an_optional_input_that_is_there(self, run: Run) -> None:
        x, shift = random(4, 5), random(5, seed=1)
        ran = run("g (float[4, 5] x, float[5] v) => (c) { , , c = custom.Split(x, v) }", {"x": x, "v": shift})
        assert ran.outputs["c"] == split(x, shift)[2]


class TestShapes:
    @pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (3, 0, 2), (7, 3)])
    def test_scalars_and_empty_tensors(self, run: Run, shape: tuple[int, ...]) -> None:
        x = random(*shape)
        dims = f"[{', '.join(map(str, shape))}]" if shape else ""
        ran = run(f"g (float{dims} x) => (a, b, c) {{ [split] a, b, c = custom.Split(x) }}", {"x": x})
        for name, value in zip("abc", split(x), strict=True):
            np.testing.assert_array_equal(ran.outputs[name], value)
            assert ran.outputs[name].shape == np.shape(value)
        assert ran.engine.plan.steps[0].workspace == x.nbytes

    @pytest.mark.parametrize(
        "declared",
        ["y", "float[K] y", "float[3] y", "float[3, 3] y"],
        ids=["not", "symbol", "number", "rank"],
    )
    def test_those_that_depend_on_data_whatever_the_model_declares(self, run: Run, declared: str) -> None:
        body = f"g (float[4, 5] x) => ({declared}) {{ [positive] p = custom.Positive(x)  [neg] y = Neg(p) }}"
        ran = run(body, {"x": random(4, 5)})
        np.testing.assert_array_equal(ran.outputs["y"], -random(4, 5)[random(4, 5) > 0])
        assert ran.types["positive"] == ["float32[positives]"]
        assert ran.types["neg"][0] in ("float32[positives]", "float32[?]")

    def test_what_depends_on_data_changes_from_run_to_run(self, plugin: Path) -> None:
        engine = build(
            parse("g (float[4, 5] x) => (y) { y = custom.Positive(x) }"),
            BuilderConfig(target="cpu", plugins=(str(plugin), "builtin"), sources=("-reference",)),
        )
        session = Session(engine, plugins=[str(plugin), "builtin"])
        for x in (random(4, 5), random(4, 5) - 10, random(4, 5) + 10):
            np.testing.assert_array_equal(session.run({"x": x})["y"], x[x > 0])

    @pytest.mark.parametrize(
        "count",
        [
            "<int64 n = {2}> { ",
            "{ n = Constant <value_int = 2> ()  ",
            "<int64 i = {1}> { s = Shape(x)  k = Gather(s, i)  one = Constant <value_int = 1> ()  n = Sub(k, one)  ",
        ],
        ids=["initializer", "constant node", "folded"],
    )
    def test_constants_are_known_to_inference_and_what_follows(self, run: Run, count: str) -> None:
        body = "[take] t = custom.Take(x, n)  [split] a, b, c = custom.Split(t)  [relu] y = Relu(a) }"
        x = random(4, 3)
        ran = run(f"g (float[4, 3] x) => (y) {count}{body}", {"x": x})
        assert ran.types["take"] == ran.types["relu"] == ["float32[2, 3]"]
        assert ran.types["split"][0] == "float32[2, 3]"
        np.testing.assert_array_equal(ran.outputs["y"], np.maximum(x[:2], 0))

    def test_what_inference_leaves_open_the_model_may_declare(self, plugin: Path) -> None:
        body = "g (float[4, 3] x, int64 n) => (float[2, 3] y) { [take] y = custom.Take(x, n) }"
        network = import_model(parse(body), None, TestAttributes.ops(plugin))
        assert signatures(network)["take"].outputs == (TensorType("float32", (2, 3)),)

    @pytest.mark.parametrize("declared", ["float[9, 3] y", "double[4, 3] y", "float[4, 3, 1] y"])
    def test_what_it_knows_counts_for_more_than_what_the_model_declares(
        self, run: Run, declared: str
    ) -> None:
        for body in (
            f"({declared}) {{ y = custom.Split(x) }}",
            f"({declared.replace('double', 'float')}) {{ a = custom.Split(x)  y = Relu(a) }}",
        ):
            ran = run(f"g (float[4, 3] x) => {body}", {"x": random(4, 3)})
            assert ran.outputs["y"].dtype == np.float32
            np.testing.assert_array_equal(ran.outputs["y"], np.maximum(random(4, 3), 0))

    def test_symbolic_dimensions_and_bound_ones(self, run: Run) -> None:
        body = "g (float[N, 3] x) => (float[N, 3] a) { [split] a = custom.Split(x) }"
        free = run(body, {"x": random(6, 3)}, sources=())
        assert free.types["split"] == ["float32[N, 3]"]
        bound = run(body, {"x": random(6, 3)}, shapes={"x": (6, 3)})
        assert bound.types["split"] == ["float32[6, 3]"]
        np.testing.assert_array_equal(free.outputs["a"], bound.outputs["a"])


class TestNesting:
    IF = """g (float[4, 3] x, bool c) => (y) {
        y = If (c) <then_branch = t () => (p) { p = custom.Split(x) }, else_branch = e () => (q) { q = Abs(x) }> }"""
    LOOP = """g (float[4, 3] x) => (float[4, 3] y) <int64 m = {3}, bool t = {1}> {
        y = Loop (m, t, x) <body = b (int64 i, bool c, float[4, 3] a) => (bool d, float[4, 3] r) {
            d = Identity(c)  s = custom.Probe <i = 2> (a)  r = Neg(s) }> }"""
    FUNCTION = """g (float[4, 3] x) => (y) { y = own.twice <by = 5> (x) }
        <domain: "own", opset_import: ["": 18, "custom": 1]>
        twice <by> (a) => (b) { s = custom.Probe <i: int = @by> (a)  [inner] b = custom.Probe <i = 1> (s) }"""

    @pytest.mark.parametrize("condition", [True, False])
    def test_within_a_branch(self, run: Run, condition: bool) -> None:
        x = random(4, 3)
        ran = run(self.IF, {"x": x, "c": np.array(condition)}, sources=())
        np.testing.assert_array_equal(ran.outputs["y"], np.maximum(x, 0) if condition else np.abs(x))

    def test_within_the_body_of_a_loop(self, run: Run) -> None:
        x = random(4, 3)
        ran = run(self.LOOP, {"x": x}, sources=())
        np.testing.assert_allclose(ran.outputs["y"], -(-(-(x + 2) + 2) + 2), rtol=1e-5, atol=1e-6)

    def test_a_branch_that_is_known_becomes_part_of_the_graph(self, run: Run) -> None:
        body = self.IF.replace("float[4, 3] x, bool c", "float[4, 3] x").replace(
            "=> (y) {", "=> (y) <bool c = {1}> {"
        )
        ran = run(body, {"x": random(4, 3)}, sources=())
        assert [s.op for s in ran.engine.plan.steps] == ["custom::Split"]
        np.testing.assert_array_equal(ran.outputs["y"], np.maximum(random(4, 3), 0))

    def test_within_a_function_of_the_model(self, run: Run) -> None:
        ran = run(self.FUNCTION, {"x": random(4, 3)})
        assert set(ran.tactics.values()) == {"custom.own_probe()"}
        assert len(ran.tactics) == 2
        np.testing.assert_allclose(ran.outputs["y"], random(4, 3) + 6, rtol=1e-6)

    def test_attributes_within_a_body_are_what_they_are_outside(self, plugin: Path) -> None:
        """The reference of an If sees the same attributes as that of the node alone, lists and messages too."""
        model = parse(self.IF.replace("custom.Split", "custom.Probe"))
        branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
        written = {name: value for name, (value, _) in (PLAIN | MESSAGES).items()}
        branch.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in written.items())
        ops = TestAttributes.ops(plugin)
        ((_, call),) = signatures(import_model(model, None, ops)).items()
        x = random(4, 3)
        plugin.with_suffix(".log").write_text("")
        (y,) = reference_for(call, ops)([np.array(True), x])
        np.testing.assert_allclose(y, x + np.float32(PLAIN["i"][1]), rtol=1e-6)
        ((stage, _, seen),) = [json.loads(t) for t in plugin.with_suffix(".log").read_text().splitlines()]
        assert stage == "reference"
        plain = {name: repr(value) for name, (_, value) in PLAIN.items()}
        assert {name: seen[name] for name in PLAIN} == plain
        assert {name: seen[name].partition("'")[2].partition("'")[0] for name in MESSAGES} == {
            name: kind for name, (_, kind) in MESSAGES.items()
        }


BAD = """
from dataclasses import dataclass
import numpy as np
from tactician import Op, Tactic, TensorType, hookimpl

def infer(signature): return [signature.inputs[0]]
def reference(signature, x): return x + 1
{change}
OP = Op("bad::Bad", infer, reference)

@dataclass(frozen=True)
class Own(Tactic):
    op = OP.name
    target = "cpu"
    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            np.add(inputs[0], 1, out=outputs[0])
        return launch

@hookimpl
def ops(): return [OP]
@hookimpl
def tactics(): return [Own]
"""
Bad = Callable[..., Engine]


@pytest.fixture
def bad(tmp_path: Path) -> Bad:
    """Build a model of an operator with something wrong."""

    def build_bad(change: str, outputs: str = "y") -> Engine:
        path = tmp_path / "bad.py"
        path.write_text(BAD.format(change=change))
        body = f"g (float[4, 3] x) => ({outputs}) {{ [node] {outputs} = bad.Bad(x) }}"
        model = parse(body)
        model.opset_import.append(helper.make_opsetid("bad", 1))
        config = BuilderConfig(target="cpu", plugins=(str(path), "builtin"), use_timing_cache=False)
        return build(model, config)

    return build_bad


class TestErrors:
    @pytest.mark.parametrize(
        ("result", "words"),
        [
            ("[][1]", r"can't infer the outputs of bad::Bad\(float32\[4, 3\]\).*list index out of range"),
            ("None", "can't infer the outputs.*not iterable"),
            ("[]", "its plugin infers 0 outputs, the node has 1"),
            ("[(4, 3)]", r"infers \(4, 3\) for output 0; return a TensorType"),
            ("[None]", "infers None for output 0; return a TensorType"),
            ("[TensorType('float33', (4, 3))]", "float33.*return a TensorType of an ONNX element type"),
            ("[TensorType('float32', (-4, 3))]", "dimensions of 0 or more"),
            ("[TensorType('float32', (4.5, 3))]", "dimensions of 0 or more"),
        ],
    )
    def test_an_inference_that_fails_or_infers_no_types(self, bad: Bad, result: str, words: str) -> None:
        with pytest.raises(ShapeError, match=f"Bad 'node': its plugin.*{words}|Bad 'node'.*{words}"):
            bad(f"def infer(signature): return {result}")

    def test_too_few_outputs_inferred(self, bad: Bad) -> None:
        with pytest.raises(ShapeError, match="Bad 'node': its plugin infers 1 outputs, the node has 2"):
            bad("", "y, z")

    def test_more_outputs_inferred_than_the_node_wants(self, bad: Bad) -> None:
        engine = bad("def infer(signature): return [signature.inputs[0]] * 3")
        assert len(engine.plan.steps[0].outputs) == 1

    def test_a_shape_that_the_reference_does_not_compute(self, bad: Bad) -> None:
        with pytest.raises(NoTacticError) as caught:
            bad("def infer(signature): return [TensorType('float32', (9, 3))]")
        said = str(caught.value)
        assert "no tactic runs node: bad::Bad(float32[4, 3]) -> float32[9, 3]" in said
        assert "bad.own(): failed" in said
        assert "builtin.reference(): failed" in said

    def test_a_reference_of_another_shape(self, bad: Bad) -> None:
        with pytest.raises(
            NoTacticError, match=r"own\(\): wrong: output 0 has shape \[4, 3\], the reference has \[2, 3\]"
        ):
            bad("def reference(signature, x): return x[:2]")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (
                "raise KeyError('no such thing')",
                "not checked: the reference raised KeyError: 'no such thing'",
            ),
            ("return x + 1, x", "not checked: the reference raised ValueError: it returned 2 outputs"),
        ],
    )
    def test_a_reference_that_fails_is_on_record(self, bad: Bad, body: str, words: str) -> None:
        (decision,) = bad(f"def reference(signature, x): {body}").report.decisions
        records = {c.tactic: c for c in decision.candidates if c.outcome is not Outcome.DECLINED}
        assert set(records) == {"bad.own()", "builtin.reference()"}
        assert all(words in record.reason for record in records.values())

    def test_a_tactic_that_computes_something_else(self, bad: Bad) -> None:
        (decision,) = bad("def reference(signature, x): return x + 2").report.decisions
        assert decision.chosen == "builtin.reference()"
        (own,) = [c for c in decision.candidates if c.tactic == "bad.own()"]
        assert own.outcome is Outcome.WRONG

    def test_a_model_whose_plugin_is_missing(self) -> None:
        model = parse("g (float[4, 3] x) => (y) { [node] y = custom.Splid(x) }")
        config = BuilderConfig(target="cpu", plugins=("builtin",))
        with pytest.raises(
            UnknownOpError, match=r"'custom::Splid'.*install the plugin that defines it.*--plugin"
        ):
            build(model, config)

    def test_a_misspelt_operator_of_a_plugin_that_is_there(self, plugin: Path) -> None:
        config = BuilderConfig(target="cpu", plugins=(str(plugin), "builtin"))
        with pytest.raises(UnknownOpError, match=r"'custom::Splid'.*did you mean .*'Split'"):
            build(parse("g (float[4, 3] x) => (y) { y = custom.Splid(x) }"), config)

    @pytest.mark.parametrize("nested", [False, True])
    def test_an_engine_whose_plugin_is_missing(self, run: Run, tmp_path: Path, nested: bool) -> None:
        body = "g (float[4, 3] x) => (y) { y = custom.Split(x) }"
        run(TestNesting.LOOP if nested else body, {"x": random(4, 3)}, sources=())
        script = (
            "import sys, numpy as np, tactician\n"
            "tactician.Session(sys.argv[1], plugins=['builtin']).run({'x': np.ones((4, 3), np.float32)})"
        )
        # in this process the operator is known by now
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "model.tactician")], capture_output=True, text=True
        )
        assert done.returncode
        last = done.stderr.strip().splitlines()[-1]
        assert re.match(r"tactician\.errors\.(EngineMismatchError|UnknownOpError): .*custom", last)
