"""Optimization profiles: any shape within one runs as ONNX Runtime does, and nothing is timed for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from fakes import Affine, FakeDevice, make_tactic, registry, signature
from hypothesis import given, settings
from hypothesis import strategies as st
from profiled import LARGE, SMALL, expected, feeds, is_right, model
from tactician import BuilderConfig, Engine, OptimizationProfile, ProfiledEngine, ProfiledSession, Session
from tactician.errors import (
    ConfigError,
    DamagedEngineError,
    InputError,
    NoTacticError,
    ProfileError,
    ShapeError,
    SpecialisationError,
)
from tactician.plan import BuildReport, ModelInfo, Place, Plan, TensorSpec
from tactician.plugins.manager import Plugins
from tactician.profile_choices import ProfileChoices
from tactician.profiles import find_profile
from tactician.runtime.device_weights import DeviceWeights
from tactician.signature import OpSignature
from tactician.specialising import Specialiser
from tactician.tactics.measure import Measurer
from tactician.tactics.record import CandidateRecord, Decision, Outcome, Timing

Run = Callable[..., tuple[int, str, str]]
MOST = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuilderConfig:
    return BuilderConfig(
        target="cpu",
        plugins=("builtin",),
        isolate=False,
        threads=1,
        timing_cache=tmp_path_factory.mktemp("cache") / "timing.sqlite",
        profiles=(SMALL, LARGE),
    )


@pytest.fixture(scope="module")
def engine(config: BuilderConfig) -> ProfiledEngine:
    built = tactician.build(model(), config)
    assert isinstance(built, ProfiledEngine)
    return built


def loaded(path: Path) -> ProfiledEngine:
    engine = Engine.load(path)
    assert isinstance(engine, ProfiledEngine)
    return engine


@pytest.fixture
def session(engine: ProfiledEngine) -> ProfiledSession:
    return ProfiledSession(engine, most_shapes=MOST)


@pytest.fixture
def no_specialiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Specialiser, "__init__", None)


class TestShapes:
    @pytest.fixture(scope="class")
    @staticmethod
    def kept(engine: ProfiledEngine) -> ProfiledSession:
        return ProfiledSession(engine, most_shapes=MOST)

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_any_shape_within_a_profile_runs(self, kept: ProfiledSession, data: st.DataObject) -> None:
        profile = data.draw(st.sampled_from([SMALL, LARGE]))
        (low, _, high) = profile.shapes["m"]
        batch, rows = (data.draw(st.integers(a, b)) for a, b in zip(low, high, strict=True))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Measurer, "measure_all", None)  # nothing may be measured
            assert is_right(kept, feeds(batch, rows))
            assert is_right(kept, feeds(batch, rows, 1))
        assert len(kept.prepared) <= MOST

    @settings(max_examples=25, deadline=None)
    @given(batch=st.integers(0, 9), rows=st.integers(0, 40))
    def test_any_other_is_refused(self, kept: ProfiledSession, batch: int, rows: int) -> None:
        held = any(
            low[0] <= batch <= high[0] and low[1] <= rows <= high[1]
            for low, _, high in (SMALL.shapes["m"], LARGE.shapes["m"])
        )
        if not held:
            with pytest.raises(ProfileError, match=f"shape \\[{batch}, {rows}, 16\\]"):
                kept.run(feeds(batch, rows))


def test_a_refusal_says_what_to_do(session: ProfiledSession) -> None:
    with pytest.raises(ProfileError) as caught:
        session.run(feeds(2, 25))
    for part in (
        "input 'x' has shape [2, 25, 16]",
        f"profile 0, {SMALL}: input 'x': dimension 1 is 25, not 1 to 8",
        f"profile 1, {LARGE}: input 'x': dimension 1 is 25, not 6 to 24",
        "--profile",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value, InputError)
    with pytest.raises(ProfileError, match="it has 2 dimensions, not 3"):
        session.run({"x": np.zeros((2, 4), np.float32), "m": np.zeros((2, 4), np.float32)})
    with pytest.raises(InputError, match="input 'm'.*missing"):
        session.run({"x": np.zeros((2, 4, 16), np.float32)})
    with pytest.raises(InputError, match="the shape of input 'm' is missing"):
        session.prepare({"x": (2, 4, 16)})
    with pytest.raises(InputError, match="must be float32"):
        session.run({"x": np.zeros((2, 4, 16)), "m": np.zeros((2, 4), np.float32)})


@pytest.mark.usefixtures("no_specialiser")
def test_the_best_shape_of_a_profile_needs_no_build(session: ProfiledSession) -> None:
    assert is_right(session, feeds(2, 4))
    assert is_right(session, feeds(3, 12))
    assert session.prepared == []


def test_shapes_are_kept_while_they_are_used(
    session: ProfiledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    specialise = Specialiser.specialise

    def counted(self: Specialiser, number: int, shapes: Any) -> Engine:
        made.append(shapes["m"][0])
        return specialise(self, number, shapes)

    monkeypatch.setattr(Specialiser, "specialise", counted)
    for batch in (1, 3, 4):
        session.prepare({"x": (batch, 4, 16), "m": (batch, 4)})
    assert [shapes["m"][0] for shapes in session.prepared] == [1, 3, 4]
    for batch in (1, 2, 3, 4, 1):
        assert is_right(session, feeds(batch, 4))
    assert made == [1, 3, 4]
    assert is_right(session, feeds(1, 5))
    assert [shapes["m"] for shapes in session.prepared] == [(4, 4), (1, 4), (1, 5)]


def test_the_shapes_of_the_run_before_are_not_looked_up(
    engine: ProfiledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ProfiledSession(engine, most_shapes=1)
    searched: list[Any] = []

    def counted(profiles: Any, shapes: Any) -> int | None:
        searched.append(shapes["m"])
        return find_profile(profiles, shapes)

    monkeypatch.setattr("tactician.runtime.profiled_session.find_profile", counted)
    for batch in (1, 1, 3, 3, 1, 2, 2):  # 3 takes the place of 1, and 1 that of 3; 2 is a profile's opt
        assert is_right(session, feeds(batch, 4))
    assert searched == [(1, 4), (3, 4), (1, 4), (2, 4)]
    with pytest.raises(ProfileError):
        session.run(feeds(2, 25))
    assert is_right(session, feeds(2, 4))


def test_threads_take_turns(engine: ProfiledEngine) -> None:
    session = ProfiledSession(engine, most_shapes=1)
    wrong: list[tuple[int, int]] = []

    def work(batch: int) -> None:
        for rows in (3, 4, 5):
            if not is_right(session, feeds(batch, rows)):
                wrong.append((batch, rows))

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(session.prepared) == 1


def test_what_a_session_says_of_itself(session: ProfiledSession) -> None:
    assert [str(spec.type) for spec in session.inputs] == ["float32[1..5, 1..24, 16]", "float32[1..5, 1..24]"]
    (output,) = session.outputs
    assert (output.name, output.type.shape) == ("y", ("b", "n"))
    steps = session.profile(feeds(1, 3), 2)
    assert {step.node for step in steps} == {step.node for step in session.plan.steps}
    timer = session.timer()
    contender = timer.prepare(session.thunk(feeds(1, 3)))
    assert timer.round([contender])[0] > 0
    outputs = session.enqueue(None, feeds(1, 3))
    assert np.allclose(outputs["y"], expected(feeds(1, 3)), rtol=1e-4, atol=1e-5)


def test_specialised_engines_follow_their_profile(engine: ProfiledEngine) -> None:
    for number, shape in ((0, (4, 8)), (1, (5, 24))):
        made = Specialiser(engine).specialise(number, {"x": (*shape, 16), "m": shape})
        chosen = {n: d.chosen for d in engine.engines[number].report.decisions for n in d.nodes}
        assert {n: d.chosen for d in made.report.decisions for n in d.nodes} == chosen
        assert {d.chosen_by for d in made.report.decisions} == {"profile"}


def test_weights_are_held_once(engine: ProfiledEngine) -> None:
    made = Specialiser(engine).specialise(0, {"x": (1, 3, 16), "m": (1, 3)})
    first, second = engine.engines
    assert engine.model is not None
    for name in ("wq", "w2"):
        shared = first.weights[name]
        assert second.weights[name] is shared
        assert made.weights[name] is shared
        assert engine.model.weights[name] is shared


def test_weights_are_uploaded_once() -> None:
    device, rng = FakeDevice(), np.random.default_rng(0)
    contents = {name: memoryview(rng.bytes(400)) for name in "abc"}

    def engine_of(names: str) -> Engine:
        tensors = tuple(TensorSpec(n, "float32", (10, 10), "fake", Place.WEIGHT) for n in names)
        plan = Plan(1, "", "fake", {}, ModelInfo("", "", 0, 0), (), tensors, (), (), (), (), 1)
        return Engine(plan, BuildReport({}, (), (), {}), {n: contents[n] for n in names}, {})

    base = DeviceWeights()
    first, buffers = base.place(engine_of("ab"), {"fake": device})
    assert (device.uploads, len(buffers)) == (2, 1)
    own = DeviceWeights(base)
    second, buffers = own.place(engine_of("bc"), {"fake": device})
    assert (device.uploads, len(buffers)) == (3, 1)
    assert second[0] is first[1]
    for weights, names in ((first, "ab"), (second, "bc")):
        for index, name in enumerate(names):
            assert weights[index].array.tobytes() == bytes(contents[name])
    third, _ = base.place(engine_of("c"), {"fake": device})
    assert third[0] is not second[1], "what is one shape's alone goes with it"


class TestFile:
    @pytest.fixture(scope="class")
    @staticmethod
    def path(engine: ProfiledEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("engine") / "e.tactician"
        engine.save(path)
        return path

    def test_it_comes_back(self, engine: ProfiledEngine, path: Path, tmp_path: Path) -> None:
        again = Engine.load(path)
        assert isinstance(again, ProfiledEngine)
        assert again.profiles == engine.profiles
        assert [e.plan for e in again.engines] == [e.plan for e in engine.engines]
        assert [e.report for e in again.engines] == [e.report for e in engine.engines]
        assert again.outputs == engine.outputs
        again.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()

    def test_it_runs(self, path: Path) -> None:
        session = tactician.load(path)
        assert isinstance(session, ProfiledSession)
        for shape in ((2, 4), (3, 12), (4, 3), (5, 24)):
            assert is_right(session, feeds(*shape))
            assert is_right(session, feeds(*shape, 1))

    def test_equal_weights_are_in_it_once(self, engine: ProfiledEngine, path: Path) -> None:
        names = [n for n in loaded(path).engines[0].weights if "padding" not in n]
        assert len(names) == len(engine.weights)
        wanted = sum(memoryview(data).nbytes for data in engine.weights.values())
        parts = {name: b"".join(map(bytes, pieces)) for name, pieces in engine.parts().items()}
        assert len(parts["weights"]) < 1.5 * wanted + 8192

    def test_without_onnx(self, path: Path) -> None:
        """The opt shapes run without it; another one says what is missing."""
        script = """
import sys
sys.modules["onnx"] = sys.modules["onnx_ir"] = None
import numpy as np, tactician
session = tactician.Session(sys.argv[1])
def run(b, s):
    return session.run({"x": np.zeros((b, s, 16), np.float32), "m": np.zeros((b, s), np.float32)})
assert run(2, 4)["y"].shape == (2, 32)
assert run(3, 12)["y"].shape == (3, 96)
try:
    run(1, 4)
except tactician.errors.SpecialisationError as error:
    print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script.replace("import numpy", "import tactician.errors, numpy"), path],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "is not installed here; install it (pip install onnx" in done.stdout

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_damage_is_found(
        self, path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        damaged = tmp_path_factory.mktemp("damaged") / "e.tactician"
        damaged.write_bytes(content)
        try:
            again = Engine.load(damaged)
        except tactician.errors.EngineError:
            return
        assert isinstance(again, ProfiledEngine), "padding was hit, or the reserved field"
        assert [e.plan for e in again.engines] == [e.plan for e in loaded(path).engines]

    def test_a_profile_that_makes_no_sense_is_damage(self, engine: ProfiledEngine, tmp_path: Path) -> None:
        broken = replace(engine, profiles=(SMALL,))
        broken.save(tmp_path / "e")
        with pytest.raises(DamagedEngineError, match="1 profiles and 2 engines"):
            Engine.load(tmp_path / "e")


@pytest.mark.parametrize("precision", ["fp16", "best"])
def test_in_another_precision(config: BuilderConfig, precision: Any, tmp_path: Path) -> None:
    options = replace(config, profiles=(SMALL,), precision=precision, precision_tolerance=0.02)
    tactician.build(model(), options).save(tmp_path / "e")
    session = ProfiledSession(tmp_path / "e")
    assert is_right(session, feeds(2, 4), tolerance=0.02)
    assert is_right(session, feeds(1, 7), tolerance=0.02)
    (made,) = session._others.values()
    types = [{t.dtype for t in one.plan.tensors} for one in (made, session)]
    assert types[0] == types[1]


PLUGIN = """
from dataclasses import dataclass
import numpy as np
from tactician import Op, Tactic, hookimpl

SCALE = Op("scaled::Scale", infer=lambda signature: [signature.inputs[0]], reference=lambda signature, x: x * 3)

@dataclass(frozen=True)
class Multiply(Tactic):
    op = SCALE.name
    target = "cpu"

    def prepare(self, signature, device):
        return lambda inputs, outputs, workspace, stream: np.multiply(inputs[0], np.float32(3), out=outputs[0])

@hookimpl
def ops():
    return [SCALE]

@hookimpl
def tactics():
    return [Multiply]
"""


def test_operators_of_plugins(config: BuilderConfig, tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(PLUGIN)
    plugins = ("builtin", str(tmp_path / "scaled.py"))
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20, "scaled" : 1]> g (float[n] x) => (float[n] y) { y = scaled.Scale (x) }'
    )
    profile = OptimizationProfile({"x": ((1,), (2,), (9,))})
    built = tactician.build(proto, replace(config, plugins=plugins, profiles=(profile,)))
    built.save(tmp_path / "e")
    session = Session(tmp_path / "e", plugins=plugins)
    for size in (2, 1, 9):
        assert session.run({"x": np.ones(size, np.float32)})["y"].tolist() == [3] * size


def test_one_shape_alone_keeps_no_model(config: BuilderConfig, tmp_path: Path) -> None:
    shapes = {name: (opt, opt, opt) for name, opt in SMALL.opt.items()}
    built = tactician.build(model(), replace(config, profiles=(OptimizationProfile(shapes),)))
    assert isinstance(built, ProfiledEngine)
    assert built.model is None
    built.save(tmp_path / "e")
    session = Session(tmp_path / "e")
    assert is_right(session, feeds(2, 4))
    with pytest.raises(ProfileError):
        session.run(feeds(2, 5))


def test_new_weights(engine: ProfiledEngine, config: BuilderConfig) -> None:
    refitted = tactician.refit(engine, model(2))
    session = Session(refitted)
    for shape in ((2, 4), (3, 12), (1, 5)):
        assert is_right(session, feeds(*shape), model(2))
    assert is_right(Session(engine), feeds(1, 5))


def test_every_profile_has_a_lock_file(config: BuilderConfig, engine: ProfiledEngine, tmp_path: Path) -> None:
    from tactician.profiles import numbered
    from tactician.tactics.lock import LockFile

    path = tmp_path / "m.lock.json"
    for number, part in enumerate(engine.engines):
        lock = LockFile.of(part.report.decisions, part.plan.plugins, target="cpu")
        lock.save(numbered(path, number))
    assert (tmp_path / "m.lock.1.json").is_file()
    again = tactician.build(model(), replace(config, lock_file=path, locked=True))
    assert isinstance(again, ProfiledEngine)
    for one, other in zip(engine.engines, again.engines, strict=True):
        assert one.plan == other.plan
        assert {d.chosen_by for d in other.report.decisions} == {"lock"}


class TestModelsThatCannot:
    REST = '<ir_version: 9, opset_import: ["" : 20]> g (float[n] x) => (float[a, b] y) <int64[2] s = {%s}> { y = Reshape (x, s) }'

    def test_a_profile_whose_bound_the_model_cannot_have(self, config: BuilderConfig) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 20]> g (float[n, 3] x) => (float[n, 3] y) '
            "<float[4, 3] c = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}> { y = Add (x, c) }"
        )
        profile = OptimizationProfile({"x": ((1, 3), (4, 3), (7, 3))})
        with pytest.raises(ShapeError, match=r"profile 0 \(x:1x3\.\.4x3\.\.7x3\), at its max: "):
            tactician.build(proto, replace(config, profiles=(profile,)))

    def test_a_shape_that_the_model_cannot_have(self, config: BuilderConfig) -> None:
        proto = onnx.parser.parse_model(self.REST % "-1, 4")
        profile = OptimizationProfile({"x": ((4,), (8,), (16,))})
        session = Session(tactician.build(proto, replace(config, profiles=(profile,))))
        x = np.arange(12, dtype=np.float32)
        assert np.array_equal(session.run({"x": x})["y"], x.reshape(-1, 4))
        with pytest.raises(SpecialisationError, match="for 'x' as 9, which profile 0 holds"):
            session.run({"x": np.zeros(9, np.float32)})

    @pytest.mark.parametrize(
        ("profiles", "shapes", "message"),
        [
            (
                (SMALL, OptimizationProfile({"x": ((1, 1, 16),) * 3})),
                {},
                "name the same ones in all profiles",
            ),
            ((SMALL,), {"x": (2, 4, 16)}, "input 'x' has a shape and is in a profile"),
        ],
    )
    def test_profiles_that_contradict(
        self, config: BuilderConfig, profiles: Any, shapes: Any, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            tactician.build(model(), replace(config, profiles=profiles, shapes=shapes))

    def test_an_input_that_is_not_there(self, config: BuilderConfig) -> None:
        profile = OptimizationProfile({"z": ((1,), (2,), (3,))})
        with pytest.raises(ShapeError, match="the model has no such input"):
            tactician.build(model(), replace(config, profiles=(profile,)))

    def test_an_engine_without_profiles(self, config: BuilderConfig) -> None:
        built = tactician.build(model(), replace(config, profiles=(), shapes=SMALL.opt))
        with pytest.raises(ConfigError, match="has no profiles"):
            ProfiledSession(built)

    def test_no_room_for_any_shape(self, engine: ProfiledEngine) -> None:
        with pytest.raises(ConfigError, match="most_shapes is 0"):
            ProfiledSession(engine, most_shapes=0)


@dataclass(frozen=True)
class Blocks(Affine):
    """Takes tensors whose rows its block divides; asks for the two smallest to be timed."""

    block: int = 1

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Any:
        return [cls(block=b) for b in (4, 2)]

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Any:
        return [cls(block=b) for b in (8, 6, 4, 2)]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        (x, *_) = signature.inputs
        assert x is not None
        rows = x.dims[0]
        return f"{rows} rows are no multiple of {self.block}" if rows % self.block else None


class TestChoices:
    def choose(self, rows: int, chosen: str = "acme.blocks(block=4)", node: str = "n", **options: Any) -> str:
        """Return the choice for ``rows`` after a profile with 8 of them, at which ``affine`` was found to be wrong."""
        plugins = Plugins(
            registry(
                Affine,
                Blocks,
                make_tactic("Quick"),
                make_tactic("Slow"),
                make_tactic("Elsewhere", target="other"),
                make_tactic("Rough", marks=frozenset({"tf32"})),
            )
        )
        timed = {"acme.slow()": 9e-6, "acme.quick()": 3e-6, "acme.rough()": 1e-6, chosen: 1e-6}
        records = [
            CandidateRecord(id, "acme", Outcome.SLOWER, timing=Timing(s, s, s, 9)) for id, s in timed.items()
        ]
        records.append(CandidateRecord("acme.affine()", "acme", Outcome.WRONG))
        call = signature(8, 3)
        decision = Decision(str(call), call.key, ("n",), "fake", chosen, "default", tuple(records))
        devices: list[Any] = [FakeDevice(), FakeDevice()]
        devices[1].target = "other"
        choices = ProfileChoices([decision], plugins, BuilderConfig(**options), devices)
        made, assignment = choices.choose(node, signature(rows, 3))
        assert (made.chosen, made.nodes, made.target) == (assignment.candidate.id, (node,), assignment.target)
        assert made.winner.outcome == Outcome.CHOSEN
        return made.chosen.removeprefix("acme.")

    def test_what_was_chosen(self) -> None:
        assert self.choose(12) == "blocks(block=4)"
        assert self.choose(12, node="another") == "blocks(block=4)"

    def test_what_was_chosen_though_it_would_not_be_timed_here(self) -> None:
        assert self.choose(12, "acme.blocks(block=6)") == "blocks(block=6)"
        assert self.choose(12, "acme.blocks(block=3)") == "blocks(block=4)", (
            "the class has no such configuration"
        )

    def test_another_of_its_class(self) -> None:
        assert self.choose(6) == "blocks(block=2)"

    def test_what_was_measured_as_fastest_and_may_be_used(self) -> None:
        assert self.choose(5) == "quick()"
        assert self.choose(5, tf32=True) == "rough()"

    def test_nothing_that_may_be_used(self) -> None:
        with pytest.raises(NoTacticError, match="no tactic runs n"):
            self.choose(5, sources=("nobody",))


@st.composite
def profiles(draw: st.DrawFn) -> OptimizationProfile:
    names = draw(st.lists(st.sampled_from(["x", "a:b", "in.put", "é"]), min_size=1, unique=True))
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    for name in names:
        dims = draw(
            st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3).map(sorted), min_size=1, max_size=4)
        )
        low, opt, high = (tuple(d[i] for d in dims) for i in range(3))
        shapes[name] = low, opt, high
    return OptimizationProfile(shapes)


class TestProfile:
    @given(profiles())
    def test_its_text_is_read_back(self, profile: OptimizationProfile) -> None:
        assert OptimizationProfile.parse(str(profile)) == profile

    @given(profiles(), st.data())
    def test_what_it_holds(self, profile: OptimizationProfile, data: st.DataObject) -> None:
        inside = {
            name: tuple(data.draw(st.integers(a, b)) for a, b in zip(low, high, strict=True))
            for name, (low, _, high) in profile.shapes.items()
        }
        assert profile.refusal(inside) is None
        name = data.draw(st.sampled_from(sorted(inside)))
        place = data.draw(st.integers(0, len(inside[name]) - 1))
        outside = list(inside[name])
        outside[place] = profile.shapes[name][2][place] + data.draw(st.integers(1, 9))
        refusal = profile.refusal(inside | {name: tuple(outside)})
        assert refusal is not None
        assert refusal[0] == name
        assert find_profile([profile], inside) == 0
        assert find_profile([profile], inside | {name: tuple(outside)}) is None

    def test_the_nearest_best_shape_wins(self) -> None:
        found = [
            find_profile([SMALL, LARGE], {"x": (1, n, 16), "m": (1, n)}) for n in (1, 6, 7, 8, 9, 24, 25)
        ]
        assert found == [0, 0, 0, 0, 1, 1, None]
        assert find_profile([SMALL, SMALL], SMALL.opt) == 0

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({}, "names no input"),
            ({"x": ((1, 2), (1, 2))}, "are not three shapes"),
            ({"x": 3}, "are not three shapes"),
            ({"x": ((1,), (1, 2), (1,))}, "as many dimensions"),
            ({"x": ((2,), (1,), (3,))}, "dimension 0 must be 0 <= min <= opt <= max, but it is 2, 1, 3"),
            ({"x": ((1,), (4,), (3,))}, "but it is 1, 4, 3"),
            ({"x": ((-1,), (4,), (5,))}, "but it is -1, 4, 5"),
        ],
    )
    def test_what_makes_no_sense(self, shapes: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            OptimizationProfile(shapes)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "x:1..2",
            "x:1..2..3..4",
            "x:1..2..3,",
            "x:1..2..3 y:1..2..3",
            "x:1..2..3,x:1..2..3",
            "x:a..b..c",
        ],
    )
    def test_texts_that_make_no_sense(self, text: str) -> None:
        with pytest.raises(ConfigError, match="is no profile; write NAME:MIN..OPT..MAX"):
            OptimizationProfile.parse(text)


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    options = ("--target", "cpu", "--threads", "1", "--profile", SMALL, "--profile", LARGE)
    code, out, err = run("build", "m.onnx", *options)
    assert code == 0, err
    for number, profile in enumerate((SMALL, LARGE)):
        assert f"at the opt of profile {number}: {profile}" in out
        assert (tmp_path / f"m.lock.{number}.json").is_file()
    code, out, _ = run("inspect", "m.tactician", "--profile-index", 1)
    assert code == 0
    assert f"profile  1: {LARGE}, whose steps at its opt are these" in out
    assert "x: float32[3, 12, 16]" in out
    assert run("inspect", "m.tactician", "--profile-index", 2)[0] == 1
    assert run("explain", "m.tactician", "--profile-index", 1)[0] == 0
    assert run("inspect", "m.tactician", "--profile")[0] == 0
    check = ("--check", "onnxruntime", "m.onnx")
    assert run("run", "m.tactician", *check)[0] == 0
    assert run("run", "m.tactician", "-i", "x=random:4x7x16", "-i", "m=random:4x7", *check)[0] == 0
    code, _, err = run("run", "m.tactician", "-i", "x=random:9x7x16", "-i", "m=random:9x7")
    assert code == 1
    assert "no profile of the engine holds x:9x7x16, m:9x7" in err
    code, out, _ = run("build", "m.onnx", *options, "--locked", "--json")
    assert code == 0
    assert '"profile": "x:1x1x16..2x4x16..4x8x16,m:1x1..2x4..4x8"' in out
    (tmp_path / "n.onnx").write_bytes(model(2).SerializeToString())
    assert run("refit", "m.tactician", "n.onnx", "-o", "n.tactician")[0] == 0
    assert run("run", "n.tactician", "--check", "onnxruntime", "n.onnx")[0] == 0
    assert run("bench", "n.tactician", "--rounds", 6)[0] == 0
    code, _, err = run("build", "m.onnx", "--profile", "x:1..2")
    assert code == 2
    assert "is no profile" in err
