"""The frozen plan: what an engine does, step by step, and what was decided on the way. Plain data."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
from tactician.signature import OpSignature, TensorType
from tactician.stages import StageReport as StageReport
from tactician.tactics.record import Decision, Fusion

FORMAT_VERSION = 1
"""Raised whenever an older tactician could misread an engine."""

ABSENT = -1
"""As a tensor's index: an optional input or output that is not there."""


class Place(StrEnum):
    """Where a tensor lives."""

    INPUT = "input"  # bound by the caller
    OUTPUT = "output"  # bound by the caller
    WEIGHT = "weight"
    ARENA = "arena"
    DYNAMIC = "dynamic"  # made by the step that computes it; host only


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of the plan; ``offset`` in bytes into the weights or the arena of its ``target``."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    target: str
    place: Place
    offset: int = 0

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return TensorType(self.dtype, self.shape)


class Step(msgspec.Struct, frozen=True):
    """One launch, or, with an empty ``tactic``, a copy of one tensor between targets."""

    node: str
    op: str
    target: str
    tactic: str
    tactic_version: int
    signature: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    workspace: int = 0
    workspace_offset: int = 0

    @property
    def is_copy(self) -> bool:
        """Whether this step only moves a tensor to another target."""
        return not self.tactic

    @property
    def op_signature(self) -> OpSignature:
        """The signature as a value."""
        return OpSignature.from_plain(self.signature)


class PluginUse(msgspec.Struct, frozen=True):
    """A plugin whose tactics the engine runs."""

    name: str
    version: str
    digest: str


class MemoryReport(msgspec.Struct, frozen=True):
    """Bytes of one target: the arena, what it would be without reuse, the lower bound, workspace and weights."""

    target: str
    peak: int
    naive: int
    lower_bound: int
    workspace: int
    weights: int


class ModelInfo(msgspec.Struct, frozen=True):
    """The model that an engine was built of."""

    name: str
    sha256: str
    nodes: int
    parameters: int


class Plan(msgspec.Struct, frozen=True):
    """All that running needs, and nothing that differs between two builds with the same choices."""

    format_version: int
    producer: str
    target: str
    requirements: dict[str, str]
    model: ModelInfo
    plugins: tuple[PluginUse, ...]
    tensors: tuple[TensorSpec, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]
    memory: tuple[MemoryReport, ...]
    threads: int

    def encode(self) -> bytes:
        """Return the canonical bytes: equal plans, equal bytes."""
        return msgspec.json.encode(self, order="deterministic")


class PrecisionTrial(msgspec.Struct, frozen=True):
    """The whole network in one precision: seconds of a run, and ‖out − fp32‖ / ‖fp32‖ of the worst output.

    Both are None where it was not run; ``reason`` says why it was kept or not.
    """

    precision: str
    kept: bool
    seconds: float | None
    error: float | None
    reason: str


class BuildReport(msgspec.Struct, frozen=True):
    """What a build measured and decided; kept in the engine for ``explain``, never needed to run.

    ``apart`` says of the operators that were fused what each would have run by itself; ``views`` are the nodes for
    which nothing runs, since their result lies where their input does. ``precisions`` are those that raced for
    ``precision="best"``. ``seconds`` is by phase of the build;
    ``measuring`` says what those parts of it took that measure: asking tactics, compiling, making up inputs and
    references, checking, timing.
    """

    device: dict[str, str]
    decisions: tuple[Decision, ...]
    stages: tuple[StageReport, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    fusions: tuple[Fusion, ...] = ()
    apart: tuple[Decision, ...] = ()
    views: tuple[str, ...] = ()
    measuring: dict[str, float] = {}
    precisions: tuple[PrecisionTrial, ...] = ()
