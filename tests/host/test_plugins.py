"""Plugins: found without importing, loaded each by itself, checked, and set aside with a reason."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tactician.config import BuilderConfig
from tactician.errors import ConfigError, DeviceError, PluginError, UnknownPluginError
from tactician.plugins.api_version import API_VERSION
from tactician.plugins.discovery import State
from tactician.plugins.manager import load_plugins, survey_plugins

Install = Callable[..., Path]

TACTIC = """
from dataclasses import dataclass
from tactician import Op, Tactic, Target, hookimpl

@dataclass(frozen=True)
class Fast(Tactic):
    op = "ai.onnx::Relu"
    target = "cpu"
    width: int = 4
    def prepare(self, signature, device):
        raise NotImplementedError
"""
TACTIC_HOOK = """
@hookimpl
def tactics():
    return [Fast]
"""
PLAIN = TACTIC + TACTIC_HOOK


def op_hook(name: str) -> str:
    return (
        TACTIC
        + f"""
def infer(signature): return [signature.inputs[0]]
def reference(signature, x): return x
@hookimpl
def ops():
    return [Op({name!r}, infer, reference)]
"""
    )


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution of one module, as a wheel would."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        text: str = PLAIN,
        *,
        distribution: str = "",
        requires: str = "",
        folder: str = "site",
        entry: str = "",
    ) -> Path:
        distribution = distribution or f"tk-{name}"
        site = tmp_path / folder
        module = f"mod_{distribution.replace('-', '_')}"
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        path = site / f"{module}.py"
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        (info / "RECORD").write_text(f"{module}.py,sha256={digest},{len(text)}\n{info.name}/RECORD,,\n")
        extra = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n{extra}")
        (info / "entry_points.txt").write_text(f"[tactician]\n{name} = {entry or module}\n")
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        return path

    yield make
    for module in set(sys.modules) - known:
        if module.startswith(("mod_", "tactician_plugin_")):
            del sys.modules[module]


def only(*names: str, **options: object) -> BuilderConfig:
    return BuilderConfig(plugins=names, **options)  # type: ignore[arg-type]  # a test's keyword arguments


def test_the_builtin_kernels_come_through_the_same_door() -> None:
    plugins = load_plugins()
    status = plugins.states["builtin"]
    assert (status.state, status.distribution, status.entry) == (
        State.READY,
        "tactician",
        "tactician.builtin_kernels",
    )
    assert Path(status.location).name == "__init__.py"
    assert "cpu" in plugins.targets
    assert plugins.target_plugins["cpu"] == "builtin"


def test_a_distribution_is_found_loaded_and_named(install: Install) -> None:
    path = install("acme")
    plugins = load_plugins(only("acme"))
    assert plugins.states["acme"].state is State.READY
    assert plugins.states["acme"].location == str(path)
    assert plugins.states["builtin"].state is State.DISABLED
    assert [(ref.name, ref.version, cls.__name__) for ref, cls in plugins.registry] == [
        ("acme", "1.5", "Fast")
    ]


def test_a_survey_imports_nothing(install: Install) -> None:
    install("acme", "raise RuntimeError('imported')")
    assert survey_plugins()["acme"].state is State.FOUND
    assert "mod_tk_acme" not in sys.modules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "import module_that_is_not_there",
            "ModuleNotFoundError: No module named 'module_that_is_not_there'",
        ),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (
            TACTIC + "@hookimpl\ndef tactic(): return []",
            "implements 'tactic', which is no hook; did you mean 'tactics'",
        ),
        (TACTIC + "@hookimpl\ndef tactics(signatur): return []", "wrong arguments"),
        (TACTIC + "@hookimpl\ndef tactics(): return Fast", "instead of a list"),
        (TACTIC + "@hookimpl\ndef tactics(): return [Fast()]", "no subclass of Tactic"),
        (TACTIC + "@hookimpl\ndef tactics(): return [Fast, Fast]", "two tactics called 'fast'"),
        (TACTIC + "@hookimpl\ndef tactics(): return [Tactic]", "lacks prepare"),
        (
            TACTIC + "class Loose(Fast): pass\nLoose.op = ''\n@hookimpl\ndef tactics(): return [Loose]",
            "no class attribute 'op'",
        ),
        (TACTIC + "@hookimpl\ndef targets(): return [Fast]", "no subclass of Target"),
        (TACTIC + "@hookimpl\ndef passes(): return [3]", "can't be called"),
        (TACTIC + "@hookimpl\ndef tactics(): raise KeyError('x')", "KeyError: 'x'"),
        (op_hook("ai.onnx::Relu"), "reserved domain 'ai.onnx'"),
        (op_hook("com.microsoft::Gelu"), "reserved domain"),
        (op_hook("other::Gelu"), "TACTICIAN_DOMAINS"),
        (op_hook("Gelu"), "domain::Name"),
        ("TACTICIAN_API = 'one'\n" + PLAIN, "TACTICIAN_API"),
    ],
)
def test_a_broken_plugin_is_set_aside_with_its_reason(
    install: Install, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    install("bad", text)
    install("good", distribution="tk-good")
    with caplog.at_level(logging.WARNING):
        plugins = load_plugins()
    assert plugins.states["bad"].state is State.BROKEN
    assert reason in plugins.states["bad"].reason
    assert plugins.states["good"].state is State.READY
    assert plugins.states["builtin"].state is State.READY
    assert {ref.name for ref, _ in plugins.registry} >= {"good"}
    assert "bad" not in {ref.name for ref, _ in plugins.registry}
    assert "plugin 'bad' (tk-bad 1.5) is broken" in caplog.text
    with pytest.raises(PluginError, match="--no-plugin bad"):
        load_plugins(BuilderConfig(strict=True))
    with pytest.raises(PluginError, match="is broken"):
        load_plugins(only("bad"))


def test_a_misspelt_hook_names_the_right_one(install: Install) -> None:
    install("acme", TACTIC + "@hookimpl\ndef filter_tactic(signature): return None")
    assert "did you mean 'filter_tactics'" in load_plugins().states["acme"].reason


def test_a_plugin_may_declare_a_domain(install: Install) -> None:
    install("acme", "TACTICIAN_DOMAINS = ('other',)\n" + op_hook("other::Gelu"))
    assert "other::Gelu" in load_plugins(only("acme")).ops


def test_an_operator_of_its_own_domain(install: Install) -> None:
    install("acme", op_hook("acme::Gelu"))
    assert list(load_plugins(only("acme")).ops) == ["acme::Gelu"]


def test_a_domain_that_two_declare_belongs_to_the_first_by_name(install: Install) -> None:
    text = "TACTICIAN_DOMAINS = ('shared',)\n" + op_hook("shared::Gelu")
    install("beta", text)
    install("alpha", text)
    plugins = load_plugins()
    assert plugins.states["alpha"].state is State.READY
    assert "already" in plugins.states["beta"].reason


def test_a_target_can_not_be_taken_over(install: Install) -> None:
    text = (
        TACTIC
        + """
class Mine(Target):
    name = "cpu"
    def unavailable(self): return None
    def count(self): return 1
    def device(self, index=0, artifacts=None): return None
@hookimpl
def targets(): return [Mine]
"""
    )
    install("aaa", text)
    plugins = load_plugins()
    assert plugins.states["aaa"].state is State.BROKEN
    assert "already brought by 'builtin'" in plugins.states["aaa"].reason
    assert type(plugins.targets["cpu"]).__name__ != "Mine"


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ("tactician>=0.1,<0.2", State.READY),
        ("tactician<0.1", State.INCOMPATIBLE),
        ("Tactician (>=99)", State.INCOMPATIBLE),
        ("tactician>=99; extra == 'test'", State.READY),
        ("tactician-scan>=99", State.READY),
        ("", State.READY),
    ],
)
def test_the_distribution_says_which_tactician_it_needs(
    install: Install, requires: str, state: State
) -> None:
    install("acme", requires=requires)
    status = load_plugins().states["acme"]
    assert status.state is state
    if state is State.INCOMPATIBLE:
        assert "tk-acme 1.5 needs tactician" in status.reason
        assert "mod_tk_acme" not in sys.modules


@pytest.mark.parametrize("version", [(API_VERSION[0] + 1, 0), (API_VERSION[0], API_VERSION[1] + 1)])
def test_a_newer_contract_is_incompatible(install: Install, version: tuple[int, int]) -> None:
    install("acme", f"TACTICIAN_API = {version}\n" + PLAIN)
    for status in (survey_plugins()["acme"], load_plugins().states["acme"]):
        assert status.state is State.INCOMPATIBLE
        assert f"needs version {version[0]}.{version[1]} of the plugin contract" in status.reason
        assert "upgrade tactician" in status.reason
    assert "mod_tk_acme" not in sys.modules, "its code was imported"


def test_an_older_contract_is_incompatible_before_it_is_imported(install: Install) -> None:
    install("acme", f"TACTICIAN_API: tuple[int, int] = ({API_VERSION[0] - 1}, 7)\n" + PLAIN)
    status = load_plugins().states["acme"]
    assert status.state is State.INCOMPATIBLE
    assert "install a newer version of the plugin" in status.reason
    assert "mod_tk_acme" not in sys.modules


def test_a_contract_that_is_only_known_after_the_import(install: Install) -> None:
    install("acme", f"TACTICIAN_API = tuple([{API_VERSION[0] + 1}, 0])\n" + PLAIN)
    assert load_plugins().states["acme"].state is State.INCOMPATIBLE


def test_a_hook_of_an_older_contract_gets_what_it_knows(install: Install) -> None:
    hook = "@hookimpl\ndef filter_tactics(candidates, signature): return candidates[:1]\n"
    install("acme", f"TACTICIAN_API = ({API_VERSION[0]}, 0)\n" + TACTIC + hook)
    ((_, called),) = load_plugins().hooks.filter_tactics
    assert called(signature=None, candidates=["a", "b"], tactics={}) == ["a"]


def test_a_hook_that_asks_for_what_no_contract_has(install: Install) -> None:
    install("acme", TACTIC + "@hookimpl\ndef filter_tactics(candidates, weather): return None\n")
    assert "a hook has wrong arguments" in load_plugins().states["acme"].reason


def test_two_distributions_with_one_name_are_both_set_aside(install: Install) -> None:
    first = install("acme", distribution="first")
    second = install("acme", distribution="second")
    plugins = load_plugins()
    status = plugins.states["acme"]
    assert status.state is State.BROKEN
    assert str(first) in status.reason
    assert str(second) in status.reason
    assert not {"mod_first", "mod_second"} & set(sys.modules)


@pytest.mark.parametrize("name", ["cuda", "ai", "has.dot"])
def test_names_that_a_plugin_may_not_have(install: Install, name: str) -> None:
    install(name, distribution="tk-x")
    assert "no name for a plugin" in load_plugins().states[name].reason


def test_an_entry_point_that_names_a_class(install: Install) -> None:
    install("acme", PLAIN, entry="mod_tk_acme:Fast")
    assert "names the class Fast" in load_plugins().states["acme"].reason


def test_an_entry_point_that_names_an_object(install: Install) -> None:
    install(
        "acme",
        TACTIC + "class P:\n @hookimpl\n def tactics(self): return [Fast]\np = P()",
        entry="mod_tk_acme:p",
    )
    assert len(list(load_plugins(only("acme")).registry)) == 1


def test_allow_and_deny_by_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme")
    monkeypatch.setenv("TACTICIAN_PLUGINS", "acme")
    states = survey_plugins()
    assert (states["acme"].state, states["builtin"].state) == (State.FOUND, State.DISABLED)
    assert "TACTICIAN_PLUGINS" in states["builtin"].reason
    monkeypatch.setenv("TACTICIAN_PLUGINS", "")
    assert {s.state for s in survey_plugins().values()} == {State.DISABLED}
    monkeypatch.delenv("TACTICIAN_PLUGINS")
    monkeypatch.setenv("TACTICIAN_DISABLE_PLUGINS", "acme, not_installed")
    states = survey_plugins()
    assert (states["acme"].state, states["builtin"].state) == (State.DISABLED, State.FOUND)


def test_the_caller_overrules_environment_and_project(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("acme")
    (tmp_path / "tactician.toml").write_text("disable-plugins = ['acme']\n")
    assert "project file" in survey_plugins()["acme"].reason
    assert survey_plugins(only("acme", "builtin"))["acme"].state is State.FOUND
    monkeypatch.setenv("TACTICIAN_PLUGINS", "acme,builtin")
    assert survey_plugins()["acme"].state is State.FOUND
    assert survey_plugins(BuilderConfig(disabled_plugins=("acme",)))["acme"].state is State.DISABLED


def test_the_project_table_of_a_pyproject_above(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("acme")
    (tmp_path / "pyproject.toml").write_text("[tool.tactician]\nplugins = ['builtin']\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]\n")
    monkeypatch.chdir(below)
    assert survey_plugins()["acme"].state is State.DISABLED


@pytest.mark.parametrize(
    "text",
    ["plugins = 3", "plugins = [1]", "plugins = [", "plugins = ['./mine.py']", "disable-plugins = 'acme'"],
)
def test_a_bad_project_file(install: Install, tmp_path: Path, text: str) -> None:
    (tmp_path / "tactician.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"tactician\.toml"):
        survey_plugins()


@pytest.mark.parametrize(
    "config", [BuilderConfig(plugins=("bultin",)), BuilderConfig(disabled_plugins=("bultin",))]
)
def test_an_unknown_name_is_an_error_with_near_matches(config: BuilderConfig) -> None:
    with pytest.raises(UnknownPluginError, match="did you mean 'builtin'"):
        load_plugins(config)


def test_an_unknown_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTICIAN_PLUGINS", "nothing_like_it")
    with pytest.raises(UnknownPluginError, match="TACTICIAN_PLUGINS"):
        survey_plugins()


def test_a_file_is_a_plugin(tmp_path: Path, install: Install) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLAIN)
    plugins = load_plugins(only(str(file)))
    assert plugins.states["mine"].state is State.READY
    assert plugins.states["builtin"].state is State.READY, "a file adds to what is installed"
    assert [ref.name for ref, _ in plugins.registry if ref.name != "builtin"] == ["mine"]
    with pytest.raises(UnknownPluginError, match="does not exist"):
        load_plugins(only("./other.py"))
    file.write_text("1/0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load_plugins(only(str(file)))


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    seen = []
    for number in (1, 2, 1, 1):  # of equal length, and within one second
        file.write_text(
            f"import tactician\nNUMBER = {number}\n@tactician.hookimpl\ndef ops():\n    return []\n"
        )
        plugins = load_plugins(BuilderConfig(plugins=(str(file),)))
        assert plugins.states["edited"].state == "ready"
        module = sys.modules["tactician_plugin_edited"]
        seen.append((module.NUMBER, module))
    assert [number for number, _ in seen] == [1, 2, 1, 1]
    assert seen[2][1] is seen[3][1] is not seen[0][1]


def test_the_digest_is_of_the_files(install: Install, tmp_path: Path) -> None:
    install("acme")
    first = load_plugins().refs["acme"].digest
    assert first == load_plugins().refs["acme"].digest
    assert len(first) == 64
    file = tmp_path / "mine.py"
    file.write_text(PLAIN)
    before = load_plugins(only(str(file))).refs["mine"].digest
    file.write_text(PLAIN + "# edited\n")
    assert load_plugins(only(str(file))).refs["mine"].digest != before


def test_hooks_are_called_by_name_and_attributed(install: Install) -> None:
    hooks = """
@hookimpl
def filter_tactics(candidates): return candidates[:1]
@hookimpl
def select_tactic(signature, measured): return None
"""
    install("beta", PLAIN + hooks)
    install("alpha", PLAIN + hooks)
    plugins = load_plugins()
    assert [name for name, _ in plugins.hooks.filter_tactics] == ["alpha", "beta"]
    _, hook = plugins.hooks.filter_tactics[0]
    assert hook(signature=None, candidates=["a", "b"], tactics={}) == ["a"]
    _, hook = plugins.hooks.select_tactic[0]
    assert hook(signature=None, measured=[]) is None
    assert plugins.hooks.report_choices == ()


def test_an_engine_loads_what_it_needs(install: Install) -> None:
    install("acme")
    install("other", "raise RuntimeError('not needed')")
    plugins = load_plugins(only={"acme"})
    assert plugins.states["acme"].state is State.READY
    assert plugins.states["other"].state is State.FOUND
    assert plugins.states["builtin"].state is State.FOUND
    assert plugins.target("cpu").name == "cpu", (
        "the plugin that brings the target is loaded when it is asked for"
    )
    assert plugins.states["builtin"].state is State.READY
    assert "mod_tk_other" not in sys.modules


def test_targets() -> None:
    plugins = load_plugins()
    assert plugins.target().name in ("cpu", "cuda")
    assert plugins.target("cpu").name == "cpu"
    with pytest.raises(DeviceError, match="did you mean 'cuda'"):
        plugins.target("cudaa")
    if reason := plugins.targets["cuda"].unavailable():
        with pytest.raises(DeviceError) as caught:
            plugins.target("cuda")
        assert reason in str(caught.value)
        assert plugins.target().name == "cpu"


def test_a_missing_target_says_which_plugin_is_disabled() -> None:
    with pytest.raises(DeviceError, match="'builtin' is disabled"):
        load_plugins(only()).target("cpu")


def test_a_target_that_raises_is_not_available(install: Install) -> None:
    text = (
        TACTIC
        + """
class Mine(Target):
    name = "mine"
    def unavailable(self): raise OSError("no such card")
    def count(self): return 1
    def device(self, index=0, artifacts=None): return None
@hookimpl
def targets(): return [Mine]
"""
    )
    install("acme", text)
    with pytest.raises(DeviceError, match="OSError: no such card"):
        load_plugins(only("acme")).target("mine")


def test_fifty_installed_plugins_cost_little_and_are_not_imported(install: Install, tmp_path: Path) -> None:
    """A survey, and loading what an engine names, out of fifty distributions: measured in a fresh process."""
    for number in range(50):
        text = "raise RuntimeError('imported')" if number else PLAIN
        install(f"acme{number}", text, requires="tactician>=0.1")
    script = (
        "import sys, time, importlib.metadata\n"
        "from tactician.config import BuilderConfig\n"
        "from tactician.plugins.manager import load_plugins, survey_plugins\n"
        "seconds = []\n"
        "for _ in range(5):\n"
        "    importlib.metadata.FastPath.__new__.cache_clear()\n"
        "    start = time.process_time()\n"  # not what other processes take meanwhile
        "    states = survey_plugins()\n"
        "    seconds.append(time.process_time() - start)\n"
        "assert len(states) >= 51, len(states)\n"
        "plugins = load_plugins(only={'acme0'})\n"
        "assert len([r for r, _ in plugins.registry]) == 1\n"
        "assert [m for m in sys.modules if m.startswith('mod_tk_')] == ['mod_tk_acme0']\n"
        "assert not any(m.startswith('tactician.builtin_kernels') for m in sys.modules)\n"
        "print(min(seconds))\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.05
