"""A tactic: one way to run one operator, as a named value."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm

if TYPE_CHECKING:
    from tactician.plugins.target import Device

ANY_OP = "*"
"""As ``Tactic.op``: the tactic may serve any operator and decides in ``candidates`` and ``decline``."""


class Launch(Protocol):
    """Runs one operator call: enqueues it on ``stream`` (or, on the host, does it before it returns).

    ``inputs`` and ``outputs`` are in the order of the signature, None where absent: NumPy arrays on the host,
    the device's own tensors elsewhere, contiguous. ``workspace`` is a byte array of the size that
    ``Tactic.workspace`` named, or None where that was 0. An output whose type is not static is passed as None,
    and the launch returns a sequence, parallel to ``outputs``, with the arrays for those. Otherwise it returns None.
    A launch may be called many times, with other buffers each time, and never allocates device memory.
    """

    def __call__(
        self, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any
    ) -> Sequence[Any] | None:
        """Enqueue the call."""
        ...


class Tactic(ABC):
    """One way to run one operator. Subclass as a frozen dataclass: its fields are what is searched over.

    Fields change speed only. What changes the numbers (accumulator, tf32, non-determinism) is declared by
    ``numerics``, so that policies can select on it.
    """

    op: ClassVar[str | tuple[str, ...]]
    """``"ai.onnx::Softmax"``, several of them, or ``ANY_OP``."""
    target: ClassVar[str]
    """``"cuda"``, ``"cpu"`` or the name of another installed target."""
    version: ClassVar[int] = 1
    """Raised whenever the kernel changes; part of the timing cache's key."""
    library: ClassVar[str] = ""
    """The library behind the kernel (``"cublaslt"``), for ``--sources``; empty for the plugin's own."""
    fused_forms: ClassVar[tuple[FusedForm, ...]] = ()
    """What it can run in one go with operators around ``op``: then it is asked about such calls too."""

    @classmethod
    def name(cls) -> str:
        """Return the tactic's name within its plugin: the class name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def serves(cls, op: str) -> bool:
        """Return whether this class has anything to offer for ``op``."""
        return cls.op == ANY_OP or op == cls.op or (isinstance(cls.op, tuple) and op in cls.op)

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        """Yield the configurations worth timing, best guess first.

        Pure: the same answer for the same arguments. The default is the one with all fields at their defaults.
        """
        yield cls()

    @classmethod
    def search_space(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        """Yield every configuration that may be the fastest, for ``BuilderConfig.exhaustive``.

        Pure, and without an order. The default is ``candidates``, which is what an ordinary build times.
        """
        return cls.candidates(signature, device)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Return why this tactic can't run ``signature`` on ``device``, in words, or None to accept.

        To accept is a promise: ``prepare`` and the launch succeed and are right.
        """
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the scratch memory that a launch needs, in bytes."""
        return 0

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return what makes the numbers differ from plain arithmetic in the signature's types.

        Known marks: ``"tf32"`` (products rounded to tf32), ``"reduced-accumulator"`` (sums kept in less than
        fp32), ``"nondeterministic"`` (repeated runs may differ in the last bits).
        """
        return frozenset()

    @abstractmethod
    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Compile what is needed and return the launch. Compiled kernels go through ``device`` and are cached there."""


def format_fields(tactic: Tactic) -> str:
    """Return the tactic's fields as they stand in its id: ``"block_m=128, stages=4"``."""
    fields = dataclasses.fields(tactic)  # type: ignore[arg-type]  # every concrete tactic is a dataclass; checked at registration
    return ", ".join(f"{f.name}={getattr(tactic, f.name)}" for f in fields)


def host_launch(compute: Callable[..., Any]) -> Launch:
    """Make a host launch of ``compute(*inputs) -> array or tuple of arrays`` by copying its results to the outputs.

    The convenient form for NumPy code that can't write in place; results must have the outputs' shapes.
    """

    def launch(
        inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any
    ) -> Sequence[Any] | None:
        results = compute(*inputs)
        results = results if isinstance(results, tuple | list) else (results,)
        dynamic = False
        for output, result in zip(outputs, results, strict=False):
            if output is None:
                dynamic = True
            else:
                np.copyto(output, result, casting="same_kind")
        return results if dynamic else None

    return launch
