"""RNN, GRU and LSTM, unrolled: one product for the inputs of all steps, then one of the state for each step.

Gates are a leading dimension, so that cutting them apart moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.decompositions.activations import Activation, activations
from tactician.decompositions.call import Call, ints, require, reshaped, transposed
from tactician.passes.writer import Writer

MOST_STEPS = 128
"""Steps, over both directions, that are unrolled: more make a network whose launches take longer than the copies."""

State = tuple[ir.Value, ...]
"""The hidden state and, of an LSTM, the cells': each is [1, batch, hidden]."""

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class Direction:
    """The operands of one direction: weights as [gates, inputs or hidden, hidden], biases as [gates, 1, hidden]."""

    inputs: list[ir.Value]
    """What the inputs add to the gates, step by step: [gates, batch, hidden]."""
    recurrent: ir.Value
    recurrent_bias: ir.Value | None
    peepholes: list[ir.Value]
    activations: list[Activation]


@dataclass(frozen=True)
class Problem:
    """One call: its sizes, and what is common to both directions."""

    op: Writer
    call: Call
    steps: int
    batch: int
    hidden: int
    directions: int
    gates: int

    @classmethod
    def of(cls, op: Writer, call: Call) -> Problem:
        """Return the sizes of ``call``."""
        layout = int(call.attribute("layout", 0))
        steps, batch = call.type().dims[1::-1] if layout else call.type().dims[:2]
        directions, _, hidden = call.type(2).dims
        require(
            0 < steps * directions <= MOST_STEPS, f"{steps * directions} steps are more than {MOST_STEPS}"
        )
        require(0 not in call.type().dims, "there is nothing to compute")
        return cls(op, call, steps, batch, hidden, directions, GATES[call.signature.op_type])

    @property
    def is_batch_first(self) -> bool:
        """Whether the batch is the first dimension of inputs and outputs."""
        return bool(self.call.attribute("layout", 0))

    def of_direction(self, index: int, number: int) -> ir.Value:
        """Return what input ``index`` is for direction ``number``, without the dimension of directions."""
        value, dims = self.call.input(index), self.call.type(index).dims
        if self.directions > 1:
            value = self.op.Slice(value, ints(number), ints(number + 1), ints(0))
        return reshaped(self.op, value, dims[1:])

    def state(self, index: int, number: int) -> ir.Value:
        """Return an initial state: [1, batch, hidden]."""
        shape = (1, self.batch, self.hidden)
        if not self.call.has(index):
            return _constant(self.op, np.zeros(shape, self.call.type().numpy_dtype))
        axis = 1 if self.is_batch_first else 0
        value = self.op.Slice(self.call.input(index), ints(number), ints(number + 1), ints(axis))
        return reshaped(self.op, value, shape)

    def direction(self, number: int) -> Direction:
        """Return the operands of direction ``number``, with the product of all inputs."""
        op, gates, hidden = self.op, self.gates, self.hidden
        inputs = self.call.type(1).dims[2]
        x = transposed(op, self.call.input(0), [1, 0, 2]) if self.is_batch_first else self.call.input(0)
        flat = reshaped(op, x, [self.steps * self.batch, inputs])
        given = op.MatMul(flat, transposed(op, self.of_direction(1, number), [1, 0]))
        given = reshaped(op, given, [self.steps, self.batch, gates, hidden])
        given = transposed(op, given, [0, 2, 1, 3])
        own = None
        if self.call.has(3):
            own, other = op.Split(
                self.of_direction(3, number), ints(*[gates * hidden] * 2), axis=0, _outputs=2
            )
            own, other = (reshaped(op, bias, [gates, 1, hidden]) for bias in (own, other))
            if not self.keeps_recurrent_bias:
                own, other = op.Add(own, other), None
            given = op.Add(given, own)
            own = other
        recurrent = reshaped(op, self.of_direction(2, number), [gates, hidden, hidden])
        peepholes = self.of_direction(7, number) if self.call.has(7) and gates == 4 else None
        return Direction(
            [reshaped(op, step, [gates, self.batch, hidden]) for step in self.parts(given, self.steps)],
            transposed(op, recurrent, [0, 2, 1]),
            own,
            [] if peepholes is None else self.parts(reshaped(op, peepholes, [3, 1, hidden]), 3),
            activations(self.call, number),
        )

    @property
    def keeps_recurrent_bias(self) -> bool:
        """Whether the state's biases can't be added to the inputs': the reset gate multiplies them."""
        return self.gates == 3 and bool(self.call.attribute("linear_before_reset", 0))

    def within_length(self, place: int, new: State, old: State) -> tuple[State, ir.Value]:
        """Return the state after a step, and its result: beyond a sequence's end the state stays, and results are 0."""
        lengths = self.call.known(4)
        if not self.call.has(4) or (lengths is not None and bool((lengths == self.steps).all())):
            return new, new[0]
        inside = self.op.Greater(self.call.input(4), np.array(place, np.int32))
        inside = reshaped(self.op, inside, [1, self.batch, 1])
        state = tuple(self.op.Where(inside, a, b) for a, b in zip(new, old, strict=True))
        return state, self.op.Where(inside, new[0], np.zeros((), self.call.type().numpy_dtype))

    def parts(self, value: ir.Value, count: int) -> list[ir.Value]:
        """Return the parts of ``value`` along its first dimension."""
        if count == 1:
            return [value]
        return list(self.op.Split(value, ints(*[1] * count), axis=0, _outputs=count))

    def activated(self, activation: Activation, value: ir.Value) -> ir.Value:
        """Return a gate: what comes into it is cut off where the call says so."""
        clip = self.call.attribute("clip")
        if clip is not None:
            value = self.op.Max(self.op.Min(value, float(clip)), -float(clip))
        return activation(self.op, value)


def recurrent(op: Writer, call: Call) -> Sequence[ir.Value | None]:
    """Write a recurrent network step by step."""
    problem = Problem.of(op, call)
    step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[call.signature.op_type]
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    outputs: list[ir.Value] = []
    last: list[State] = []
    for number, backward in enumerate(reverse[str(call.attribute("direction", "forward"))]):
        direction = problem.direction(number)
        state = tuple(problem.state(i, number) for i in ((5, 6) if problem.gates == 4 else (5,)))
        found: list[ir.Value] = []
        for place in range(problem.steps)[:: -1 if backward else 1]:
            new = step(problem, direction, direction.inputs[place], state)
            state, result = problem.within_length(place, new, state)
            found.append(result)
        every = op.Concat(*(reversed(found) if backward else found), axis=0)
        outputs.append(reshaped(op, every, [problem.steps, 1, problem.batch, problem.hidden]))
        last.append(state)
    y = op.Concat(*outputs, axis=1)
    finals = [op.Concat(*parts, axis=0) for parts in zip(*last, strict=True)]
    if problem.is_batch_first:
        y = transposed(op, y, [2, 0, 1, 3])
        finals = [transposed(op, value, [1, 0, 2]) for value in finals]
    return [y, *finals]


def _rnn(problem: Problem, direction: Direction, given: ir.Value, state: State) -> State:
    total = problem.op.Add(given, problem.op.MatMul(state[0], direction.recurrent))
    return (problem.activated(direction.activations[0], total),)


def _gru(problem: Problem, direction: Direction, given: ir.Value, state: State) -> State:
    op, (f, g), (h,) = problem.op, direction.activations, state
    gates, candidate = op.Split(given, ints(2, 1), axis=0, _outputs=2)
    if problem.keeps_recurrent_bias:
        product = op.MatMul(h, direction.recurrent)
        if direction.recurrent_bias is not None:
            product = op.Add(product, direction.recurrent_bias)
        products, last = op.Split(product, ints(2, 1), axis=0, _outputs=2)
    else:
        weights, own = op.Split(direction.recurrent, ints(2, 1), axis=0, _outputs=2)
        products = op.MatMul(h, weights)
    update, reset = problem.parts(problem.activated(f, op.Add(gates, products)), 2)
    last = op.Mul(reset, last) if problem.keeps_recurrent_bias else op.MatMul(op.Mul(reset, h), own)
    new = problem.activated(g, op.Add(candidate, last))
    return (op.Add(op.Mul(op.Sub(_one(update), update), new), op.Mul(update, h)),)


def _lstm(problem: Problem, direction: Direction, given: ir.Value, state: State) -> State:
    op, (f, g, h), (hidden, cell) = problem.op, direction.activations, state
    total = op.Add(given, op.MatMul(hidden, direction.recurrent))
    i, o, forget, new = problem.parts(total, 4)
    peepholes = direction.peepholes
    if peepholes:
        i, forget = (op.Add(x, op.Mul(p, cell)) for x, p in ((i, peepholes[0]), (forget, peepholes[2])))
    i = problem.activated(f, i)
    coupled = bool(problem.call.attribute("input_forget", 0))
    forget = op.Sub(_one(i), i) if coupled else problem.activated(f, forget)
    cell = op.Add(op.Mul(forget, cell), op.Mul(i, problem.activated(g, new)))
    if peepholes:
        o = op.Add(o, op.Mul(peepholes[1], cell))
    return op.Mul(problem.activated(f, o), h(op, cell)), cell


def _one(value: ir.Value) -> Any:
    return np.ones((), value.dtype.numpy() if value.dtype is not None else np.float32)


def _constant(op: Writer, array: Any) -> ir.Value:
    value: ir.Value = op.Identity(array)
    return value
