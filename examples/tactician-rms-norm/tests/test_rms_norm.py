"""The operator, its tactics and its rule mean one thing, on odd shapes and in whole models."""

from pathlib import Path

import llama_block as llama
import numpy as np
import pytest
import tactician_rms_norm as rms
from onnx import helper, numpy_helper, parser
from tactician import BuilderConfig, Session, build
from tactician.errors import PluginError
from tactician.testing import check_rewrite, conformance_tests, fused_signatures, make_signature

PLUGIN = str(Path(rms.__file__))
SHAPES = [(1,), (7,), (1, 1), (3, 257), (2, 5, 24), (130, 33), (1, 4096), (4, 3, 2, 130)]
BOUNDS = {"float32": 1e-6, "float16": 5e-4}
"""Relative errors: a few roundings in single precision, one in half."""


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """Load the plugin, so that its operator has a reference."""
    from tactician.plugins.manager import load_plugins

    load_plugins(BuilderConfig(plugins=("builtin", PLUGIN)))


def random(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def exact(x, scale, epsilon):
    x, scale = x.astype(np.float64), scale.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float64(np.float32(epsilon))) * scale


def error(y, wanted):
    return np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted)


def run(tactic, signature, *inputs):
    (y,) = (np.full(t.dims, np.nan, t.numpy_dtype) for t in signature.outputs)
    workspace = np.full(tactic.workspace(signature, None), 0xFF, np.uint8)
    tactic.prepare(signature, None)(list(inputs), [y], workspace, None)
    return y


@pytest.mark.parametrize("dtype", rms.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "tactic", [rms.WholeTensor(), *(rms.RowBlocks(rows) for rows in (1, 4, 64))], ids=str
)
def test_cpu_tactics_compute_the_norm(tactic, shape, dtype):
    x, scale = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)
    before = x.copy()
    for epsilon in (1e-5, 0.5):
        signature = make_signature(rms.RMS_NORM.name, [x, scale], {"epsilon": epsilon})
        assert error(run(tactic, signature, x, scale), exact(x, scale, epsilon)) < BOUNDS[dtype]
    assert np.array_equal(x, before)


def test_large_values_in_half_precision_do_not_overflow():
    x, scale = random(5, 64, dtype="float16") * np.float16(1e4), random(64, dtype="float16", seed=1)
    signature = make_signature(rms.RMS_NORM.name, [x, scale])
    for tactic in (rms.WholeTensor(), rms.RowBlocks(4)):
        assert error(run(tactic, signature, x, scale), exact(x, scale, 1e-5)) < BOUNDS["float16"]


def typed(x, scale, dtype="float32"):
    """Return a signature of these shapes; dimensions may be symbols."""
    kinds = tuple(rms.TensorType(dtype, shape) for shape in (x, scale))
    return rms.OpSignature(rms.RMS_NORM.name, 1, (), kinds, kinds[:1], (None, None))


@pytest.mark.parametrize(
    ("tactic", "signature", "reason"),
    [
        (rms.WholeTensor(), typed(("n", 8), (8,)), "needs static shapes"),
        (rms.WholeTensor(), typed((2, 8), (8,), "float64"), "float32 or float16 only"),
        (rms.WholeTensor(), typed((0, 8), (8,)), "nothing to normalise"),
        (rms.WholeTensor(), typed((2, 8), (1,)), "not one element for each column"),
        (rms.RowBlocks(64), typed((2, 8), (8,)), "there are 2 rows, fewer than one block of 64"),
        (
            rms.BlockPerRow(256, 4),
            typed((2, 7), (7,)),
            "rows of 7 elements are no whole number of vectors of 4",
        ),
        (rms.BlockPerRow(256, 1), typed((1 << 31, 1), (1,)), "more than a grid has blocks"),
    ],
)
def test_tactics_say_why_not(tactic, signature, reason):
    assert reason in tactic.decline(signature, None)


def test_every_call_has_a_block_small_enough():
    for rows in (1, 3, 4, 100):
        signature = typed((rows, 8), (8,))
        assert any(t.decline(signature, None) is None for t in rms.RowBlocks.candidates(signature, None))


def followed(steps, rows=6, columns=40, dtype="float"):
    """Return a model in which these nodes follow the norm ``n``; ``full`` is like x, ``row`` one row, ``column`` not."""
    return parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18, "rms_norm" : 1]>
        g ({dtype}[{rows}, {columns}] x, {dtype}[{columns}] scale, {dtype}[{rows}, {columns}] full,
           {dtype}[1, {columns}] row, {dtype}[{rows}, 1] column) => ({dtype}[{rows}, {columns}] y)
        {{ [norm] n = rms_norm.RmsNorm (x, scale) {steps} }}""")


MODULATE = "[gate] m = Mul (row, n) [shift] y = Add (m, full)"


def feeds_of(model):
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def test_what_follows_the_norm_is_part_of_it(tmp_path):
    model = followed(MODULATE, 512, 768)
    config = BuilderConfig(
        target="cpu",
        plugins=("builtin", PLUGIN),
        timing_cache=tmp_path / "t",
        tactic_rules=(("norm+shift", "*whole_tensor*"),),
    )
    engine = build(model, config)
    (step,) = engine.plan.steps
    assert (step.node, step.tactic) == ("norm+shift", "tactician_rms_norm.whole_tensor()")
    feeds = feeds_of(model)
    (y,) = Session(engine, plugins=[PLUGIN]).run(feeds).values()
    wanted = exact(feeds["x"], feeds["scale"], 1e-5) * feeds["row"].astype(np.float64) + feeds["full"]
    assert error(y, wanted) < BOUNDS["float32"]


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    "steps", ["[a] y = Add (n, full)", MODULATE, "a = Mul (n, x) b = Mul (a, row) y = Add (b, row)"]
)
def test_both_tactics_take_it(steps, dtype):
    *_, signature = fused_signatures(followed(steps, dtype=dtype), rms.WITH_STEPS)
    assert not isinstance(rms.steps_of(signature), str)
    for tactic in (rms.WholeTensor(), rms.BlockPerRow(128, 1)):
        assert tactic.decline(signature, None) is None


@pytest.mark.parametrize(
    ("steps", "reason"),
    [("y = Mul (n, column)", "neither like"), ("y = Mul (n, n)", "does not take the norm and one tensor")],
)
def test_what_does_not_fit_is_declined(steps, reason):
    (signature,) = fused_signatures(followed(steps), rms.WITH_STEPS)
    assert reason in rms.WholeTensor().decline(signature, None)
    assert reason in rms.BlockPerRow(128, 1).decline(signature, None)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("dtype", rms.DTYPES)
@pytest.mark.parametrize("form", llama.FORMS)
def test_the_rule_finds_every_form(form, dtype, opset):
    assert check_rewrite(rms.FUSE, llama.one_norm(form, dtype, opset), [rms.RMS_NORM], matches=1) == 1


def node_of(model, op):
    (node,) = (n for n in model.graph.node if n.op_type == op)
    return node


def replace_constant(model, op, index, value):
    name = node_of(model, op).input[index]
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def cube(model):
    replace_constant(model, "Pow", 1, np.float32(3))


def other_axis(model):
    replace_constant(model, "ReduceMean", 1, np.array([-2]))


def two_axes(model):
    replace_constant(model, "ReduceMean", 1, np.array([-2, -1]))


def vector_epsilon(model):
    replace_constant(model, "Add", 1, np.abs(random(5, 1)))


def negative_epsilon(model):
    replace_constant(model, "Add", 1, np.float32(-1e-5))


def matrix_scale(model):
    replace_constant(model, "Mul", 1, random(5, 24))


def one_scale(model):
    replace_constant(model, "Mul", 1, random(1))


def root_read_elsewhere(model):
    root = node_of(model, "Sqrt").output[0]
    model.graph.node.append(helper.make_node("Relu", [root], ["other"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("other", 1, ["n", 5, 1]))


def another_numerator(model):
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["negated"], name="negate"))
    node_of(model, "Div").input[0] = "negated"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cube, r"is \[3.0\], the pattern has 2.0"),
        (other_axis, "not over the last axis alone"),
        (two_axes, "not over the last axis alone"),
        (vector_epsilon, "epsilon is not one constant"),
        (negative_epsilon, "epsilon is not one constant number of 0 or more"),
        (matrix_scale, "scale is a vector"),
        (one_scale, "scale is a vector"),
        (root_read_elsewhere, "read elsewhere"),
        (another_numerator, "bound to two different values"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_rule_leaves_alone_what_is_something_else(change, reason):
    model = llama.one_norm("pow_div")
    change(model)
    with pytest.raises(PluginError, match=reason):
        check_rewrite(rms.FUSE, model, [rms.RMS_NORM])
    check_rewrite(rms.FUSE, model, [rms.RMS_NORM], matches=0)


@pytest.mark.parametrize("dtype", rms.DTYPES)
def test_a_whole_model_computes_the_same_with_and_without(dtype):
    model = llama.llama_block(dtype=dtype, forms=llama.FORMS)
    config = BuilderConfig(shapes={"x": (2, 7, 64)}, target="cpu", plugins=(PLUGIN, "builtin"))
    without = BuilderConfig(shapes={"x": (2, 7, 64)}, target="cpu", plugins=("builtin",))
    engines = build(model, config), build(model, without)
    x = random(2, 7, 64, dtype=dtype)
    results = [
        Session(engine, plugins=plugins).run({"x": x})["y"].astype(np.float64)
        for engine, plugins in zip(engines, ([PLUGIN, "builtin"], ["builtin"]), strict=True)
    ]
    assert error(results[0], results[1]) < {"float32": 1e-5, "float16": 1e-2}[dtype]
    (stage,) = (s for s in engines[0].report.stages if s.name == "fuse_rms_norm")
    assert stage.matches == 5
    names = {step.node for step in engines[0].plan.steps if step.op == rms.RMS_NORM.name}
    assert names == {"norm_0_0", "norm_0_1", "norm_1_0", "norm_1_1", "norm_last"}
    assert not any(step.op.endswith("ReduceMean") for step in engines[0].plan.steps)


def test_the_rule_can_be_left_out_and_a_tactic_chosen_by_the_name_of_the_norm():
    model = llama.llama_block()
    shared = {"shapes": {"x": (2, 7, 64)}, "target": "cpu", "plugins": (PLUGIN, "builtin")}
    plain = build(model, BuilderConfig(**shared, without=("fuse_rms_norm", "normalization")))
    assert sum(step.op.endswith("ReduceMean") for step in plain.plan.steps) == 5
    rules = (("norm_*", "tactician_rms_norm.row_blocks(rows=4)"),)
    chosen = build(model, BuilderConfig(**shared, tactic_rules=rules))
    tactics = {step.tactic for step in chosen.plan.steps if step.node.startswith("norm_")}
    assert tactics == {rules[0][1]}


def signatures():
    calls = [((3, 40), "float32"), ((2, 5, 24), "float16"), ((70, 33), "float32")]
    return [
        make_signature(
            rms.RMS_NORM.name, [random(*shape, dtype=d), random(shape[-1], dtype=d)], {"epsilon": 1e-5}
        )
        for shape, d in calls
    ]


test_conformance = conformance_tests(PLUGIN, signatures=signatures)
