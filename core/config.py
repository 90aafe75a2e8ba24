"""What a build is asked to do: every option of the builder, as one value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tactician.errors import ConfigError

if TYPE_CHECKING:
    from tactician.plugins.inline import InlinePlugin
    from tactician.profiles import OptimizationProfile

Precision = Literal["fp32", "tf32", "fp16", "bf16", "best"]
"""What tensors of float32 may be computed in; ``"best"`` lets the others race."""


@dataclass(frozen=True)
class BuilderConfig:
    """Options of a build. The command line's flags have the same names.

    Parameters
    ----------
    shapes
        Input name to dimensions, to bind symbolic dimensions: ``{"input": (8, 3, 224, 224)}``.
    profiles
        Shapes that the engine is to run, each ``OptimizationProfile({"input": (min, opt, max)})``; all name the same
        inputs. Then ``build`` returns a ``ProfiledEngine``.
    target, device
        Target name (None: ``cuda`` where there is a GPU, else ``cpu``) and device index.
    precision
        What tensors of float32 are computed in: None as they are, ``"tf32"`` with products rounded to tf32, ``"fp16"`` or
        ``"bf16"`` in 16 bits with sums in float32, where operators have such a form. ``"best"`` builds the network in all
        of them and keeps the fastest that is within ``precision_tolerance``.
    precision_tolerance
        Largest ‖out − fp32‖ / ‖fp32‖ of any output of the network that ``"best"`` takes.
    precision_rules
        ``(node glob, "fp32" or the precision)`` pairs, the last that matches a node wins.
    tf32
        Whether fp32 products may be rounded to tf32 (``"tf32"`` in ``Tactic.numerics``).
    deterministic
        Whether to allow only tactics whose repeated runs are equal bit for bit.
    workspace_limit
        Bytes of scratch memory that one tactic may take; None for no limit.
    sources
        Allowed plugins and libraries by name, TensorRT's tactic sources: ``("cublaslt", "-cudnn")``. Names alone
        allow only these; names with ``-`` forbid.
    tactic_rules
        ``(node glob, tactic glob)`` pairs, the last that matches a node wins.
    avg_timing_iterations
        Fewest rounds that a candidate is timed, unless it falls behind.
    max_candidates
        Most candidates of one signature that are timed, in the tactics' own order; None for all.
    exhaustive
        Whether tactics are asked for their whole search space instead of what they take to be fastest, and all of
        it is timed; else only the first few of every kind, and more of those that keep up.
    timing_cache
        Path of the timing cache; None for the user's own.
    use_timing_cache
        Whether times are read from and written to a cache at all.
    error_on_timing_cache_miss
        Whether a candidate without an entry is an error instead of a measurement.
    lock_file
        Lock file to replay, if it exists. With ``profiles`` each has one of its own: ``m.lock.0.json`` for ``m.lock.json``.
    locked
        Whether anything that is not as in ``lock_file`` is an error.
    plugins, disabled_plugins
        Allow list (None: all installed) and deny list of plugins by name; paths to ``.py`` files load these, and
        ``InlinePlugin`` objects are taken as they are.
    isolate
        Whether candidates are checked and timed in a process of their own, which the build survives; None: where
        the target asks for it, as ``cuda`` does.
    candidate_timeout
        Seconds that one run of one candidate may take in a process of its own; ten times as long to be prepared.
    strict
        Whether a failing hook, selector or plugin is an error instead of a report.
    threads
        Host threads for compilation and for tactics of the ``cpu`` target.
    seed
        Seed of the random inputs for checking and timing.
    without
        Names of passes that are left out.
    dump_stages
        Folder to which the network is written as ONNX after every pass.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: tuple[OptimizationProfile, ...] = ()
    target: str | None = None
    device: int = 0
    precision: Precision | None = None
    precision_tolerance: float = 5e-3
    precision_rules: tuple[tuple[str, str], ...] = ()
    tf32: bool = False
    deterministic: bool = False
    workspace_limit: int | None = None
    sources: tuple[str, ...] = ()
    tactic_rules: tuple[tuple[str, str], ...] = ()
    avg_timing_iterations: int = 5
    max_candidates: int | None = None
    exhaustive: bool = False
    timing_cache: Path | None = None
    use_timing_cache: bool = True
    error_on_timing_cache_miss: bool = False
    lock_file: Path | None = None
    locked: bool = False
    plugins: tuple[str | InlinePlugin, ...] | None = None
    disabled_plugins: tuple[str, ...] = ()
    isolate: bool | None = None
    candidate_timeout: float = 60.0
    strict: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    seed: int = 0
    without: tuple[str, ...] = ()
    dump_stages: Path | None = None

    def __post_init__(self) -> None:
        for what in (self.precision, *(p for _, p in self.precision_rules)):
            if what not in (None, *get_args(Precision)):
                raise ConfigError(f"precision '{what}' is none of {', '.join(get_args(Precision))}")
        if not self.precision_tolerance >= 0:
            raise ConfigError(
                f"precision_tolerance is {self.precision_tolerance}; it is a relative error, such as 5e-3"
            )
        if self.precision == "tf32":
            object.__setattr__(self, "tf32", True)
