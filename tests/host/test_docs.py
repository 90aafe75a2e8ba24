"""The documentation says what is: links, hooks, errors, commands and options exist, and its code runs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import tactician
from onnx import TensorProto, helper
from packages import ROOT
from tactician import BuilderConfig, errors, testing
from tactician.cli import COMMANDS, cli
from tactician.engine import MAGIC
from tactician.plan import FORMAT_VERSION
from tactician.plugins import hookspecs
from tactician.plugins.discovery import State
from tactician.plugins.manager import load_plugins
from tactician.tactics.record import Outcome

DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if ".pytest_cache" not in page.parts
)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown viewer gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def hook_signatures() -> Iterator[str]:
    for node in ast.parse(inspect.getsource(hookspecs)).body:
        if isinstance(node, ast.FunctionDef):
            yield f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def test_every_hook_is_documented_with_its_signature():
    text = read(DOCS / "plugins.md")
    headings = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert headings == list(hook_signatures())


def error_classes(base: type = errors.TacticianError) -> Iterator[type]:
    yield base
    for subclass in base.__subclasses__():
        yield from error_classes(subclass)


def test_every_error_is_documented_with_its_exit_code_and_place():
    rows = re.findall(r"^\| ([· ]*)`(\w+)` \| (\d+) \|", read(DOCS / "errors.md"), re.M)
    documented = {name: (int(code), dots.count("·")) for dots, name, code in rows}
    own = [c for c in error_classes() if c.__module__ == errors.__name__]
    depth = {c.__name__: c.__mro__.index(errors.TacticianError) for c in own}
    assert documented == {c.__name__: (c.exit_code, depth[c.__name__]) for c in own}


def test_every_outcome_of_a_candidate_is_documented():
    rows = re.findall(r"^\| `(\w+)` \|", read(DOCS / "measuring.md"), re.MULTILINE)
    assert rows == [outcome.value for outcome in Outcome]


def test_every_state_of_a_plugin_is_documented():
    text = (
        (DOCS / "plugins.md")
        .read_text(encoding="utf-8")
        .partition("| state | meaning |")[2]
        .partition("\n\n")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [state.value for state in State]


def test_the_engine_format_is_the_documented_one():
    text = read(DOCS / "engine-format.md")
    assert f"`{MAGIC.decode()}`" in text
    assert f"format version, now {FORMAT_VERSION} " in text


def try_it() -> list[str]:
    section = read(ROOT / "README.md").partition("## Try it")[2].partition("\n## ")[0]
    return [block.strip() for block in re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)]


def test_the_readme_has_two_commands_of_which_all_parts_exist():
    install_and_run, test = try_it()
    install, run = (shlex.split(part) for part in install_and_run.split("&&"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert install[:2] == ["pip", "install"]
    assert re.fullmatch(r"\.\[(\w+)\]", install[2])[1] in extras
    assert run[0] == "python"
    assert (ROOT / run[1]).is_file()
    assert shlex.split(test)[:3] == ["python", "-m", "pytest"]


def ours(page: Path) -> str:
    """Return the text of a page; of the one for users of other tools without the first column of its tables."""
    text = read(page)
    return re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE) if page.name == "from-tensorrt.md" else text


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS.glob("*.md")], ids=lambda p: p.name)
def test_commands_and_options_in_the_documentation_exist(page):
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    commands += [sub for c in commands for sub in getattr(c, "commands", {}).values()]
    known = {option for c in (cli, *commands) for p in c.params for option in (*p.opts, *p.secondary_opts)}
    lines = [line for line in ours(page).splitlines() if not re.search(r"\b(pip|pytest)\b", line)]
    lines = [line for line in lines if MAGIC.decode() not in line]
    used = {name for line in lines for name in re.findall(r"(?:`|^)tactician ([a-z]+)\b", line)}
    assert used - set(COMMANDS) == set()
    options = {option for line in lines for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)}
    assert options - known - {"--help", "--version"} == set()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working folder in which the examples can be found, as in a checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_of_the_quick_start_run(folder, capsys):
    namespace: dict[str, object] = {}
    for block in code_blocks(DOCS / "quickstart.md", "python"):
        exec(compile(block, "quickstart.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "(32, 10)" in printed
    assert "Conv" in printed


def test_the_scripts_for_users_of_tensorrt_run(folder, capsys):
    own = {}
    for block in code_blocks(DOCS / "from-tensorrt.md", "python"):
        name = re.match(r"# (?:(\w+\.py)|TensorRT .*|Polygraphy .*)\n", block)
        assert name, "a block begins with its file's name, or with whose it is"
        ast.parse(block)
        if name[1]:
            own[name[1]] = block
    assert sorted(own) == ["avoid.py", "record_and_replay.py"]
    namespace: dict[str, object] = {}
    exec(compile(own["avoid.py"], "avoid.py", "exec"), namespace)
    decisions = namespace["engine"].report.decisions
    assert all(d.chosen != "builtin.reference()" for d in decisions)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        d.nodes[0] for d in decisions
    ]
    exec(compile(own["record_and_replay.py"], "record_and_replay.py", "exec"), namespace)
    recorded, replayed = (namespace[name].report.decisions for name in ("recorded", "replayed"))
    assert [d.chosen for d in replayed] == [d.chosen for d in recorded]
    nodes = json.loads((folder / "replay.json").read_text())["nodes"]
    assert {n: entry["tactic"] for n, entry in nodes.items()} == {
        n: d.chosen for d in recorded for n in d.nodes
    }


REFERENCE = DOCS / "reference"


def shown_in_the_reference() -> list[tuple[str, object]]:
    """Return path and object of each name that the reference shows; of a module, all that it defines."""
    shown: list[tuple[str, object]] = []
    for page in sorted(REFERENCE.glob("*.md")):
        for path in re.findall(r"^::: (\S+)$", read(page), re.MULTILINE):
            module, _, name = path.rpartition(".")
            value = getattr(importlib.import_module(module), name)
            if inspect.ismodule(value):
                members = [v for v in vars(value).values() if getattr(v, "__module__", None) == path]
                shown += [(f"{path}.{v.__name__}", v) for v in members]
            else:
                shown.append((path, value))
    return shown


def public_names() -> Iterator[tuple[str, object]]:
    for module in (tactician, testing):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)
    for error in error_classes():
        if error.__module__ == errors.__name__:
            yield f"{errors.__name__}.{error.__name__}", error
    for node in ast.parse(inspect.getsource(hookspecs)).body:
        if isinstance(node, ast.FunctionDef):
            yield f"{hookspecs.__name__}.{node.name}", getattr(hookspecs, node.name)


def test_the_reference_shows_every_public_name_once():
    shown = shown_in_the_reference()
    missing = []
    for public, value in public_names():
        name = public.rpartition(".")[2]
        if not any(v is value and path.endswith(f".{name}") for path, v in shown):
            missing.append(f"::: {getattr(value, '__module__', 'MODULE')}.{name}")
    pages = ", ".join(sorted(page.name for page in REFERENCE.glob("*.md")))
    assert not missing, f"add, in docs/reference ({pages}), to the page of its subject:\n" + "\n".join(
        missing
    )
    paths = [path for path, _ in shown]
    assert sorted(paths) == sorted(set(paths)), "a name stands in the reference twice"


def test_the_reference_names_where_a_thing_is_defined():
    """Docstrings are read without importing: a name that is only passed on is not found in such a module."""
    for path, value in shown_in_the_reference():
        if inspect.isclass(value) or inspect.isfunction(value):
            assert path == f"{value.__module__}.{value.__name__}"


@pytest.fixture
def files(folder):
    """Write the named blocks of plugins.md and selection.md as files."""
    for page in ("plugins.md", "selection.md"):
        for block in code_blocks(DOCS / page, "python"):
            name = re.match(r"# (\w+\.py)\n", block)
            assert name, f"{page}: a block does not begin with its file's name"
            (folder / name[1]).write_text(block)
    return folder


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_node_model(node: onnx.NodeProto, shape: list[int]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    opsets = [helper.make_opsetid("", 18)]
    if node.domain:
        opsets.append(helper.make_opsetid(node.domain, 1))
    return helper.make_model(
        helper.make_graph([node], "example", [x], [y]), opset_imports=opsets, ir_version=9
    )


def test_the_documented_plugin_in_one_file_competes(files, capsys):
    load_module(files / "use_hard_swish.py")
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert lines["hard_swish.in_place_hard_swish()"] in ("chosen", "slower", "tie")
    assert any(name.startswith("builtin.") for name in lines)


def test_the_documented_custom_operator_runs(files):
    node = helper.make_node("SquaredRelu", ["x"], ["y"], domain="squared_relu", name="activation")
    config = BuilderConfig(target="cpu", plugins=("squared_relu.py",))
    engine = tactician.build(one_node_model(node, [3, 5]), config)
    session = tactician.Session(engine, plugins=load_plugins(config))
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    assert np.allclose(session.run({"x": x})["y"], np.maximum(x, 0) ** 2)


def test_the_documented_fused_form_takes_its_neighbours(files):
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20, "squared_relu" : 1]>
        g (float[3, 5] x, float[3, 5] r) => (float[3, 5] y)
        { [square] s = squared_relu.SquaredRelu (x) [scale] m = Mul (s, r) [residual] y = Add (r, m) }""")
    config = BuilderConfig(
        target="cpu",
        plugins=("squared_relu.py", "squared_relu_fused.py"),
        tactic_rules=(("square+residual", "squared_relu_fused.*"),),
    )
    engine = tactician.build(model, config)
    assert [step.tactic for step in engine.plan.steps] == ["squared_relu_fused.with_steps()"]
    rng = np.random.default_rng(0)
    x, r = rng.standard_normal((2, 3, 5)).astype(np.float32)
    (y,) = tactician.Session(engine, plugins=load_plugins(config)).run({"x": x, "r": r}).values()
    assert np.allclose(y, np.maximum(x, 0) ** 2 * r + r)


def test_the_documented_rewrite_rule_matches(files):
    from tactician.testing import check_rewrite

    op = load_module(files / "squared_relu.py").SQUARED_RELU
    rule = load_module(files / "squared_relu_rule.py").RULE
    graph = '<ir_version: 9, opset_import: ["" : 20]> g (float[3, 5] x) => (float[3, 5] y)'
    for body in (
        "{ h = Relu(x) y = Mul(h, h) }",
        "{ two = Constant<value_float=2.0>() h = Relu(x) y = Pow(h, two) }",
    ):
        assert check_rewrite(rule, onnx.parser.parse_model(f"{graph} {body}"), [op], matches=1) == 1


def test_the_documented_conformance_test_passes(files):
    test = load_module(files / "conformance.py").test_conformance
    (mark,) = test.pytestmark
    assert [check.name for check in mark.args[1]] == re.findall(
        r"^\| `(\w+)` \|", read(DOCS / "plugins.md").partition("| check | |")[2].partition("\n\n")[0], re.M
    )
    for check in mark.args[1]:
        test(check)


def test_the_readme_has_a_custom_operator_in_under_30_lines(folder):
    (block,) = [b for b in code_blocks(ROOT / "README.md", "python") if b.startswith("# square.py")]
    assert sum(bool(line.strip()) for line in block.splitlines()) < 30
    (folder / "square.py").write_text(block)
    environment = os.environ | {"TACTICIAN_CACHE_DIR": str(folder / "cache")}
    printed = subprocess.run(
        [sys.executable, "square.py"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("square.one_call() [[")
    assert re.findall(r"\d+", printed) == ["0", "1", "4", "9", "16", "25"]


def test_the_documented_cuda_kernel_compiles(files, compile_device):
    from signatures import make_signature

    (tactic,) = load_module(files / "cuda_relu.py").tactics()
    signature = make_signature("Relu", [np.ones((3, 5), np.float32)])
    device = compile_device("sm_80")
    for candidate in tactic.candidates(signature, device):
        assert candidate.decline(signature, device) is None
        assert callable(candidate.prepare(signature, device))


def test_the_documented_selector_selects(files, capsys):
    selector = load_module(files / "selector.py").MostExact()
    node = helper.make_node("Softmax", ["x"], ["y"], name="probabilities")
    engine = tactician.build(one_node_model(node, [30, 500]), BuilderConfig(target="cpu"), selector=selector)
    (decision,) = engine.report.decisions
    errors_of_fit = [c.error for c in decision.candidates if c.timing]
    assert len(set(errors_of_fit)) > 1
    assert decision.winner.error == min(errors_of_fit)
    assert f"('probabilities',) {decision.chosen}" in capsys.readouterr().out


def test_the_list_of_kernels_is_up_to_date():
    make = runpy.run_path(str(DOCS / "make_kernels_page.py"))
    text = read(DOCS / "kernels.md")
    assert make["updated"](text) == text, "run `python docs/make_kernels_page.py`"


def test_the_list_of_what_runs_on_the_gpu_is_up_to_date():
    pytest.importorskip("cuda.core", reason="the compiler's package is not installed")
    make = runpy.run_path(str(DOCS / "make_gpu_coverage.py"))
    text = read(DOCS / "gpu-coverage.md")
    if f"with onnx {onnx.__version__}:" not in text:
        pytest.skip(f"the page is of another onnx than {onnx.__version__}, which has other tests")
    # a sample, so that it takes seconds: the page is made of all of them
    from conformance import node_cases

    rows = [make["planned"](name) for name in node_cases()[::23]]
    without = {name for name, _, missing in rows if missing}
    for name, _, missing in rows:
        for operator in missing:
            line = next((x for x in text.splitlines() if x.startswith(f"| {operator} |")), None)
            assert line is not None, (
                f"{name}: {operator} is not on the page; run `python docs/make_gpu_coverage.py`"
            )
    assert without
