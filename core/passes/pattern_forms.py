"""The forms of a rewrite rule's pattern: one for each choice of alternatives and each order of operands."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnxscript.rewriter import pattern as matching
from tactician.errors import PluginError

MOST_FORMS = 4096
"""Forms that one rule may have: each alternative and each commutative operator multiplies them."""

COMMUTATIVE = frozenset(
    {
        "Add",
        "And",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Equal",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Or",
        "Sum",
        "Xor",
    }
)
"""Operators whose two operands may change places."""

CONSTANT_ULPS = 4
"""Steps of its type by which a floating-point constant may differ from the pattern's: some are computed."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Form:
    """A pattern without alternatives, ready to be matched.

    Parameters
    ----------
    matcher
        Finds it; constants are variables to it.
    constants
        What the variables that stand for constants must be.
    defaults
        Values of variables that stand for attributes where a node leaves them out.
    variables
        The pattern function's arguments.
    root
        Operator of the last node.
    operands
        Operators that compute the inputs of the last node; None where it is not said.
    """

    matcher: matching.Pattern
    constants: Mapping[str, Any]
    defaults: Mapping[str, Any]
    variables: tuple[str, ...]
    root: str
    operands: tuple[str | None, ...]

    def may_match(self, node: ir.Node) -> bool:
        """Return whether a subgraph that ends in ``node`` can be of this form: a quick look that saves most work."""
        if node.op_type != self.root:
            return False
        for wanted, value in zip(self.operands, node.inputs, strict=False):
            if wanted is None:
                continue
            producer = None if value is None else value.producer()
            if producer is None or producer.op_type != wanted:
                return False
        return True


def forms_of(rule: str, patterns: Sequence[Function], opset: int, *, commute: bool) -> list[Form]:
    """Return all forms of ``patterns``, the functions of the rule called ``rule``, in order and each once.

    Raises
    ------
    PluginError
        If a pattern is none, or has too many forms.
    """
    found: dict[Any, Form] = {}
    for function in patterns:
        for form in _forms_of_one(rule, function, opset, commute):
            found.setdefault(form.key, form.finished())
            if len(found) > MOST_FORMS:
                raise PluginError(
                    f"rewrite rule '{rule}' has more than {MOST_FORMS} forms; make it several rules, or give the orders "
                    "of operands that occur and commute=False"
                )
    return list(found.values())


def equals(tensor: np.ndarray[Any, Any], wanted: Any) -> bool:
    """Return whether a constant has the value that a pattern wants: a number, whatever the rank, or a list."""
    expected = np.asarray(wanted)
    if expected.ndim == 0 and tensor.size == 1:
        tensor = tensor.reshape(())
    if tensor.shape != expected.shape:
        return False
    if tensor.dtype.kind in "iub":
        return bool((tensor == expected).all())
    rounded = expected.astype(tensor.dtype).astype(np.float64)
    step = CONSTANT_ULPS * float(ml_dtypes.finfo(tensor.dtype).eps)
    return bool(np.isclose(tensor.astype(np.float64), rounded, rtol=step, atol=0).all())


def _forms_of_one(rule: str, function: Function, opset: int, commute: bool) -> Iterator[_Writer]:
    first = _write(rule, function, opset)
    for choices in itertools.product(*(range(n) for n in first.widths)):
        plain = _write(rule, function, opset, choices)
        swaps = plain.commutative() if commute else []
        for count in range(len(swaps) + 1):
            for swapped in itertools.combinations(swaps, count):
                yield _write(rule, function, opset, choices, frozenset(swapped))


def _write(
    rule: str,
    function: Function,
    opset: int,
    choices: Sequence[int] = (),
    swapped: frozenset[int] = frozenset(),
) -> _Writer:
    writer = _Writer(function, opset, choices, swapped)
    try:
        writer.write()
    except Exception as error:  # of any type: it is another's code
        raise PluginError(
            f"rewrite rule '{rule}': its pattern fails: {type(error).__name__}: {error}"
        ) from error
    return writer


@dataclass(frozen=True)
class _Call:
    """A node of a pattern: its operator, its inputs, and all that tells it from another."""

    op_type: str
    arguments: tuple[Any, ...]
    key: tuple[Any, ...]


class _Writer:
    """What a pattern function is called with as ``op``: writes down one form of the pattern."""

    def __init__(
        self, function: Function, opset: int, choices: Sequence[int], swapped: frozenset[int]
    ) -> None:
        self.widths: list[int] = []
        """Number of alternatives at each choice."""
        self.key: Any = None
        """Equal for forms that are the same."""
        self._function, self._opset = function, opset
        self._choices, self._swapped = choices, swapped
        self._builder: Any = None
        self._calls: list[_Call] = []
        self._makers: dict[int, tuple[int, int]] = {}
        self._constants: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._outputs: list[Any] = []
        self._variables = tuple(inspect.signature(function).parameters)[1:]

    def write(self) -> None:
        """Call the pattern function."""

        @wraps(self._function)  # onnxscript asks for the names of the variables
        def build(builder: Any, *variables: Any) -> list[Any]:
            self._builder = builder
            with matching.pattern_builder(self):
                returned = self._function(self, *variables)
            self._outputs = list(returned) if isinstance(returned, list | tuple) else [returned]
            return self._outputs

        self._matcher = matching.Pattern(build)
        if not self._outputs or any(id(value) not in self._makers for value in self._outputs):
            raise TypeError("it must return what its nodes compute, a value or several")
        self.key = tuple(self._key(value) for value in self._outputs)

    def finished(self) -> Form:
        """Return the form."""
        last = self._calls[self._makers[id(self._outputs[0])][0]]
        makers = [self._makers.get(id(value)) for value in last.arguments]
        operands = tuple(None if made is None else self._calls[made[0]].op_type for made in makers)
        return Form(self._matcher, self._constants, self._defaults, self._variables, last.op_type, operands)

    def commutative(self) -> list[int]:
        """Return the calls, of those that the outputs need, whose two operands may change places."""
        needed: set[int] = set()
        waiting = [self._makers[id(value)][0] for value in self._outputs]
        while waiting:
            number = waiting.pop()
            if number not in needed:
                needed.add(number)
                made = (self._makers.get(id(value)) for value in self._calls[number].arguments)
                waiting += [m[0] for m in made if m is not None]
        return sorted(n for n in needed if self._may_swap(self._calls[n]))

    def either(self, *alternatives: Any) -> Any:
        """Return one of ``alternatives``; there is a form for each."""
        number = len(self.widths)
        self.widths.append(len(alternatives))
        return alternatives[self._choices[number] if number < len(self._choices) else 0]

    def __getattr__(self, op_type: str) -> Any:
        """Return the function that writes a node of ``op_type``."""
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return partial(self._write_node, op_type)

    def _write_node(
        self,
        op_type: str,
        *arguments: Any,
        _domain: str = "",
        _outputs: int | Sequence[str | None] = 1,
        _allow_other_attributes: bool = False,
        **attributes: Any,
    ) -> Any:
        number = len(self._calls)
        names = [None] * _outputs if isinstance(_outputs, int) else list(_outputs)
        inputs = tuple(self._input(value, f"{number}.{i}") for i, value in enumerate(arguments))
        call = _Call(op_type, inputs, (_domain, *names, *sorted((k, str(v)) for k, v in attributes.items())))
        self._calls.append(call)
        if number in self._swapped:
            inputs = inputs[::-1]
            self._calls[number] = call = _Call(op_type, inputs, call.key)
        known = self._patterns_of(op_type, _domain, attributes, others=_allow_other_attributes)
        values = self._builder.__getattr__(op_type)(
            *inputs,
            _domain=_domain,
            # values without a name of their own could be bound twice, to different values
            _outputs=[name or f"{number}/{i}" for i, name in enumerate(names)],
            _allow_other_attributes=_allow_other_attributes,
            **known,
        )
        for i, value in enumerate(values if isinstance(values, list | tuple) else [values]):
            self._makers[id(value)] = number, i
        return values

    def _input(self, value: Any, place: str) -> Any:
        """Return a variable for a constant; the constant is compared once all else fits."""
        if value is None or isinstance(value, matching.Var) or id(value) in self._makers:
            return value
        if not np.issubdtype(np.asarray(value).dtype, np.number):
            raise TypeError(f"{value!r} is no variable, no number and nothing that a node computes")
        self._constants[f"constant {place}"] = value
        return matching.Var(f"constant {place}")

    def _patterns_of(
        self, op_type: str, domain: str, given: Mapping[str, Any], *, others: bool
    ) -> dict[str, Any]:
        """Return patterns for all attributes of a node: those that are not named must have their defaults."""
        defaults = _defaults(op_type, domain, self._opset)
        found = {} if others else {name: _Equal(value, optional=True) for name, value in defaults.items()}
        for name, value in given.items():
            default = defaults.get(name)
            if isinstance(value, matching.Var):
                found[name] = matching.AttrVar(value.name, can_match_none=name in defaults)
                self._defaults[value.name] = default
            else:
                found[name] = _Equal(value, optional=_plain(value) == default and name in defaults)
        return found

    def _may_swap(self, call: _Call) -> bool:
        first, *rest = call.arguments
        return call.op_type in COMMUTATIVE and call.key[0] == "" and len(rest) == 1 and first is not rest[0]

    def _key(self, value: Any) -> Any:
        made = self._makers.get(id(value))
        if made is not None:
            call = self._calls[made[0]]
            return call.op_type, call.key, made[1], tuple(self._key(v) for v in call.arguments)
        name = None if value is None else value.name
        return str(self._constants[name]) if name in self._constants else (name,)


class _Equal(matching.AttrVar):
    """Matches an attribute of one value; where that is the default, also none at all."""

    def __init__(self, value: Any, *, optional: bool) -> None:
        super().__init__(None, can_match_none=optional)
        self._value = _plain(value)

    def matches(self, attr: ir.Attr) -> bool:
        """Return whether ``attr`` has the value; floats are compared as ONNX holds them, in single precision."""
        return bool(_plain(attr.value) == self._value)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value


@cache
def _defaults(op_type: str, domain: str, opset: int) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    protos = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.type}
    return {name: _plain(onnx.helper.get_attribute_value(proto)) for name, proto in protos.items()}
