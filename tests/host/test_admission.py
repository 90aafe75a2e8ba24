"""Admission lets what is right pass, and catches every tactic of a zoo of broken ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fakes import Affine, FakeDevice, FakeTensor, affine, candidate, make_tactic, reference, signature
from tactician.plugins.examiner import Examiner
from tactician.plugins.target import Device
from tactician.signature import OpSignature, TensorType
from tactician.tactics import device_judge
from tactician.tactics.admission import Admission, DeviceLostError, Examination, admit
from tactician.tactics.record import Outcome
from tactician.tactics.sampling import CannotSample, hard_inputs, sample_inputs
from tactician.tactics.tactic import Launch


class FakeExaminer(Examiner):
    """Looks at the fake device's tensors where they lie."""

    TYPES = ("float32", "float16", "bfloat16")

    def hold(self, values: np.ndarray[Any, Any]) -> Any:
        return values.copy()

    def copy(self, tensor: FakeTensor, nbytes: int, stream: Any) -> Any:
        return tensor.array.tobytes()

    def same(self, tensor: FakeTensor, other: bytes, nbytes: int, stream: Any) -> bool:
        return bool(tensor.array.tobytes() == other)

    def square_error(self, tensor: FakeTensor, held: Any, allowed: float, root: float, stream: Any) -> float:
        with np.errstate(all="ignore"):
            off = np.abs(tensor.array.reshape(-1).astype(np.float64) - held)
        return float((off**2).sum()) if (off <= allowed * (np.abs(held) + root)).all() else np.inf


@pytest.fixture(params=["on the host", "on the device"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have every test judge results in either place: the verdicts are the same."""
    if request.param == "on the device":
        monkeypatch.setattr(device_judge, "FEWEST", 1)
        monkeypatch.setattr(FakeDevice, "examiner", lambda self: FakeExaminer())
    return str(request.param)


def check(
    tactic: type[Affine], call: OpSignature | None = None, device: FakeDevice | None = None
) -> Admission:
    call = call or signature()
    sets = [sample_inputs(call, np.random.default_rng(n)) for n in range(2)]
    sets.append(hard_inputs(call, np.random.default_rng(2)))
    return admit(candidate(tactic), call, device or FakeDevice(), reference, sets, seed=1)


def broken(name: str, **attributes: Any) -> type[Affine]:
    """Return a tactic that computes y and then does what ``after`` says."""
    after = attributes.pop("after")

    def run(self: Affine, device: FakeDevice, inputs: Any, outputs: Any, workspace: Any) -> None:
        Affine.run(self, device, inputs, outputs, workspace)
        after(inputs, outputs, workspace)

    return make_tactic(name, run=run, **attributes)


def poke(tensor: FakeTensor, distance: int) -> None:
    """Write one byte ``distance`` bytes past the end of ``tensor`` (before the start if negative)."""
    place = tensor.offset + (tensor.type.nbytes + distance - 1 if distance > 0 else distance)
    tensor.buffer[place] ^= 0xFF


def set_element(tensor: FakeTensor, index: int, value: float) -> None:
    tensor.array.reshape(-1)[index] = value


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "int8", "int64", "float8e4m3fn"]
)
@pytest.mark.parametrize("shape", [(3, 100), (1,), (0, 4), (7, 5, 3)])
def test_a_right_tactic_passes(dtype: str, shape: tuple[int, ...]) -> None:
    verdict = check(make_tactic("Good", scratch=64), signature(*shape, dtype=dtype))
    assert verdict.ok, verdict.reason
    assert verdict.outcome is Outcome.UNMEASURED
    assert verdict.error is not None
    assert verdict.tolerance is not None
    assert verdict.error <= verdict.tolerance
    assert verdict.workspace == 64
    assert verdict.launch is not None
    assert verdict.seconds is not None


ZOO = {
    "wrong": (broken("Wrong", after=lambda i, o, w: np.multiply(o[0].array, 1.001, out=o[0].array)), "error"),
    "one wrong element": (
        broken("One", after=lambda i, o, w: set_element(o[0], 77, 9.0)),
        "exceeds.*worst at 77: 9",
    ),
    "a NaN": (broken("Nan", after=lambda i, o, w: set_element(o[0], 5, np.nan)), "not finite.*at 5"),
    "an infinity": (broken("Inf", after=lambda i, o, w: set_element(o[0], 5, np.inf)), "not finite.*at 5"),
    "nothing written": (make_tactic("Lazy", run=lambda *a: None), "not finite"),
    "writes past the end": (
        broken("Past", after=lambda i, o, w: poke(o[0], 1)),
        "past the end .1 bytes off.*out",
    ),
    "writes far past the end": (broken("Far", after=lambda i, o, w: poke(o[0], 900)), "900 bytes off"),
    "writes before the start": (
        broken("Before", after=lambda i, o, w: poke(o[0], -4)),
        "before the start .4",
    ),
    "overruns its workspace": (
        broken("Scratch", scratch=32, after=lambda i, o, w: poke(w, 1)),
        "past the end.*workspace",
    ),
    "changes its input": (
        broken("Greedy", after=lambda i, o, w: set_element(i[0], 3, 7.0)),
        "changes input 0",
    ),
    "writes beside its input": (broken("Beside", after=lambda i, o, w: poke(i[0], 1)), "input 0"),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_caught(name: str) -> None:
    tactic, reason = ZOO[name]
    verdict = check(tactic)
    assert not verdict.ok
    assert verdict.outcome is Outcome.WRONG
    assert re.search(reason, verdict.reason), verdict.reason


def test_one_wrong_element_among_very_many_is_caught() -> None:
    """Half of the others' size in one of 200,000 is a relative error of 1e-3, within fp16's tolerance."""
    tactic = broken("One", after=lambda i, o, w: set_element(o[0], 77, float(o[0].array[0, 77]) + 0.8))
    verdict = check(tactic, signature(2, 100_000, dtype="float16"))
    assert verdict.outcome is Outcome.WRONG
    assert re.search("1 of 200000 elements are far off, first at 77", verdict.reason)
    assert verdict.error is not None
    assert verdict.tolerance is not None
    assert verdict.error < verdict.tolerance


def test_an_integer_output_left_alone_is_caught() -> None:
    verdict = check(make_tactic("Lazy", run=lambda *a: None), signature(dtype="int8"))
    assert verdict.outcome is Outcome.WRONG
    assert "differs in" in verdict.reason


def test_a_single_element_left_alone_is_caught_by_the_second_run() -> None:
    """The right value happens to be what the output was poisoned with; the second run's poison differs."""

    def run(self: Affine, device: Any, inputs: Any, outputs: Any, workspace: Any) -> None:
        outputs[0].array[1:] = affine(inputs[0].array[1:])

    def all_poison(signature: OpSignature) -> Any:
        return lambda inputs: (np.concatenate([np.full(1, -1, np.int8), 2 * inputs[0][1:] + np.int8(1)]),)

    call = signature(50, dtype="int8")
    inputs = sample_inputs(call, np.random.default_rng(0))
    verdict = admit(candidate(make_tactic("Lucky", run=run)), call, FakeDevice(), all_poison, [inputs])
    assert verdict.outcome is Outcome.WRONG
    assert "second run" in verdict.reason


class Counter:
    calls = 0


def unsteady(scale: float, **attributes: Any) -> type[Affine]:
    """Return a tactic whose results differ from run to run by ``scale``."""

    def after(inputs: Any, outputs: Any, workspace: Any) -> None:
        Counter.calls += 1
        outputs[0].array[...] *= np.float32(1 + scale * (Counter.calls % 2))

    return broken("Unsteady", after=after, **attributes)


def test_results_that_differ_between_runs_must_be_declared() -> None:
    verdict = check(unsteady(3e-7))
    assert verdict.outcome is Outcome.WRONG
    assert "nondeterministic" in verdict.reason
    assert check(unsteady(3e-7, marks=frozenset({"nondeterministic"}))).ok
    assert not check(unsteady(1e-3, marks=frozenset({"nondeterministic"}))).ok, (
        "declared, and wrong all the same"
    )


def test_a_launch_that_depends_on_its_workspace_is_caught() -> None:
    def after(inputs: Any, outputs: Any, workspace: Any) -> None:
        outputs[0].array[0, 0] += np.float32(1e-6) * np.float32(workspace.array[0])

    verdict = check(broken("Dirty", scratch=4, after=after))
    assert verdict.outcome is Outcome.WRONG


def raising(*_: Any) -> None:
    raise RuntimeError("no such kernel\nand more lines")


@pytest.mark.parametrize("method", ["prepare", "run", "workspace", "numerics"])
def test_what_raises_has_failed(method: str) -> None:
    verdict = check(make_tactic("Raises", **{method: raising}))
    assert verdict.outcome is Outcome.FAILED
    assert "RuntimeError: no such kernel" in verdict.reason
    assert "and more" not in verdict.reason


def test_a_tactic_that_exits_has_failed() -> None:
    def exits(*_: Any) -> None:
        raise SystemExit(3)

    assert check(make_tactic("Exits", run=exits)).outcome is Outcome.FAILED


def test_a_bad_tactic_does_no_harm_to_the_next() -> None:
    call, device = signature(), FakeDevice()
    sets = [sample_inputs(call, np.random.default_rng(n)) for n in range(2)]
    exam = Examination(call, device, reference, sets)
    greedy, past = ZOO["changes its input"][0], ZOO["writes beside its input"][0]
    assert not exam.examine(candidate(greedy)).ok
    assert exam.examine(candidate(make_tactic("Good"))).ok
    assert not exam.examine(candidate(past)).ok
    assert exam.examine(candidate(make_tactic("Good"))).ok


def test_little_is_copied_for_a_check(where: str) -> None:
    """Poison is written where the device can do that, guards are read alone, and inputs once for a set."""

    class Counting(FakeDevice):
        def __init__(self) -> None:
            super().__init__()
            self.written = self.read = self.filled = 0

        def fill(self, tensor: Any, nbytes: int, byte: int) -> None:
            tensor.array[...] = byte
            self.filled += nbytes

        def upload(self, tensor: Any, array: Any, stream: Any = None) -> None:
            self.written += array.nbytes
            super().upload(tensor, array, stream)

        def download(self, tensor: Any, stream: Any = None) -> Any:
            array = super().download(tensor, stream)
            self.read += array.nbytes
            return array

    call, device = signature(1 << 20), Counting()
    sets = [sample_inputs(call, np.random.default_rng(n)) for n in range(2)]
    exam = Examination(call, device, reference, sets)
    device.written = device.read = 0
    assert exam.examine(candidate(make_tactic("Good", scratch=1 << 20))).ok
    size = 4 << 20
    assert device.filled == 3 * (size + (1 << 20)), "three runs"
    assert device.written < 10_000, "guards"
    if where == "on the device":
        assert device.read < 1e5
        return
    assert 5 * size < device.read < 5 * size + 100_000, "three results and two inputs"


def test_the_reference_is_computed_once_for_all() -> None:
    calls: list[bool] = []

    def counting(call: OpSignature) -> Any:
        def compute(inputs: Sequence[Any]) -> Any:
            calls.append(inputs[0].dtype == np.float64)
            return reference(call)(inputs)

        return compute

    call = signature()
    exam = Examination(call, FakeDevice(), counting, [sample_inputs(call, np.random.default_rng(0))])
    for _ in range(3):
        assert exam.examine(candidate(make_tactic("Good"))).ok
    assert calls == [True], "once, and in double precision"


def test_a_reference_that_takes_no_double_is_asked_in_the_given_type() -> None:
    def narrow(call: OpSignature) -> Any:
        def compute(inputs: Sequence[Any]) -> Any:
            if inputs[0].dtype == np.float64:
                raise TypeError("float32 only")
            return reference(call)(inputs)

        return compute

    call = signature()
    inputs = sample_inputs(call, np.random.default_rng(0))
    assert admit(candidate(make_tactic("Good")), call, FakeDevice(), narrow, [inputs]).ok
    assert not admit(candidate(ZOO["wrong"][0]), call, FakeDevice(), narrow, [inputs]).ok


def test_a_step_may_jump_where_the_given_precision_does() -> None:
    """floor(x / 0.1f) differs between float32 and double at some multiples of 0.1; either answer is right."""
    x = np.arange(0, 50, dtype=np.float32) * np.float32(0.1)

    def floor(call: OpSignature) -> Any:
        return lambda inputs: (np.floor(inputs[0] / inputs[0].dtype.type(np.float32(0.1))),)

    def run(self: Affine, device: Any, inputs: Any, outputs: Any, workspace: Any) -> None:
        outputs[0].array[...] = np.floor(inputs[0].array / np.float32(0.1))

    assert np.any(floor(signature())([x])[0] != floor(signature())([x.astype(np.float64)])[0])
    assert admit(candidate(make_tactic("Floor", run=run)), signature(50), FakeDevice(), floor, [[x]]).ok


def test_no_reference_no_verdict() -> None:
    def none(call: OpSignature) -> Any:
        raise NotImplementedError("nobody knows")

    with pytest.raises(CannotSample, match="nobody knows"):
        admit(
            candidate(make_tactic("Good")), signature(), FakeDevice(), none, [[np.ones((3, 100), np.float32)]]
        )


def test_hard_inputs_that_the_reference_refuses_are_left_out() -> None:
    def choosy(call: OpSignature) -> Any:
        def compute(inputs: Sequence[Any]) -> Any:
            if np.any(inputs[0] > 5):
                raise ValueError("too large")
            return reference(call)(inputs)

        return compute

    sets = [[np.ones((3, 100), np.float32)], [np.full((3, 100), 9, np.float32)]]
    assert admit(candidate(make_tactic("Good")), signature(), FakeDevice(), choosy, sets).ok


def test_a_lost_device_is_an_error_that_names_the_tactic() -> None:
    def run(self: Affine, device: FakeDevice, inputs: Any, outputs: Any, workspace: Any) -> None:
        device.lost = True

    with pytest.raises(DeviceLostError, match=r"acme\.killer.*illegal memory access"):
        check(make_tactic("Killer", run=run))


def test_outputs_of_unknown_shape_are_returned() -> None:
    call = signature()
    dynamic = call.bound(call.inputs, (TensorType("float32", (None, None)),))
    seen: list[Any] = []

    def prepare(self: Affine, signature: OpSignature, device: Device) -> Launch:
        def launch(inputs: Any, outputs: Any, workspace: Any, stream: Any) -> Any:
            seen.append(outputs[0])
            return [affine(inputs[0].array)]

        return launch

    assert check(make_tactic("Dynamic", prepare=prepare), dynamic).ok
    assert set(map(type, seen)) == {type(None)}
    half = make_tactic("Half", prepare=lambda *a: lambda inputs, *b: [affine(inputs[0].array)[:1]])
    assert "has shape [1, 100], the reference has [3, 100]" in check(half, dynamic).reason
    other = make_tactic(
        "Other", prepare=lambda *a: lambda inputs, *b: [affine(inputs[0].array).astype(np.float64)]
    )
    assert "has type float64" in check(other, dynamic).reason


def test_bool_outputs_hold_zero_and_one() -> None:
    call = signature().bound((TensorType("float32", (40,)),), (TensorType("bool", (40,)),))

    def positive(signature: OpSignature) -> Any:
        return lambda inputs: (inputs[0] > 0,)

    def run(truth: int) -> Any:
        def compute(self: Affine, device: Any, inputs: Any, outputs: Any, workspace: Any) -> None:
            outputs[0].array.view(np.uint8)[...] = np.where(inputs[0].array > 0, truth, 0)

        return compute

    inputs = [sample_inputs(call, np.random.default_rng(0))]
    assert admit(candidate(make_tactic("One", run=run(1))), call, FakeDevice(), positive, inputs).ok
    verdict = admit(candidate(make_tactic("Two", run=run(2))), call, FakeDevice(), positive, inputs)
    assert "bytes other than 0 and 1" in verdict.reason


def rounding(dtype: Any) -> type[Affine]:
    def run(self: Affine, device: Any, inputs: Any, outputs: Any, workspace: Any) -> None:
        outputs[0].array[...] = affine(inputs[0].array.astype(dtype).astype(np.float32))

    return make_tactic("Rounded", run=run)


def test_lower_precision_must_be_declared() -> None:
    assert not check(rounding(np.float16)).ok
    assert not check(rounding(ml_dtypes.bfloat16), signature(4, 8, dtype="float16")).ok
    declared = make_tactic("Tf32", rounding(np.float16), marks=frozenset({"tf32"}))
    assert check(declared).ok, "fp16 has the same number of digits as tf32"
