"""Rewrite rules: what matches and what does not, what takes its place, and what is said of both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser
from tactician import BuilderConfig, Engine, Op, RewriteRule, Session, TensorType, build, passes
from tactician.cli import main
from tactician.errors import AccuracyError, ConfigError, PluginError
from tactician.importer import import_model
from tactician.passes.rewrite import Rewritten, rewrite
from tactician.testing import check_rewrite

DOUBLE = Op("acme::Double", lambda s: [s.inputs[0]], lambda s, x: x + x)
GELU = Op(
    "acme::Gelu",
    lambda s: [s.inputs[0]],
    lambda s, x: (x * (1 + np.tanh(0.7978845608 * (x + s.attribute("cubic") * x**3))) / 2).astype(x.dtype),
)
SUM_AND_RELU = Op(
    "acme::SumAndRelu",
    lambda s: [s.inputs[0], s.inputs[0]],
    lambda s, x, y: (np.maximum(x + y, 0), x + y),
)
OPS = {op.name: op for op in (DOUBLE, GELU, SUM_AND_RELU)}


def parse(body: str, opset: int = 18) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {body}')


def imported(body: str, opset: int = 18) -> ir.Model:
    return import_model(parse(body, opset), None, OPS)


def double(op: Any, match: Any) -> Any:
    return op.Double(match["x"], _domain="acme")


def rule(pattern: Any, replacement: Any = double, decline: Any = None, **options: Any) -> RewriteRule:
    return RewriteRule("acme.rule", pattern, replacement, decline, **options)


def count(pattern: Any, body: str, opset: int = 18, **options: Any) -> int:
    """Return how many subgraphs of ``body`` a rule with this pattern replaces by DOUBLE."""
    return rewrite(imported(body, opset), rule(pattern, **options), OPS).matches


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_rule_is_made_without_heavy_imports() -> None:
    code = (
        "import sys; from tactician import RewriteRule; RewriteRule('r', lambda op, x: op.Relu(x), lambda op, m: m['x'])\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tenth(op: Any, x: Any) -> Any:
    return x * 0.1


def more_than_a_tenth(op: Any, x: Any) -> Any:
    return x * 0.1005


class TestConstants:
    @pytest.mark.parametrize(
        ("constant", "value", "matches"),
        [
            ("float c = {2}", 2.0, 1),
            ("float[1] c = {2}", 2.0, 1),
            ("float[1, 1] c = {2}", 2, 1),
            ("float[1] c = {2}", [2.0], 1),
            ("float c = {2}", [2.0], 0),
            ("float c = {2.001}", 2.0, 0),
            ("float[3] c = {2, 2, 2}", 2.0, 0),
            ("float c = {1e-5}", 1e-5, 1),
            # a constant near zero is not zero, and none within an absolute tolerance of another
            ("float c = {0}", 1e-12, 0),
            ("float c = {1e-9}", 1e-12, 0),
            ("float[3] c = {1, 2, 3}", [1, 2, 3], 1),
            ("float[3] c = {1, 2, 4}", [1, 2, 3], 0),
        ],
    )
    def test_numbers_and_lists_are_constants_of_that_value(
        self, constant: str, value: Any, matches: int
    ) -> None:
        body = f"g (float[2, 3] x) => (float[2, 3] y) <{constant}> {{ y = Mul(x, c) }}"
        assert count(lambda op, x: op.Mul(x, value), body) == matches

    def test_they_are_compared_as_the_constants_type_holds_them(self) -> None:
        model = parse("g (float16[2, 3] x) => (float16[2, 3] y) { y = Mul(x, c) }")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float16), "c"))
        near, other = (rewrite(import_model(model), rule(p), OPS).matches for p in (tenth, more_than_a_tenth))
        assert (near, other) == (1, 0)

    def test_an_integer_constant_is_no_fraction(self) -> None:
        body = "g (int32[3] x) => (int32[3] y) <int32 c = {2}> { y = Mul(x, c) }"
        assert count(lambda op, x: op.Mul(x, 2), body) == 1
        assert count(lambda op, x: op.Mul(x, 2.5), body) == 0

    def test_a_constant_node_is_a_constant_and_an_input_is_none(self) -> None:
        body = "g (float[2, 3] x) => (float[2, 3] y) { c = Constant<value_float = 2.0>()  y = Mul(x, c) }"
        assert count(lambda op, x: op.Mul(x, 2.0), body) == 1
        body = "g (float[2, 3] x, float c) => (float[2, 3] y) { y = Mul(x, c) }"
        assert count(lambda op, x: op.Mul(x, 2.0), body) == 0

    def test_those_that_only_the_match_read_go_with_it(self) -> None:
        body = """g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) <float c = {2}, float d = {3}, float e = {2}>
            { a = Mul(x, c)  y = Add(a, d)  b = Mul(x, e)  z = Sub(b, d) }"""
        model = imported(body)
        assert rewrite(model, rule(lambda op, x: op.Mul(x, 2.0)), OPS).matches == 2
        assert set(model.graph.initializers) == {"d"}


class TestAttributes:
    @pytest.mark.parametrize(
        ("written", "wanted", "matches"),
        [
            ("", {}, 1),
            ("<alpha = 0.01>", {}, 1),
            ("<alpha = 0.2>", {}, 0),
            ("<alpha = 0.2>", {"alpha": 0.2}, 1),
            ("<alpha = 0.2>", {"alpha": 0.3}, 0),
            ("", {"alpha": 0.01}, 1),
            ("", {"alpha": 0.2}, 0),
            ("<alpha = 0.2>", {"_allow_other_attributes": True}, 1),
        ],
    )
    def test_those_that_are_not_named_have_their_defaults(
        self, written: str, wanted: dict[str, Any], matches: int
    ) -> None:
        body = f"g (float[3] x) => (float[3] y) {{ y = LeakyRelu {written} (x) }}"
        assert count(lambda op, x: op.LeakyRelu(x, **wanted), body) == matches

    def test_an_optional_one_without_a_default_must_be_absent_or_named(self) -> None:
        body = "g (float[1, 1, 4, 4] x, float[1, 1, 1, 1] w) => (float[1, 1, 4, 4] y) { y = Conv <kernel_shape = [1, 1]> (x, w) }"
        assert count(lambda op, x, w: op.Conv(x, w), body) == 0
        assert count(lambda op, x, w: op.Conv(x, w, kernel_shape=[1, 1]), body) == 1

    @pytest.mark.parametrize(
        ("written", "axis", "epsilon"),
        [("<axis = 1, epsilon = 0.5>", 1, 0.5), ("<axis = 1>", 1, 1e-5), ("", -1, 1e-5)],
    )
    def test_a_variable_stands_for_one_or_its_default(self, written: str, axis: int, epsilon: float) -> None:
        found: list[Any] = []

        def decline(match: Any) -> str:
            found.append((match.attribute("axis"), match.number("epsilon"), match.constant("axis").tolist()))
            return "only looking"

        def pattern(op: Any, x: Any, scale: Any, axis: Any, epsilon: Any) -> Any:
            return op.LayerNormalization(x, scale, axis=axis, epsilon=epsilon)

        body = (
            f"g (float[2, 3] x, float[3] s) => (float[2, 3] y) {{ y = LayerNormalization {written} (x, s) }}"
        )
        assert count(pattern, body, decline=decline) == 0
        ((one, number, same),) = found
        assert (one, same) == (axis, axis)
        assert number == pytest.approx(epsilon, rel=1e-6)

    def test_text_is_compared_too(self) -> None:
        body = 'g (float[3] x) => (float[3] y) { y = Gelu <approximate = "tanh"> (x) }'
        assert count(lambda op, x: op.Gelu(x, approximate="tanh"), body, 20) == 1
        assert count(lambda op, x: op.Gelu(x), body, 20) == 0


class TestForms:
    BODY = "g (float[3] x) => (float[3] y) <float c = {2}, float d = {1}> { a = Add(d, x)  y = Mul(c, a) }"

    def test_operands_match_in_either_order(self) -> None:
        assert count(lambda op, x: (x + 1.0) * 2.0, self.BODY) == 1
        assert count(lambda op, x: (x + 1.0) * 2.0, self.BODY, commute=False) == 0
        assert count(lambda op, x: 2.0 * (1.0 + x), self.BODY, commute=False) == 1

    def test_order_matters_where_it_does(self) -> None:
        body = "g (float[3] x) => (float[3] y) <float c = {2}> { y = Sub(c, x) }"
        assert count(lambda op, x: x - 2.0, body) == 0
        assert count(lambda op, x: 2.0 - x, body) == 1

    def test_variadic_operators_of_other_counts_are_left_in_order(self) -> None:
        body = "g (float[3] x, float[3] b, float[3] c) => (float[3] y) { y = Max(x, b, c) }"
        assert count(lambda op, x, b, c: op.Max(x, b, c), body) == 1

    def test_either_takes_any_of_its_arguments(self) -> None:
        def pattern(op: Any, x: Any) -> Any:
            inner = op.either(op.Relu(x), op.Neg(x), x)
            return op.Exp(op.either(op.Mul(inner, 2.0), op.Add(inner, inner)))

        for body in (
            "a = Relu(x)  b = Mul(a, c)  y = Exp(b)",
            "a = Neg(x)  b = Add(a, a)  y = Exp(b)",
            "b = Mul(c, x)  y = Exp(b)",
        ):
            assert count(pattern, f"g (float[3] x) => (float[3] y) <float c = {{2}}> {{ {body} }}") == 1
        body = "g (float[3] x) => (float[3] y) { a = Relu(x)  n = Neg(x)  b = Add(a, n)  y = Exp(b) }"
        assert count(pattern, body) == 0

    def test_several_patterns_are_tried_in_order(self) -> None:
        patterns = [lambda op, x: op.Relu(x), lambda op, x: op.Neg(x)]
        body = "g (float[3] x) => (float[3] y) { a = Relu(x)  b = Neg(a)  y = Exp(b) }"
        assert count(patterns, body) == 2

    def test_one_variable_is_one_value(self) -> None:
        body = "g (float[3] x, float[3] z) => (float[3] y) { a = Relu(x)  b = Relu(z)  y = Sub(a, b) }"
        assert count(lambda op, x: op.Sub(op.Relu(x), op.Relu(x)), body) == 0
        assert count(lambda op, x, z: op.Sub(op.Relu(x), op.Relu(z)), body) == 1

    def test_two_nodes_of_a_pattern_may_be_one_of_the_graph(self) -> None:
        body = "g (float[3] x) => (float[3] y) { a = Relu(x)  y = Sub(a, a) }"
        assert count(lambda op, x, z: op.Sub(op.Relu(x), op.Relu(z)), body) == 1

    def test_an_absent_input_is_written_as_none(self) -> None:
        body = "g (float[3] x) => (float[3] y) <float c = {6}> { y = Clip(x, , c) }"
        assert count(lambda op, x: op.Clip(x, None, 6.0), body) == 1
        assert count(lambda op, x: op.Clip(x, 0.0, 6.0), body) == 0

    def test_custom_operators_can_be_matched(self) -> None:
        body = '<ir_version: 9, opset_import: ["": 18, "acme": 1]> g (float[3] x) => (float[3] y) { a = acme.Double(x)  y = Neg(a) }'
        model = import_model(parser.parse_model(body), None, OPS)
        found = rewrite(model, rule(lambda op, x: op.Neg(op.Double(x, _domain="acme"))), OPS)
        assert (found.matches, ops(model)) == (1, ["Double"])


def chain(op: Any, x: Any) -> Any:
    """Write a pattern of two nodes."""
    return op.Exp(op.Relu(x))


def doubled(op: Any, x: Any) -> Any:
    return op.Add(x, x)


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [
            "g (float[3] x) => (float[3] y, float[3] z) { a = Relu(x)  y = Exp(a)  z = Neg(a) }",
            "g (float[3] x) => (float[3] y, float[3] a) { a = Relu(x)  y = Exp(a) }",
            """g (float[3] x, bool c) => (float[3] y, float[3] z) { a = Relu(x)  y = Exp(a)
                z = If (c) <then_branch = t () => (float[3] p) { p = Neg(a) },
                            else_branch = e () => (float[3] q) { q = Abs(x) }> }""",
        ],
        ids=["by a node", "as an output", "within a body"],
    )
    def test_what_is_read_elsewhere_too(self, body: str) -> None:
        with pytest.raises(PluginError, match="'a', which the subgraph computes, is read elsewhere too"):
            check_rewrite(rule(chain), parse(body), [DOUBLE])

    def test_a_variable_that_the_subgraph_itself_computes(self) -> None:
        body = "g (float[3] x) => (float[3] y) { a = Relu(x)  y = Sub(a, a) }"
        with pytest.raises(PluginError, match="variable z stands for 'a', which the subgraph itself"):
            check_rewrite(rule(lambda op, x, z: op.Sub(op.Relu(x), z)), parse(body), [DOUBLE])

    def test_nodes_within_bodies_stay(self) -> None:
        body = """g (float[3] x, bool c) => (float[3] z) {
            z = If (c) <then_branch = t () => (float[3] p) { a = Relu(x)  p = Exp(a) },
                        else_branch = e () => (float[3] q) { q = Abs(x) }> }"""
        assert count(chain, body) == 0

    def test_a_declined_match_has_a_reason(self) -> None:
        body = "g (float[N, 3] x) => (float[N, 3] y) { a = Relu(x)  y = Exp(a) }"

        def decline(match: Any) -> str | None:
            assert match.last.op_type == "Exp"
            assert [n.op_type for n in match.nodes] == ["Exp", "Relu"]
            assert match.output_types == (TensorType("float32", ("N", 3)),)
            return f"no rows in {match.type('x')}"

        with pytest.raises(PluginError, match=r"from which 2 nodes fit: no rows in float32\[N, 3\]"):
            check_rewrite(rule(chain, decline=decline), parse(body), [DOUBLE])

    @pytest.mark.parametrize(
        ("infer", "words"),
        [
            (
                lambda s: [TensorType("float16", (3,))],
                r"would compute float16\[3\] in the place of 'y' float32",
            ),
            (lambda s: [TensorType("float32", (1, 3))], r"would compute float32\[1, 3\]"),
            (lambda s: [TensorType("float32", (4,))], r"would compute float32\[4\]"),
            (lambda s: 1 / 0, "can't infer .*division by zero"),
        ],
        ids=["type", "rank", "extent", "error"],
    )
    def test_what_would_compute_something_else_by_its_type(
        self, infer: Callable[[Any], Any], words: str
    ) -> None:
        body = "g (float[3] x) => (float[3] y) { a = Relu(x)  y = Exp(a) }"
        odd = Op("acme::Double", infer, DOUBLE.reference)
        with pytest.raises(PluginError, match=words):
            check_rewrite(rule(chain), parse(body), [odd])

    def test_what_was_tried_in_vain_leaves_no_trace(self) -> None:
        model = imported("g (float[3] x) => (float[3] y) { a = Relu(x)  y = Exp(a) }")
        before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
        narrow = Op("acme::Double", lambda s: [TensorType("float16", (3,))], DOUBLE.reference)
        assert rewrite(model, rule(chain), {narrow.name: narrow}) == Rewritten(model, False, 0)
        assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
        assert [len(v.uses()) for v in (model.graph.inputs[0], model.graph.node(0).outputs[0])] == [1, 1]


def cubic_gelu(op: Any, x: Any, cubic: Any) -> Any:
    inner = op.Tanh((x + op.Pow(x, 3.0) * cubic) * 0.7978845608028654)
    return op.either(op.Mul(x * (inner + 1.0), 0.5), op.Mul(x * 0.5, inner + 1.0))


def one_gelu(op: Any, match: Any) -> Any:
    return op.Gelu(match["x"], _domain="acme", cubic=match.number("cubic"))


GELU_BODY = """g (float[N, 6] x) => (float[N, 6] y)
    <float three = {3}, float c = {0.044715}, float r = {0.79788456}, float one = {1}, float half = {0.5}>
    { n = Neg(x) [p] p = Pow(n, three) [q] q = Mul(c, p) [s] s = Add(n, q) [t] t = Mul(r, s) [u] u = Tanh(t) [v] v = Add(one, u)
      [w] w = Mul(half, n) [gelu] z = Mul(w, v) [last] y = Abs(z) }"""


class TestReplacements:
    def test_names_types_and_imports(self) -> None:
        model = imported(GELU_BODY)
        assert rewrite(model, rule(cubic_gelu, one_gelu), OPS).matches == 1
        (_, node, last) = model.graph
        assert (node.name, node.op_type, node.domain) == ("gelu", "Gelu", "acme")
        assert (last.name, last.inputs[0].name) == ("last", "z")
        assert model.graph.opset_imports == {"": 18, "acme": 1}
        assert str(node.outputs[0].shape) == "[N,6]" and node.outputs[0].dtype == ir.DataType.FLOAT
        assert node.attributes["cubic"].value == pytest.approx(0.044715)
        assert not model.graph.initializers

    def test_it_computes_the_same(self) -> None:
        assert check_rewrite(rule(cubic_gelu, one_gelu), parse(GELU_BODY), [GELU], tolerance=1e-7) == 1

    def test_an_output_of_the_graph_keeps_its_name(self) -> None:
        model = imported("g (float[3] x) => (float[3] y) { a = Relu(x)  y = Exp(a) }")
        rewrite(model, rule(chain), OPS)
        assert [v.name for v in model.graph.outputs] == ["y"]
        assert model.graph.outputs[0].producer() is model.graph.node(0)

    def test_several_nodes_are_named_after_the_last_of_the_match(self) -> None:
        def replacement(op: Any, match: Any) -> Any:
            doubled = op.Double(match["x"], _domain="acme", _version=3)
            half = op.Mul(doubled, 0.5)
            shifted = op.Add(half, np.array([1, 2, 3], np.float32))
            return op.Sub(shifted, np.array([1, 2, 3], np.float32))

        body = "g (float[2, 3] x) => (float[2, 3] y) { [first] a = Neg(x)  [second] b = Neg(a)  y = Relu(b) }"
        model, steps = imported(body), rule(lambda op, x: op.Neg(op.Neg(x)), replacement)
        assert rewrite(model, steps, OPS).matches == 1
        assert [n.name for n in model.graph][:4] == ["second/Double", "second/Mul", "second/Add", "second"]
        assert model.graph.opset_imports["acme"] == 3
        assert all(v.type is not None and v.shape is not None for n in model.graph for v in n.outputs)
        assert check_rewrite(steps, parse(body), [DOUBLE], tolerance=1e-6) == 1

    def test_types_that_nobody_knew_are_inferred(self) -> None:
        model = imported("g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)  b = Exp(a)  y = Neg(b) }")
        middle = model.graph.node(1).outputs[0]
        middle.type = middle.shape = None
        rewrite(model, rule(chain), OPS)
        new = model.graph.node(0).outputs[0]
        assert (new.name, new.dtype, list(new.shape)) == ("b", ir.DataType.FLOAT, [2, 3])

    def test_matches_that_share_nodes_are_replaced_once(self) -> None:
        body = "g (float[3] x) => (float[3] y) { a = Neg(x)  b = Neg(a)  c = Neg(b)  d = Neg(c)  e = Neg(d)  y = Relu(e) }"
        model = imported(body)
        assert rewrite(model, rule(lambda op, x: op.Neg(op.Neg(x))), OPS).matches == 2
        assert ops(model) == ["Double", "Double", "Neg", "Relu"]

    def test_a_rule_does_not_match_what_it_has_made(self) -> None:
        model = imported("g (float[3] x) => (float[3] y) { a = Neg(x)  y = Relu(a) }")
        found = rewrite(model, rule(lambda op, x: op.Neg(x), lambda op, m: op.Neg(op.Abs(m["x"]))), OPS)
        assert (found.matches, ops(model)) == (1, ["Abs", "Neg", "Relu"])


def sum_and_relu(op: Any, x: Any, z: Any) -> Any:
    total = op.Add(x, z)
    return op.Relu(total), total


def both(op: Any, match: Any) -> Any:
    return op.SumAndRelu(match["x"], match["z"], _domain="acme", _outputs=2)


class TestSeveralOutputs:
    def test_a_value_in_between_may_be_an_output(self) -> None:
        body = """g (float[3] x, float[3] z) => (float[3] y, float[3] w)
            { s = Add(x, z)  w = Neg(s)  [relu] r = Relu(s)  y = Exp(r) }"""
        model = imported(body)
        assert rewrite(model, rule(sum_and_relu, both), OPS).matches == 1
        order = ops(model)
        assert order[0] == "SumAndRelu" and sorted(order) == ["Exp", "Neg", "SumAndRelu"]
        assert [v.name for v in model.graph.node(0).outputs] == ["r", "s"]
        assert check_rewrite(rule(sum_and_relu, both), parse(body), [SUM_AND_RELU]) == 1

    def test_not_where_it_would_read_what_it_computes(self) -> None:
        def pattern(op: Any, x: Any, z: Any) -> Any:
            total = op.Add(x, x)
            return op.Sub(total, z), total

        body = "g (float[3] x) => (float[3] y) { s = Add(x, x)  n = Neg(s)  z = Exp(n)  y = Sub(s, z) }"
        with pytest.raises(PluginError, match="between two of its outputs is computed outside"):
            check_rewrite(rule(pattern, both), parse(body), [SUM_AND_RELU])


class TestErrors:
    BODY = "g (float[3] x) => (float[3] y) { [relu] a = Relu(x)  [exp] y = Exp(a) }"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"pattern": lambda op, x: op.Relu(x.missing)}, "its pattern fails: AttributeError"),
            ({"pattern": lambda op, x: x}, "it must return what its nodes compute"),
            ({"pattern": lambda op, x: op.Relu("x")}, "'x' is no variable, no number"),
            ({"replacement": lambda op, m: m["z"]}, "fails at node 'exp': KeyError: 'z'"),
            ({"replacement": lambda op, m: m["x"]}, "must return what its own nodes compute"),
            ({"replacement": lambda op, m: None}, "must return what its own nodes compute"),
            ({"replacement": lambda op, m: [op.Neg(m["x"])] * 2}, "returns 2 values, its pattern 1"),
            (
                {"replacement": lambda op, m: op.Triple(m["x"], _domain="acme")},
                "'acme::Triple', which no loaded",
            ),
            ({"decline": lambda m: 1 / 0}, "fails at node 'exp': ZeroDivisionError"),
        ],
    )
    def test_a_function_that_fails_is_named_with_the_rule(self, options: dict[str, Any], words: str) -> None:
        made = rule(**({"pattern": chain} | options))
        with pytest.raises(PluginError, match=f"rewrite rule 'acme.rule'.*{words}"):
            rewrite(imported(self.BODY), made, OPS)

    def test_in_a_build_the_way_out_is_said(self) -> None:
        broken = rule(chain, lambda op, m: m["z"])
        steps = passes.pipeline(BuilderConfig(), [broken])
        with pytest.raises(PluginError, match=r"KeyError: 'z'; build with --without acme\.rule"):
            passes.run(imported(self.BODY), steps)

    def test_an_unknown_operator_of_a_pattern_matches_nothing(self) -> None:
        assert count(lambda op, x: op.Rulu(x), self.BODY) == 0

    def test_too_many_forms(self) -> None:
        def long(op: Any, a: Any, b: Any) -> Any:
            value = a
            for _ in range(13):
                value = op.Add(value, b)
            return value

        with pytest.raises(PluginError, match="more than 4096 forms; make it several rules"):
            rewrite(imported(self.BODY), rule(long), OPS)
        assert count(long, self.BODY, commute=False) == 0

    @pytest.mark.parametrize("name", ["", "two words", "a/b", "1st"])
    def test_names_that_a_rule_can_not_have(self, name: str) -> None:
        with pytest.raises(PluginError, match="use letters, digits"):
            RewriteRule(name, chain, double)

    @pytest.mark.parametrize("pattern", [[], ["Relu"]])
    def test_a_pattern_must_be_functions(self, pattern: Any) -> None:
        with pytest.raises(PluginError, match="must be a function, or several"):
            RewriteRule("rule", pattern, double)


class TestCheckRewrite:
    BODY = "g (float[N, 3] x, int64[2] i) => (y) { a = Add(x, x)  y = Gather(a, i) }"

    def test_it_counts_and_compares(self) -> None:
        indices = {"i": np.array([2, 0])}
        assert check_rewrite(rule(doubled), parse(self.BODY), [DOUBLE], inputs=indices) == 1

    def test_a_reference_that_computes_something_else(self) -> None:
        wrong = Op(DOUBLE.name, DOUBLE.infer, lambda s, x: x * np.float64(2.0001))
        with pytest.raises(
            AccuracyError, match=r"'acme.rule' changes output 'y': its relative error is 5.0e-05"
        ):
            check_rewrite(rule(doubled), parse(self.BODY), [wrong], inputs={"i": np.array([2, 0])})

    def test_another_shape(self) -> None:
        wrong = Op(DOUBLE.name, DOUBLE.infer, lambda s, x: (x + x)[:, :2])
        body = "g (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"
        with pytest.raises(AccuracyError, match=r"its shape was \[3, 3\] and is \[3, 2\]"):
            check_rewrite(rule(doubled), parse(body), [wrong])

    def test_integers_must_be_equal(self) -> None:
        wrong = Op(DOUBLE.name, DOUBLE.infer, lambda s, x: x + x + (x == x.max()))
        body = "g (int64[40] x) => (int64[40] y) { y = Add(x, x) }"
        with pytest.raises(AccuracyError, match=r"\d+ of 40 elements differ"):
            check_rewrite(rule(doubled), parse(body), [wrong])

    def test_a_wrong_number_of_matches(self) -> None:
        body = "g (float[3] x) => (float[3] y) { a = Add(x, x)  b = Add(a, a)  y = Relu(b) }"
        with pytest.raises(PluginError, match="replaces 2 subgraphs, not 1"):
            check_rewrite(rule(doubled), parse(body), [DOUBLE], matches=1)

    def test_nothing_near(self) -> None:
        body = "g (float[3] x) => (float[3] y) { y = Relu(x) }"
        with pytest.raises(PluginError, match="no node is of the pattern's last operator"):
            check_rewrite(rule(doubled), parse(body), [DOUBLE])

    def test_inputs_that_can_not_be_made_up(self) -> None:
        body = "g (float[3] x, string[1] s) => (float[3] y, string[1] t) { y = Add(x, x)  t = Identity(s) }"
        with pytest.raises(PluginError, match=r"no values can be made up for an input of type string\[1\]"):
            check_rewrite(rule(doubled), parse(body), [DOUBLE])


PLUGIN = """
from dataclasses import dataclass
import numpy as np
from tactician import Op, RewriteRule, Tactic, hookimpl

TWICE = Op("twice::Twice", lambda s: [s.inputs[0]], lambda s, x: x + x)

@dataclass(frozen=True)
class Add(Tactic):
    op = TWICE.name
    target = "cpu"
    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            np.add(inputs[0], inputs[0], out=outputs[0])
        return launch

def pattern(op, x):
    return op.either(op.Add(x, x), op.Mul(op.Neg(x), -2.0))

RULE = RewriteRule("twice", pattern, lambda op, match: op.Twice(match["x"], _domain="twice"))

@hookimpl
def ops(): return [TWICE]
@hookimpl
def tactics(): return [Add]
@hookimpl
def passes(): return [RULE]
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "twice.py"
    path.write_text(PLUGIN)
    return str(path)


MODEL = """g (float[2, 3] x) => (float[2, 3] y) <float two = {-2}>
    { [first] a = Add(x, x)  [exp] e = Exp(a)  [n] n = Neg(e)  [second] b = Mul(n, two)  [neg] y = Neg(b) }"""


class TestBuilds:
    def test_an_engine_is_built_and_says_how_often_it_matched(self, plugin: str, tmp_path: Path) -> None:
        config = BuilderConfig(target="cpu", plugins=(plugin, "builtin"))
        engine = build(parse(MODEL), config)
        engine.save(tmp_path / "m.tactician")
        stages = {s.name: s for s in Engine.load(tmp_path / "m.tactician").report.stages}
        assert stages["twice"].matches == 2
        assert stages["remove_dead"].matches is None
        steps = {step.node: step.op for step in engine.plan.steps}
        assert steps["first"] == steps["second"] == "twice::Twice"
        x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
        expected = onnxruntime.InferenceSession(parse(MODEL).SerializeToString()).run(None, {"x": x})[0]
        found = Session(engine, plugins=[plugin, "builtin"]).run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_it_can_be_left_out_by_name(self, plugin: str) -> None:
        config = BuilderConfig(target="cpu", plugins=(plugin, "builtin"), without=("twice",))
        assert not any(step.op.startswith("twice") for step in build(parse(MODEL), config).plan.steps)
        with pytest.raises(ConfigError, match="did you mean 'twice'"):
            build(parse(MODEL), BuilderConfig(target="cpu", plugins=(plugin, "builtin"), without=("twica",)))

    def test_the_command_says_it_too(
        self, plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "m.onnx").write_bytes(parse(MODEL).SerializeToString())
        arguments = ["--target", "cpu", "-p", plugin, "-o", str(tmp_path / "m.tactician")]
        assert main(["build", str(tmp_path / "m.onnx"), *arguments]) == 0
        assert "twice: 5 → 4 nodes, 2 matches\n" in capsys.readouterr().out
