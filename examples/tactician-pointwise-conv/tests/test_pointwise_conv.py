"""It says what it can't do, offers what makes sense, and every candidate compiles."""

import numpy as np
import pytest
import tactician_pointwise_conv as plugin
from tactician.testing import make_signature, offline_device

RESNET = [(64, 256, 56, 1), (512, 128, 28, 1), (1024, 256, 14, 1), (512, 2048, 7, 1), (1024, 2048, 14, 2)]


def signature(channels=8, filters=16, side=5, stride=1, dtype="float32", window=1, bias=True, **attributes):
    rng = np.random.default_rng(0)
    inputs = [
        rng.standard_normal(shape).astype(dtype)
        for shape in ((1, channels, side, side), (filters, channels, window, window), (filters,))
    ]
    attributes = {"kernel_shape": [window, window], "strides": [stride, stride]} | attributes
    return make_signature("Conv", inputs if bias else inputs[:2], attributes)


def accepted(call, device):
    found = [t for kind in plugin.tactics() for t in kind.candidates(call, device)]
    return [t for t in found if t.decline(call, device) is None]


@pytest.fixture(scope="module", params=["sm_80", "sm_90a"])
def device(request):
    return offline_device("cuda", request.param)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", RESNET, ids=str)
def test_every_candidate_for_resnet_50_compiles(device, shape, dtype):
    call = signature(*shape, dtype=dtype)
    tactics = accepted(call, device)
    assert 1 <= len(tactics) <= 24
    assert len(set(tactics)) == len(tactics)
    for tactic in tactics[:3]:  # all of them take minutes; the GPU's builds compile the others
        assert callable(tactic.prepare(call, device))
        assert tactic.workspace(call, device) >= 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7, 1), (17, 33, 9, 2), (1, 1, 1, 1)], ids=str)
def test_odd_shapes_are_served(device, shape, bias):
    call = signature(*shape, bias=bias)
    tactics = accepted(call, device)
    assert tactics
    assert callable(tactics[0].prepare(call, device))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (signature(window=3), "windows of 1 x 1 only, not 3 x 3"),
        (signature(dtype="float64"), "float32 and float16 only, not float64"),
        (signature(pads=[1, 1, 1, 1]), "no padding, not [1, 1, 1, 1]"),
        (signature(stride=3, side=7), "strides of 1 or 2, equal in both dimensions, not 3 x 3"),
    ],
)
def test_it_says_what_it_can_not_do(device, call, reason):
    for kind in plugin.tactics():
        assert reason in {
            t.decline(call, device) for t in kind.candidates(call, device)
        } or reason == kind().decline(call, device)
