"""A plugin written in a notebook or a script: the same functions as in a file, sent to other processes by value."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
from tactician import BuilderConfig, InlinePlugin, Session, build
from tactician.errors import EngineMismatchError, PluginError
from tactician.plugins.discovery import State
from tactician.plugins.manager import load_plugins

CELLS = """
from dataclasses import dataclass
import numpy as np
from tactician import Op, Tactic, hookimpl

FACTOR = 3.0
SCALE = Op("scaled::Scale", infer=lambda signature: [signature.inputs[0]], reference=lambda signature, x: x * FACTOR)

@dataclass(frozen=True)
class Multiply(Tactic):
    op = SCALE.name
    target = "cpu"

    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            np.multiply(inputs[0], np.float32(FACTOR), out=outputs[0])
        return launch

@hookimpl
def ops():
    return [SCALE]

@hookimpl
def tactics():
    return [Multiply]
"""
MODEL = (
    '<ir_version: 9, opset_import: ["" : 20, "scaled" : 1]>\n'
    "g (float[3, 5] x) => (float[3, 5] y) { y = scaled.Scale(x) }"
)


def cells(text: str = CELLS, module: str = "notebook_cells") -> dict[str, object]:
    """Run the text of cells and return their namespace, as of a module of that name."""
    namespace = types.ModuleType(module)
    sys.modules[module] = namespace
    exec(compile(text, "<cell>", "exec"), vars(namespace))
    return vars(namespace)


@pytest.fixture
def plugin():
    return InlinePlugin("scaled", cells())


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(MODEL)


@pytest.mark.parametrize("isolate", [False, True])
def test_it_competes_and_runs(plugin, isolate, tmp_path):
    config = BuilderConfig(
        target="cpu", plugins=(plugin,), isolate=isolate, timing_cache=tmp_path / "timing.sqlite"
    )
    engine = build(model(), config)
    (decision,) = engine.report.decisions
    assert decision.chosen == "scaled.multiply()"
    assert decision.winner.error is not None
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    y = Session(engine, plugins=[plugin]).run({"x": x})["y"]
    assert np.allclose(y, 3 * x)


def test_its_engine_needs_it(plugin):
    engine = build(model(), BuilderConfig(target="cpu", plugins=(plugin,)))
    with pytest.raises(EngineMismatchError, match="plugin 'scaled'"):
        Session(engine)


def test_its_engine_notices_what_its_functions_refer_to(plugin):
    engine = build(model(), BuilderConfig(target="cpu", plugins=(plugin,)))
    other = InlinePlugin("scaled", cells(CELLS.replace("FACTOR = 3.0", "FACTOR = 4.0")))
    assert other.digest != plugin.digest
    with pytest.raises(EngineMismatchError, match="scaled"):
        Session(engine, plugins=[other])


def test_the_same_cells_have_the_same_hash(plugin):
    assert InlinePlugin("scaled", cells()).digest == plugin.digest


def test_another_process_gets_it_by_value(plugin):
    script = (
        "import pickle, sys; plugin = pickle.load(sys.stdin.buffer)\n"
        "print(plugin.name, plugin.digest, [t.__name__ for t in plugin.tactics()], plugin.ops()[0].reference(None, 2))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(plugin), capture_output=True, check=True
    ).stdout.decode()
    assert printed.split() == ["scaled", plugin.digest, "['Multiply']", "6.0"]


def test_a_module_can_be_given(plugin):
    module = sys.modules["notebook_cells"]
    assert load_plugins(BuilderConfig(plugins=(InlinePlugin("scaled", module),))).refs["scaled"].digest


def test_it_adds_to_what_is_installed_and_a_list_of_names_restricts(plugin):
    assert load_plugins(BuilderConfig(plugins=(plugin,))).states["builtin"].state is State.READY
    states = load_plugins(BuilderConfig(plugins=(plugin, "builtin"))).states
    assert states["scaled"].state is State.READY


def test_a_namespace_without_hooks_is_refused():
    with pytest.raises(PluginError, match="the namespace has no hook"):
        InlinePlugin("empty", {"np": np, "ops": list})


def test_what_it_declares_is_kept():
    plugin = InlinePlugin("scaled", cells("TACTICIAN_API = (9, 0)\n" + CELLS))
    with pytest.raises(PluginError, match=r"incompatible: it needs version 9\.0 of the plugin contract"):
        load_plugins(BuilderConfig(plugins=(plugin,)))


def test_what_can_not_be_sent_is_named():
    plugin = InlinePlugin("scaled", cells(CELLS + "\nimport threading\nFACTOR = threading.Lock()\n"))
    with pytest.raises(PluginError, match="refers to what can't be sent to another process"):
        load_plugins(BuilderConfig(plugins=(plugin,)))


def test_two_objects_of_one_name_are_both_set_aside(plugin):
    with pytest.raises(PluginError, match="claimed by an InlinePlugin object and by an InlinePlugin object"):
        load_plugins(BuilderConfig(plugins=(plugin, InlinePlugin("scaled", cells()))))
