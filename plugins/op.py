"""An operator: what it means, by shape inference and a NumPy reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tactician.signature import OpSignature, TensorType

Reference = Callable[..., Any]
"""``reference(signature, *inputs) -> array or tuple of arrays``; absent inputs are None."""

Infer = Callable[[OpSignature], Sequence[TensorType]]
"""``infer(signature) -> output types``; the signature's own output types are not filled in."""


@dataclass(frozen=True)
class Op:
    """A custom operator, brought by a plugin.

    Parameters
    ----------
    name
        ``"domain::Name"``; the domain is the plugin's own namespace.
    infer
        Computes the output types from a signature's inputs, attributes and known constants.
    reference
        Computes the outputs with NumPy. It is called with inputs in the signature's types or, when a tactic is
        checked, in a wider floating-point type, and should compute in the type that it is given. Several threads may
        call it at once.
    channels_last
        What other operator it is in another layout: then the builder races the two over whole networks.
    """

    name: str
    infer: Infer
    reference: Reference
    channels_last: ChannelsLast | None = None


@dataclass(frozen=True)
class ChannelsLast:
    """That an operator is another one with the channels innermost, in some inputs and in its output.

    Attributes are those of the other operator.

    Parameters
    ----------
    of
        Name of the other one, ``"ai.onnx::Conv"``, whose channels are the second dimension.
    moved
        Inputs whose second dimension is last here.
    constant
        Inputs that must be constants: they are laid out when the engine is built.
    """

    of: str
    moved: tuple[int, ...] = (0,)
    constant: tuple[int, ...] = ()


def as_outputs(result: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """Return what a reference returned as a tuple of arrays."""
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(np.asarray(r) for r in results)
