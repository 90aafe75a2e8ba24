"""tactician and three example plugins from wheels, in a fresh environment without a GPU: listed, chosen among, missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from packages import FreshEnvironment, build_distributions, copy_checkout, run

PLUGINS = {
    "scan": "tactician-scan",
    "rms_norm": "tactician-rms-norm",
    "pointwise_conv": "tactician-pointwise-conv",
}

BUILD = """
import json
import numpy as np
from tactician import BuilderConfig, Network, Session, build

net = Network()
x = net.input("x", "float32", (32, 16000))
scale = net.constant(np.linspace(0.5, 1.5, 16000, dtype=np.float32))
normal = net.op("RmsNorm", x, scale, domain="rms_norm", name="norm")
net.output(net.op("CumSum", normal, net.constant(np.array(1)), name="sum"), "y")
engine = build(net, BuilderConfig(target="cpu"))
engine.save("m.tactician")
x = np.random.default_rng(0).standard_normal((32, 16000)).astype(np.float32)
y = Session("m.tactician").run({"x": x})["y"]
wide = x.astype(np.float64)
exact = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * np.linspace(0.5, 1.5, 16000)).cumsum(-1)
print(json.dumps({
    "chosen": {node: d.chosen for d in engine.report.decisions for node in d.nodes},
    "timed": {node: sorted({c.plugin for c in d.candidates if c.timing}) for d in engine.report.decisions for node in d.nodes},
    "error": float(np.linalg.norm(y - exact) / np.linalg.norm(exact)),
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    checkout = copy_checkout(folder / "checkout")
    made = FreshEnvironment(folder / "venv")
    made.install(build_distributions(checkout, folder / "dist")[1])
    for name in PLUGINS.values():
        build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / name)
        run(*build, checkout / "examples" / name)
        made.install(next((folder / name).glob("*.whl")))
    return made


def test_from_wheels_to_a_clear_error(environment, tmp_path):
    env = {"TACTICIAN_CACHE_DIR": str(tmp_path / "cache")}
    command = environment.python.with_name("tactician")
    listed = json.loads(run(command, "plugins", "--load", "--json", cwd=tmp_path, env=env))
    assert {p["name"] for p in listed} == {"builtin", *PLUGINS}
    assert {p["state"] for p in listed} == {"ready"}
    assert all(Path(p["location"]).is_relative_to(environment.python.parents[1]) for p in listed)

    built = json.loads(environment.run("-c", BUILD, cwd=tmp_path, env=env).splitlines()[-1])
    assert built["chosen"]["norm"].startswith("rms_norm.")
    assert set(built["timed"]["sum"]) == {"builtin", "scan"}
    assert built["error"] < 1e-4

    pip = (sys.executable, "-m", "pip", "--python", environment.python)
    run(*pip, "uninstall", "--yes", "--quiet", PLUGINS["rms_norm"])
    with pytest.raises(AssertionError, match="plugin 'rms_norm'") as caught:
        run(command, "run", "m.tactician", cwd=tmp_path, env=env)
    assert "Traceback" not in str(caught.value)
