"""`tactician plugins` and `tactics`: what is there, in what state, and what failed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def test_plugins(run: Run) -> None:
    code, out, _ = run("plugins")
    assert code == 0
    assert re.search(r"^builtin\s+\S+\s+found\s+tactician\s", out, re.MULTILINE)
    _, out, _ = run("plugins", "--load", "--json")
    (plugin,) = [p for p in json.loads(out) if p["name"] == "builtin"]
    assert plugin["state"] == "ready"
    assert re.fullmatch("[0-9a-f]{64}", plugin["digest"])
    assert "builtin.onnx_runtime" in plugin["tactics"]
    _, out, _ = run("plugins", "--no-plugin", "builtin")
    assert "disabled by the caller" in out


def test_plugins_info(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("plugins", "info", "builtin")
    assert code == 0
    assert re.search(r"^state +found$", out, re.MULTILINE)
    assert "tactics" not in out
    _, out, _ = run("plugins", "info", "builtin", "--load")
    assert re.search(r"^targets +cpu, cuda$", out, re.MULTILINE)
    code, _, err = run("plugins", "builtin")
    assert code == 2
    assert "tactician plugins info builtin" in err
    code, _, err = run("plugins", "info", "acme.py")
    assert code == 1
    assert "tactician plugins list -p acme.py" in err


def test_plugins_info_and_retry_know_what_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from tactician import Tactic, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Wrong(Tactic):\n"
        "    op, target = 'ai.onnx::Softmax', 'cpu'\n"
        "    def prepare(self, signature, device):\n"
        "        return lambda inputs, outputs, workspace, stream: outputs[0].fill(1)\n"
        "@hookimpl\n"
        "def tactics(): return [Wrong]\n"
    )
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[4, 8] x) => (float[4, 8] y) { y = Softmax(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert run("build", "m.onnx", "--target", "cpu", "-p", "./mine.py")[0] == 0
    _, out, _ = run("plugins", "info", "mine", "-p", "./mine.py", "--json")
    (failure,) = json.loads(out)["failures"]
    assert (failure["tactic"], failure["outcome"]) == ("mine.wrong()", "wrong")
    _, out, _ = run("plugins", "retry", "mine", "-p", "./mine.py")
    assert out.strip() == "mine: 1 verdict forgotten"
    _, out, _ = run("plugins", "info", "mine", "-p", "./mine.py", "--json")
    assert json.loads(out)["failures"] == []


def test_tactics(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from tactician import Tactic, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Quick(Tactic):\n"
        "    op = ('ai.onnx::Conv', 'ai.onnx::Relu')\n"
        "    target = 'cpu'\n"
        "    library = 'lib'\n"
        "    block: int = 3\n"
        "    def prepare(self, signature, device): raise NotImplementedError\n"
        "@hookimpl\n"
        "def tactics(): return [Quick]\n"
    )
    arguments = ("tactics", "-p", "./mine.py", "--no-plugin", "builtin")
    code, out, _ = run(*arguments, "--op", "Conv", "--json")
    assert code == 0
    (tactic,) = json.loads(out)
    assert tactic == {
        "id": "mine.quick", "plugin": "mine", "target": "cpu", "library": "lib", "version": 1,
        "ops": ["ai.onnx::Conv", "ai.onnx::Relu"], "fields": ["block"],
    }  # fmt: skip
    assert "mine.quick" in run(*arguments)[1]
    assert "mine.quick" not in run(*arguments, "--op", "Gemm")[1]
    assert "mine.quick" not in run(*arguments, "--target", "cuda")[1]
