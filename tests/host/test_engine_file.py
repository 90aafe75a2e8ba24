"""The engine file: it comes back as it was, and damage of any kind is found before anything is used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tactician.engine import Engine, weight_bytes
from tactician.errors import DamagedEngineError, EngineError, EngineMismatchError
from tactician.plan import BuildReport, MemoryReport, ModelInfo, Place, Plan, Step, TensorSpec
from tactician.signature import OpSignature, TensorType


def make_engine(rng: np.random.Generator) -> Engine:
    weight = rng.standard_normal((3, 5)).astype(np.float32)
    type = TensorType("float32", (2, 3))
    signature = OpSignature("ai.onnx::MatMul", 18, (("alpha", 0.1),), (type, type), (type,), (None, None))
    plan = Plan(
        format_version=1,
        producer="test",
        target="cpu",
        requirements={},
        model=ModelInfo("m", "00", 1, 15),
        plugins=(),
        tensors=(
            TensorSpec("x", "float32", (2, 3), "cpu", Place.INPUT),
            TensorSpec("w", "float32", (3, 5), "cpu", Place.WEIGHT),
            TensorSpec("y", "float32", (2, 5), "cpu", Place.ARENA, 256),
        ),
        inputs=(0,),
        outputs=(2,),
        steps=(Step("n", "ai.onnx::MatMul", "cpu", "builtin.x()", 1, signature.to_plain(), (0, 1), (2,)),),
        memory=(MemoryReport("cpu", 512, 512, 512, 0, 256),),
        threads=1,
    )
    report = BuildReport({"device": "d"}, (), (), {"measure": 0.5})
    names = np.array(["a", "ß", ""], dtype=object)
    weights = {
        "w": weight_bytes(weight),
        "names": weight_bytes(names),
        "empty": weight_bytes(np.zeros(0, np.int8)),
    }
    return Engine(plan, report, weights, {"k1": b"cubin", "k0": b""})


@pytest.fixture
def saved(tmp_path: Path, rng_seed: int = 7) -> tuple[Engine, Path]:
    engine = make_engine(np.random.default_rng(rng_seed))
    path = tmp_path / "a" / "e.tactician"
    engine.save(path)
    return engine, path


def test_round_trip(saved: tuple[Engine, Path]) -> None:
    engine, path = saved
    again = Engine.load(path)
    assert again.plan == engine.plan
    assert again.plan.encode() == engine.plan.encode()
    assert again.report == engine.report
    assert dict(again.artifacts) == dict(engine.artifacts)
    assert {n: bytes(d) for n, d in again.weights.items() if "__padding" not in n} == {
        n: bytes(d) for n, d in engine.weights.items()
    }
    assert again.plan.steps[0].op_signature.attribute("alpha") == 0.1
    np.testing.assert_array_equal(
        again.weight("names", np.dtype(object), (3,)), np.array(["a", "ß", ""], dtype=object)
    )


def test_weights_are_a_safetensors_file(saved: tuple[Engine, Path]) -> None:
    safetensors = pytest.importorskip("safetensors")
    engine, path = saved
    data = path.read_bytes()
    start = data.index(b'{"', data.index(b"cubin")) - 8  # the weights' table follows the artifacts
    tensors = dict(safetensors.deserialize(data[start:]))
    assert bytes(tensors["w"]["data"]) == bytes(engine.weights["w"])


def test_saving_twice_gives_the_same_bytes(saved: tuple[Engine, Path], tmp_path: Path) -> None:
    engine, path = saved
    engine.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_file(saved: tuple[Engine, Path]) -> None:
    engine, path = saved
    before = path.read_bytes()
    broken = Engine(engine.plan, engine.report, {"w": None}, {})
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_damage_is_found(saved: tuple[Engine, Path], tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(saved[1].read_bytes())
    if data.draw(st.booleans(), "truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "position")] ^= 1 << data.draw(
            st.integers(0, 7), "bit"
        )
    path = tmp_path / "damaged"
    path.write_bytes(content)
    try:
        again = Engine.load(path)
    except EngineError:
        return
    # the change hit bytes that mean nothing: padding, or the reserved field
    assert again.plan == saved[0].plan
    assert {n: bytes(again.weights[n]) for n in saved[0].weights} == {
        n: bytes(d) for n, d in saved[0].weights.items()
    }


def test_another_format_is_named(saved: tuple[Engine, Path]) -> None:
    content = bytearray(saved[1].read_bytes())
    content[16:20] = struct.pack("<I", 99)
    saved[1].write_bytes(content)
    with pytest.raises(EngineMismatchError, match="format 99"):
        Engine.load(saved[1])


@pytest.mark.parametrize("content", [b"", b"\0", b"tactician engine", b"PK\x03\x04" + b"x" * 500])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DamagedEngineError):
        Engine.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedEngineError, match="No such file"):
        Engine.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (7,)},
        {"outputs": (-2,)},
        {"memory": (MemoryReport("cpu", 0, 0, 0, 0, 256),)},
        {"memory": (MemoryReport("cpu", 512, 0, 0, 0, 0),)},
        {"memory": ()},
    ],
)
def test_a_plan_that_points_outside_is_refused(
    saved: tuple[Engine, Path], tmp_path: Path, change: dict[str, object]
) -> None:
    import msgspec

    engine = saved[0]
    hostile = Engine(msgspec.structs.replace(engine.plan, **change), engine.report, engine.weights, {})
    hostile.save(tmp_path / "hostile")
    with pytest.raises(DamagedEngineError):
        Engine.load(tmp_path / "hostile")
