"""What the candidates of one call are checked on: inputs, made up once, and what must come out of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tactician.config import BuilderConfig
from tactician.signature import OpSignature
from tactician.tactics.expected import Expected, Inputs, Reference
from tactician.tactics.reduction import reduction_length
from tactician.tactics.sampling import CannotSample, hard_inputs, representative, sample_inputs

LARGE_WORK = 3e8
"""Multiplications beyond which a call is checked on one set of random inputs instead of two."""


class Case:
    """Sets of inputs on the host: one or two random ones, then the hard values; and the references' results.

    Nothing of it needs the device, so that it can be made up while candidates are compiled.

    Raises
    ------
    CannotSample
        If there are no inputs to be made up for the call.
    """

    def __init__(self, signature: OpSignature, reference: Reference, seeds: Sequence[int]) -> None:
        static = representative(signature, reference)
        sizes = [t.size for t in static.outputs if t is not None and t.is_static]
        few = max(sizes, default=0) * reduction_length(static) > LARGE_WORK
        self.inputs: list[Inputs] = [
            sample_inputs(static, np.random.default_rng([*seeds, n])) for n in range(1 if few else 2)
        ]
        self.inputs.append(hard_inputs(static, np.random.default_rng([*seeds, 2])))
        self.expected = Expected(signature, reference, self.inputs)

    def foresee(self) -> None:
        """Compute the references' results now instead of when the first candidate is checked."""
        for number in range(len(self.inputs)):
            try:
                self.expected.require(number)
            except CannotSample:
                return  # whoever checks a candidate finds the same, and says it


def seeds_of(signature: OpSignature, config: BuilderConfig) -> list[int]:
    """Return what the random numbers of a call are drawn from: the same in every build."""
    return [config.seed, int(signature.key[:16], 16)]


def host_bytes(signature: OpSignature) -> int:
    """Return about how many bytes of host memory a case takes: its inputs, and results in double precision."""
    inputs = sum(t.nbytes for t in signature.inputs if t is not None and t.is_static)
    outputs = sum(8 * t.size for t in signature.outputs if t is not None and t.is_static)
    return 3 * (inputs + outputs)
