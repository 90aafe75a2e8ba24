"""Files made to hurt: whatever they hold, importing ends soon, within bounds, and in one of our own errors."""

from __future__ import annotations

import resource
import time

import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tactician import passes
from tactician.config import BuilderConfig
from tactician.errors import InvalidModelError, ShapeError, TacticianError
from tactician.importer import import_model
from tactician.network import signatures


def parse(body: str, opset: int = 18, functions: str = "", imports: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}{imports}]>\n{body}\n{functions}'
    )


SEEDS = [
    model.SerializeToString()
    for model in (
        parse(
            "g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[2] s = {-1, 4}> "
            "{ m = MatMul(x, w)  h = Relu(m)  y = Reshape(h, s) }"
        ),
        parse(
            "g (float[1, 3, 8, 8] x, float[4, 3, 3, 3] w, float[4] b) => (y) { m = Conv <pads = [1, 1, 1, 1]> (x, w, b) "
            "h = BatchNormalization(m, b, b, b, b)  q = MaxPool <kernel_shape = [2, 2]> (h)  y = Flatten(q) }",
            opset=11,
        ),
        parse(
            "g (bool c, float[3] x) => (float[3] y) { z = l.f(x)  y = If (c) <then_branch = t () => (float[3] a) "
            "{ a = Neg(z) }, else_branch = e () => (float[3] b) { b = Abs(x) }> }",
            functions='<opset_import: ["" : 18], domain: "l"> f (a) => (b) { h = Add(a, a)  b = Relu(h) }',
            imports=', "l" : 1',
        ),
        parse(
            "g (float[2, 3] x) => (y, z) <int64[2] s = {2, 3}, float v = {2}> { e = Expand(v, s)  r = ConstantOfShape(s) "
            "t = Tile(e, s)  a = Add(e, r)  z = Concat <axis = 1> (a, a)  q = Shape(t)  y = Concat <axis = 0> (q, s) }"
        ),
        parse('g (float[2, 3] x, float[3, 4] w) => (y) { y = Einsum <equation = "ij,jk->ik"> (x, w) }'),
    )
]

MUTATION = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 400), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, 400), st.integers(0, 7)),
    st.tuples(st.just("set"), st.integers(0, 400), st.sampled_from([0, 1, 127, 128, 255])),
    st.tuples(st.just("copy"), st.integers(0, 400), st.integers(1, 20)),
)


def mutate(data: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    result = bytearray(data)
    for kind, place, value in mutations:
        if not result:
            break
        place %= len(result)
        match kind:
            case "cut":
                del result[place:]
            case "flip":
                result[place] ^= 1 << value
            case "set":
                result[place] = value
            case "copy":
                result[place:place] = result[place : place + value]
    return bytes(result)


def import_whatever(data: bytes) -> bool:
    """Return whether ``data`` was imported; whatever is must go through the passes, and have signatures."""
    try:
        network = import_model(data)
    except TacticianError:
        return False
    passes.run(network, passes.pipeline(BuilderConfig()))
    assert len(signatures(network)) == network.graph.num_nodes()
    return True


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.lists(MUTATION, min_size=1, max_size=4))
@example(SEEDS[0], [])
@example(SEEDS[4], [("set", SEEDS[4].index(b"->"), 127)])
def test_damaged_models_end_in_our_own_errors(seed: bytes, mutations: list[tuple[str, int, int]]) -> None:
    assert import_whatever(mutate(seed, mutations)) or mutations


@pytest.mark.parametrize("seed", SEEDS)
def test_every_truncation_is_refused(seed: bytes) -> None:
    refused = [not import_whatever(seed[:n]) for n in range(0, len(seed), 3)]
    # a cut between two fields of the file itself leaves a whole model without its last field
    assert sum(refused) > 0.9 * len(refused)


@settings(max_examples=100, deadline=2000)
@given(st.binary(max_size=200))
def test_garbage_is_no_model(data: bytes) -> None:
    with pytest.raises(InvalidModelError):
        import_model(data)


@pytest.mark.parametrize("equation", ["-~", "ij-", "->>", "i.j->i", "ij,jk->i k~", "\x7f", "....->."])
def test_equations_that_are_none_are_refused(equation: str) -> None:
    model = parse('g (float[2, 2] x) => (y) { y = Einsum <equation = "ij->ji"> (x) }')
    model.graph.node[0].attribute[0].s = equation.encode()
    with pytest.raises(TacticianError, match="Einsum"):
        import_model(model)


class TestSizes:
    """What a file declares does not decide how much memory is taken."""

    def limited(self, model: onnx.ModelProto) -> TacticianError:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        with pytest.raises(TacticianError) as caught:
            import_model(model)
        assert time.perf_counter() - start < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
        return caught.value

    def test_an_initializer_that_declares_more_than_it_holds(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { y = Add(x, w) }")
        model.graph.initializer.add(
            name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"1234"
        )
        error = self.limited(model)
        assert isinstance(error, InvalidModelError)
        assert (
            "tensor 'w' of shape [1048576, 1048576] needs 4398046511104 bytes of data, but the model holds 4"
            in str(error)
        )

    @pytest.mark.parametrize("dims", [[-1], [1 << 62, 1 << 62], [2, -3]])
    def test_dimensions_that_are_negative_or_overflow(self, dims: list[int]) -> None:
        model = parse("g (float[3] x) => (float[3] y) { y = Add(x, w) }")
        model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234")
        assert isinstance(self.limited(model), InvalidModelError)

    @pytest.mark.parametrize("field", ["float_data", "int32_data"])
    def test_typed_data_of_the_wrong_length(self, field: str) -> None:
        model = parse("g (float[3] x) => (float[3] y) { y = Add(x, w) }")
        tensor = model.graph.initializer.add(name="w", dims=[7])
        tensor.data_type = TensorProto.FLOAT if field == "float_data" else TensorProto.INT8
        getattr(tensor, field).extend([1, 2, 3])
        assert "needs 7 values of data, but the model holds 3" in str(self.limited(model))

    def test_a_constant_within_a_node(self) -> None:
        model = parse(
            "g (float[3] x) => (float[3] y) { c = Constant <value = float[3] {1, 2, 3}> ()  y = Add(x, c) }"
        )
        model.graph.node[0].attribute[0].t.dims[0] = 1 << 40
        assert isinstance(self.limited(model), InvalidModelError)

    def test_a_sparse_tensor_of_enormous_extent(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { y = Add(x, s) }")
        values = helper.make_tensor("s", TensorProto.FLOAT, [1], [5.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))
        assert "too large to be made dense" in str(self.limited(model))

    def test_a_sparse_index_out_of_range(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { y = Add(x, s) }")
        values = helper.make_tensor("s", TensorProto.FLOAT, [1], [5.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [3])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
        assert "indices out of range" in str(self.limited(model))

    @pytest.mark.parametrize(
        "body",
        [
            "g (float[3] x) => (y) <int64[2] s = {1048576, 1048576}> { y = ConstantOfShape(s) }",
            "g (float[3] x) => (y) <int64[3] s = {1048576, 1048576, 1}> { y = Expand(x, s) }",
            "g (float[1048576, 1] x, float[1, 9999999] z) => (y) { y = Add(x, z) }",
        ],
    )
    def test_results_larger_than_the_machine(self, body: str) -> None:
        error = self.limited(parse(body))
        assert isinstance(error, ShapeError)
        assert "GiB; this machine has" in str(error)

    def test_folding_makes_no_large_constants(self) -> None:
        body = "g (float[1] x) => (y) <int64[2] s = {16384, 16384}, float v = {2}> { e = Expand(v, s)  y = Add(x, e) }"
        network = import_model(parse(body))
        passes.run(network, passes.pipeline(BuilderConfig()))
        held = sum(
            v.const_value.nbytes for v in network.graph.initializers.values() if v.const_value is not None
        )
        assert held < 1000
        assert [n.op_type for n in network.graph] == ["Expand", "Add"]

    def test_folding_adds_a_bounded_amount_in_all(self) -> None:
        nodes = "".join(f"e{i} = Expand(v{i}, s) a{i} = Add(a{i - 1}, e{i})" for i in range(1, 13))
        values = ", ".join(f"float v{i} = {{{i}}}" for i in range(1, 13))
        body = f"g (float[1] a0) => (y) <int64[2] s = {{1024, 4096}}, {values}> {{ {nodes} y = Relu(a12) }}"
        network = import_model(parse(body))
        passes.run(network, passes.pipeline(BuilderConfig()))
        held = sum(
            v.const_value.nbytes for v in network.graph.initializers.values() if v.const_value is not None
        )
        assert 32 << 20 < held <= (64 << 20) + 1000


def length_delimited(number: int, data: bytes) -> bytes:
    """Return a field of a protocol buffer, written by hand: the library refuses to nest what it would not read."""
    size, prefix = len(data), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes([size]) + data


@pytest.mark.parametrize(("depth", "fine"), [(10, True), (40, False), (400, False)])
def test_nesting_is_bounded(depth: int, fine: bool) -> None:
    model = parse("g (bool c, float[3] x) => (float[3] y) { y = Relu(x) }")
    output = length_delimited(12, model.graph.output[0].SerializeToString())
    relu = length_delimited(1, model.graph.node[0].SerializeToString())
    plain = length_delimited(2, b"plain") + relu + output
    inner = relu
    for _ in range(depth):
        branches = ((b"then_branch", inner + length_delimited(2, b"level") + output), (b"else_branch", plain))
        attributes = [
            length_delimited(1, name) + length_delimited(6, graph) + b"\xa0\x01\x05"
            for name, graph in branches
        ]
        node = b"".join(length_delimited(n, text) for n, text in ((1, b"c"), (2, b"y"), (4, b"If")))
        inner = length_delimited(1, node + b"".join(length_delimited(5, a) for a in attributes))
    values = b"".join(length_delimited(11, v.SerializeToString()) for v in model.graph.input)
    graph = inner + length_delimited(2, b"main") + values + output
    data = (
        b"\x08\x08"
        + length_delimited(7, graph)
        + length_delimited(8, model.opset_import[0].SerializeToString())
    )
    assert import_whatever(data) is fine


def test_names_that_are_no_text_are_refused() -> None:
    data = SEEDS[0].replace(b"MatMul", b"Mat\xff\xfel")
    with pytest.raises(InvalidModelError, match=r"graph.node.op_type is no text"):
        import_model(data)


def test_an_importable_seed_survives_a_round_trip() -> None:
    for seed in SEEDS:
        network = import_model(seed)
        again = import_model(ir.serde.serialize_model(network))
        assert [n.op_type for n in again.graph] == [n.op_type for n in network.graph]
