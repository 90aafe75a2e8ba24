"""The 1 x 1 convolutions of the example package run on the CPU, from the PTX that NVRTC makes: tiles, splits, clusters."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from packages import ROOT
from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature

BOUNDS = {"float32": 1e-6, "float16": 1e-3}
CASES = {
    # batch, channels, filters, height, width, stride
    "one pixel": (1, 1, 1, 1, 1, 1),
    "odd sides": (3, 17, 33, 9, 5, 1),
    "stride": (2, 40, 24, 13, 7, 2),
    "rows of seven": (1, 64, 48, 7, 7, 1),
    "many channels": (1, 512, 32, 4, 4, 1),
}
UNEVEN = {
    # filters that leave a tile unfilled, and steps of channels that three parts don't share evenly
    "one by one": (2, 97, 35, 5, 3, 1),
    "in one row": (2, 104, 35, 7, 7, 1),
    "every second": (2, 130, 33, 7, 9, 2),
}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "tactician-pointwise-conv"))
    yield importlib.import_module("tactician_pointwise_conv")
    for name in [n for n in sys.modules if n.startswith("tactician_pointwise_conv")]:
        del sys.modules[name]


def call(case: str, dtype: str, bias: bool) -> tuple[OpSignature, list[Any]]:
    batch, channels, filters, height, width, stride = (CASES | UNEVEN)[case]
    rng = np.random.default_rng(6)
    inputs = [
        rng.standard_normal((batch, channels, height, width)),
        rng.standard_normal((filters, channels, 1, 1)) / np.sqrt(channels),
        rng.standard_normal(filters),
    ]
    inputs = [x.astype(dtype) for x in inputs[: 3 if bias else 2]]
    attributes = {"kernel_shape": [1, 1], "strides": [stride, stride]}
    return make_signature("Conv", inputs, attributes), inputs


def offered(package: Any, name: str, signature: OpSignature, device: Any) -> list[Any]:
    (cls,) = (t for t in package.tactics() if t.__name__ == name)
    return [t for t in cls.candidates(signature, device) if t.decline(signature, device) is None]


def check(device: Any, tactic: Any, signature: OpSignature, inputs: list[Any]) -> None:
    (wanted,) = reference_for(signature)([x.astype(np.float64) for x in inputs])
    (y,) = run_tactic(device, tactic, signature, inputs)
    error = np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted)
    assert error < BOUNDS[str(inputs[0].dtype)], f"{tactic}: {error:.1e}"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("FfmaTiles", "float32"), ("FfmaTiles", "float16"), ("MmaTiles", "float16")]
)
@pytest.mark.parametrize("case", CASES)
def test_matches_the_reference(package: Any, case: str, name: str, dtype: str, bias: bool) -> None:
    device = PtxDevice()
    signature, inputs = call(case, dtype, bias)
    tactics = offered(package, name, signature, device)
    if not tactics:
        pytest.skip(f"{name} has nothing for this case")
    check(device, tactics[-1], signature, inputs)


@pytest.mark.parametrize(("name", "dtype"), [("FfmaTiles", "float32"), ("MmaTiles", "float16")])
@pytest.mark.parametrize("cluster", [False, True], ids=["added up after", "added up in a cluster"])
def test_parts_are_added_up(package: Any, name: str, dtype: str, cluster: bool) -> None:
    device = PtxDevice(90 if cluster else 80)
    signature, inputs = call("many channels", dtype, True)
    split = [t for t in offered(package, name, signature, device) if t.split_k > 1 and t.cluster is cluster]
    assert split
    check(device, split[-1], signature, inputs)


FFMA = {"tile_m": 32, "tile_p": 56, "tile_c": 16, "thread_m": 4, "thread_p": 4}
MMA = {"tile_m": 32, "tile_p": 56, "tile_c": 32, "warps_m": 2, "warps_p": 1}


@pytest.mark.parametrize(
    ("name", "dtype", "fields"),
    [("FfmaTiles", "float32", FFMA), ("FfmaTiles", "float16", FFMA), ("MmaTiles", "float16", MMA)],
)
@pytest.mark.parametrize(
    "way", [(1, False), (3, False), (3, True)], ids=["in one part", "added up after", "added up in a cluster"]
)
@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_parts_of_several_images(
    package: Any, case: str, way: tuple[int, bool], name: str, dtype: str, fields: dict[str, int]
) -> None:
    split_k, cluster = way
    signature, inputs = call(case, dtype, bias=True)
    tactic = getattr(package, name)(**fields, stages=3, split_k=split_k, cluster=cluster)
    check(PtxDevice(90 if cluster else 80), tactic, signature, inputs)
