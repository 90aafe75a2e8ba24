"""Einsum as products of matrices: two operands at a time, each with its letters in order."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tactician.decompositions.call import Call, ints, require, reshaped, shape_of, transposed
from tactician.passes.writer import Writer


@dataclass(frozen=True)
class Term:
    """An operand: a value, and the letter of each of its dimensions."""

    value: ir.Value
    letters: str
    sizes: dict[str, int]

    def shape(self, letters: str) -> list[int]:
        """Return the sizes of ``letters``."""
        return [self.sizes[letter] for letter in letters]

    def ordered(self, op: Writer, letters: str) -> Term:
        """Return it with the dimensions of ``letters``, which are its own, in that order."""
        if letters == self.letters:
            return self
        order = [self.letters.index(letter) for letter in letters]
        return Term(transposed(op, self.value, order), letters, self.sizes)

    def summed(self, op: Writer, kept: str) -> Term:
        """Return the sum over all letters but those of ``kept``."""
        axes = [i for i, letter in enumerate(self.letters) if letter not in kept]
        if not axes:
            return self
        left = "".join(letter for letter in self.letters if letter in kept)
        return Term(op.ReduceSum(self.value, ints(*axes), keepdims=0), left, self.sizes)


def einsum(op: Writer, call: Call) -> ir.Value:
    """Write products of two operands as MatMul, or as Mul where nothing is summed; what only one has is summed before."""
    shapes = [call.type(i).dims for i in range(len(call.node.inputs))]
    require(all(0 not in shape for shape in shapes), "an operand is empty")
    inputs, output = parsed(str(call.attribute("equation")), [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for letters, shape in zip(inputs, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    terms = [_term(op, call.input(i), letters, sizes) for i, letters in enumerate(inputs)]
    while len(terms) > 1:
        first, second, *others = terms
        needed = output + "".join(term.letters for term in others)
        terms = [_product(op, first, second, needed), *others]
    return terms[0].summed(op, output).ordered(op, output).value


def parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result; dimensions of an ellipsis get letters of their own.

    Raises
    ------
    UnexpandableError
        If they do not fit the operands.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    require(len(texts) == len(ranks), f"'{equation}' is not for {len(ranks)} operands")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    covered = [
        rank - len(text.replace("...", "")) if "..." in text else 0
        for text, rank in zip(texts, ranks, strict=True)
    ]
    most = max(covered)
    require(min(covered) >= 0 and most <= len(unused), f"'{equation}' does not fit its operands")
    common = "".join(unused[:most])
    inputs = [t.replace("...", common[most - n :]) for t, n in zip(texts, covered, strict=True)]
    if arrow:
        output = right.replace("...", common)
    else:
        every = "".join(texts).replace("...", "")
        output = common + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    require(all(len(t) == rank for t, rank in zip(inputs, ranks, strict=True)), f"'{equation}' does not fit")
    return inputs, output


def _term(op: Writer, value: ir.Value, letters: str, sizes: dict[str, int]) -> Term:
    """Return an operand without dimensions that are repeated, and with the diagonal where a letter stands twice."""
    shape = shape_of(value)
    kept = [i for i, letter in enumerate(letters) if shape[i] == sizes[letter]]
    if len(kept) < len(letters):
        value = reshaped(op, value, [shape[i] for i in kept])
        letters = "".join(letters[i] for i in kept)
    while (twice := next((c for c in letters if letters.count(c) > 1), None)) is not None:
        first, size = letters.index(twice), sizes[twice]
        second = letters.index(twice, first + 1)
        others = [i for i in range(len(letters)) if i not in (first, second)]
        value = transposed(op, value, [*others, first, second])
        rest = "".join(letters[i] for i in others)
        value = reshaped(op, value, [*(sizes[c] for c in rest), size * size])
        value = op.Slice(value, ints(0), ints(size * size), ints(len(rest)), ints(size + 1))
        letters = rest + twice
    return Term(value, letters, sizes)


def _product(op: Writer, a: Term, b: Term, needed: str) -> Term:
    """Return the product of two operands, summed over what is not ``needed`` any more."""
    a, b = a.summed(op, needed + b.letters), b.summed(op, needed + a.letters)
    own_a, own_b = ("".join(c for c in x.letters if c not in y.letters) for x, y in ((a, b), (b, a)))
    if own_a and own_b and max(map(needed.find, own_b)) < min(map(needed.find, own_a)):
        a, b, own_a, own_b = b, a, own_b, own_a  # the result has the other's letters first
    shared = [c for c in a.letters if c in b.letters]
    batch = "".join(c for c in shared if c in needed)
    summed = "".join(c for c in shared if c not in needed)
    letters = batch + own_a + own_b
    if not summed:
        left = a.ordered(op, batch + own_a).value
        right = b.ordered(op, batch + own_b).value
        left = reshaped(op, left, a.shape(batch + own_a) + [1] * len(own_b))
        right = reshaped(op, right, a.shape(batch) + [1] * len(own_a) + a.shape(own_b))
        return Term(op.Mul(left, right), letters, a.sizes)
    sides = [_size(a, part) for part in (own_a, summed, own_b)]
    pre = [_size(a, batch)] if batch else []
    left = reshaped(op, a.ordered(op, batch + own_a + summed).value, pre + sides[:2])
    right = reshaped(op, b.ordered(op, batch + summed + own_b).value, pre + sides[1:])
    return Term(reshaped(op, op.MatMul(left, right), a.shape(letters)), letters, a.sizes)


def _size(term: Term, letters: str) -> int:
    return math.prod(term.shape(letters))
