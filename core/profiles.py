"""Optimization profiles: for each input the least, the best and the largest shape that an engine is for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tactician.errors import ConfigError

Dims = tuple[int, ...]
Shapes = Mapping[str, Dims]
"""Dimensions by name of input."""

_DIMS = r"\d+(?:x\d+)*"
_INPUT = re.compile(
    rf"(?P<name>(?:(?!\.\.).)+?):(?P<least>{_DIMS})\.\.(?P<opt>{_DIMS})\.\.(?P<most>{_DIMS})(?:,|$)"
)


@dataclass(frozen=True)
class OptimizationProfile:
    """The shapes that an engine is built for: ``OptimizationProfile({"input": (min, opt, max)})``.

    Tactics are measured at ``opt``. Any shape runs whose every dimension lies between those of ``min`` and ``max``.

    Parameters
    ----------
    shapes
        Input name to least, best and largest dimensions.

    Raises
    ------
    ConfigError
        If there is no input, an input has not three shapes of one rank, or they are not in ascending order.
    """

    shapes: Mapping[str, tuple[Dims, Dims, Dims]]

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("a profile names no input; give it as {'input': (min, opt, max)}")
        checked = {name: _checked(name, given) for name, given in self.shapes.items()}
        object.__setattr__(self, "shapes", checked)

    @classmethod
    def parse(cls, text: str) -> OptimizationProfile:
        """Return what ``input:1x3x224x224..8x3x224x224..32x3x224x224`` says; several inputs stand with commas between.

        Raises
        ------
        ConfigError
            If it is written otherwise, or the shapes are no profile.
        """
        shapes: dict[str, tuple[Dims, Dims, Dims]] = {}
        end = 0
        for match in _INPUT.finditer(text):
            if match.start() != end or match["name"] in shapes:
                break
            least, opt, most = (_dims(match[part]) for part in ("least", "opt", "most"))
            shapes[match["name"]], end = (least, opt, most), match.end()
        if end != len(text) or not shapes or text.endswith(","):
            raise ConfigError(
                f"'{text}' is no profile; write NAME:MIN..OPT..MAX, such as input:1x3x224x224..8x3x224x224..32x3x224x224, "
                "each input once and with commas between inputs"
            )
        return cls(shapes)

    def __str__(self) -> str:
        """Return the profile as the command line has it."""
        return ",".join(f"{name}:{'..'.join(map(dims_text, ranges))}" for name, ranges in self.shapes.items())

    @property
    def min(self) -> dict[str, Dims]:
        """The least shape of each input."""
        return {name: least for name, (least, _, _) in self.shapes.items()}

    @property
    def opt(self) -> dict[str, Dims]:
        """The shape of each input at which tactics are measured."""
        return {name: opt for name, (_, opt, _) in self.shapes.items()}

    @property
    def max(self) -> dict[str, Dims]:
        """The largest shape of each input."""
        return {name: most for name, (_, _, most) in self.shapes.items()}

    @property
    def is_fixed(self) -> bool:
        """Whether it holds no shape but ``opt``."""
        return self.min == self.opt == self.max

    def refusal(self, shapes: Shapes) -> tuple[str, str] | None:
        """Return the first input whose shape lies outside, and why; None where the profile holds all of them."""
        for name, (least, _, most) in self.shapes.items():
            given = shapes[name]
            if len(given) != len(least):
                return name, f"it has {len(given)} dimensions, not {len(least)}"
            for place, (low, have, high) in enumerate(zip(least, given, most, strict=True)):
                if not low <= have <= high:
                    return name, f"dimension {place} is {have}, not {low} to {high}"
        return None

    def distance(self, shapes: Shapes) -> float:
        """Return how far ``shapes`` are from ``opt``: the sum of the logarithms of the dimensions' ratios."""
        return sum(
            abs(math.log((1 + have) / (1 + best)))
            for name, opt in self.opt.items()
            for have, best in zip(shapes[name], opt, strict=True)
        )


def find_profile(profiles: Sequence[OptimizationProfile], shapes: Shapes) -> int | None:
    """Return the index of the profile for ``shapes``: of those that hold them the one whose ``opt`` is nearest."""
    holding = [index for index, profile in enumerate(profiles) if profile.refusal(shapes) is None]
    return min(holding, key=lambda index: profiles[index].distance(shapes), default=None)


def numbered(path: Path, number: int) -> Path:
    """Return the lock file of profile ``number``, where ``path`` is asked for: ``m.lock.0.json`` for ``m.lock.json``."""
    return path.with_suffix(f".{number}{path.suffix}")


def dims_text(dims: Sequence[int]) -> str:
    """Return dimensions as the command line has them: ``8x3x224x224``."""
    return "x".join(map(str, dims)) or "scalar"


def _dims(text: str) -> Dims:
    return tuple(int(part) for part in text.split("x"))


def _checked(name: str, given: Sequence[Sequence[int]]) -> tuple[Dims, Dims, Dims]:
    """Return the three shapes of one input as tuples."""
    try:
        least, opt, most = (tuple(int(d) for d in dims) for dims in given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"profile of input '{name}': {given!r} are not three shapes (min, opt, max)"
        ) from error
    what = f"profile of input '{name}', {'..'.join(map(dims_text, (least, opt, most)))}"
    if not len(least) == len(opt) == len(most):
        raise ConfigError(f"{what}: min, opt and max must have as many dimensions as one another")
    for place, (low, best, high) in enumerate(zip(least, opt, most, strict=True)):
        if not 0 <= low <= best <= high:
            raise ConfigError(
                f"{what}: dimension {place} must be 0 <= min <= opt <= max, but it is {low}, {best}, {high}"
            )
    return least, opt, most
