"""Options that several commands have, and the forms in which their values are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import numpy as np
    from tactician.config import BuilderConfig
    from tactician.plan import TensorSpec

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic for type checkers alone before click 8.2

Function = TypeVar("Function", bound=Callable[..., Any])

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Shape(ParamType):
    """``input:8x3x224x224``: a name and its dimensions."""

    name = "NAME:DIMS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``(name, dimensions)``."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(.+):(\d+(?:x\d+)*|scalar)", value)
        if not match:
            self.fail(f"'{value}' is no shape; write NAME:DIMS, such as input:8x3x224x224", param, ctx)
        return match[1], dimensions(match[2])


class Profile(ParamType):
    """``input:1x3x224x224..8x3x224x224..32x3x224x224``: least, best and largest dimensions of inputs, with commas between."""

    name = "NAME:MIN..OPT..MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the ``OptimizationProfile``."""
        from tactician.errors import ConfigError
        from tactician.profiles import OptimizationProfile

        if not isinstance(value, str):
            return value
        try:
            return OptimizationProfile.parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Size(ParamType):
    """``64MiB``: a number of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value)
        unit = match[2].lower() if match else ""
        if not match or unit not in _SIZES:
            self.fail(f"'{value}' is no size; write bytes, or a number with KiB, MiB or GiB", param, ctx)
        return int(float(match[1]) * _SIZES[unit])


class Rule(ParamType):
    """``NODE-GLOB=TACTIC-GLOB``."""

    name = "NODE=TACTIC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``(node glob, tactic glob)``, split at the first ``=``."""
        if isinstance(value, tuple):
            return value
        node, separator, tactic = value.partition("=")
        if not separator or not node or not tactic:
            self.fail(f"'{value}' is no rule; write NODE-GLOB=TACTIC-GLOB", param, ctx)
        return node, tactic


class PrecisionRule(ParamType):
    """``NODE-GLOB=PRECISION``."""

    name = "NODE=TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``(node glob, precision)``, split at the last ``=``."""
        if isinstance(value, tuple):
            return value
        node, separator, precision = value.rpartition("=")
        if not separator or not node or precision not in ("fp32", "fp16", "bf16"):
            self.fail(f"'{value}' is no rule; write NODE-GLOB=fp32, =fp16 or =bf16", param, ctx)
        return node, precision


class Names(ParamType):
    """``cublaslt,-cudnn``: names separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the names."""
        if isinstance(value, tuple | list):
            return tuple(value)
        return tuple(filter(None, (part.strip() for part in value.split(","))))


class Feed(ParamType):
    """``input=file.npy``, ``input=random`` or ``input=random:8x3x224x224``."""

    name = "NAME=FILE|random"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``(name, source)``."""
        if isinstance(value, tuple):
            return value
        name, separator, source = value.partition("=")
        if not separator or not name or not source:
            self.fail(f"'{value}' is no input; write NAME=FILE.npy or NAME=random", param, ctx)
        return name, source


def plugin_options(function: Function) -> Function:
    """Add ``-p/--plugin``, ``--no-plugin`` and ``--strict``."""
    function = click.option(
        "--strict", is_flag=True, help="A broken plugin, hook or selector is an error, not a report."
    )(function)
    function = click.option(
        "--no-plugin",
        "disabled_plugins",
        multiple=True,
        metavar="NAME",
        help="Leave out a plugin. Repeatable.",
    )(function)
    return click.option(
        "-p",
        "--plugin",
        "plugins",
        multiple=True,
        metavar="NAME|FILE",
        help="Load only these plugins (by name), or load a .py file besides. Repeatable.",
    )(function)


def plugin_config(plugins: tuple[str, ...], disabled_plugins: tuple[str, ...], strict: bool) -> BuilderConfig:
    """Return a config that holds these options."""
    from tactician.config import BuilderConfig

    return BuilderConfig(plugins=plugins or None, disabled_plugins=disabled_plugins, strict=strict)


def feed_option(function: Function) -> Function:
    """Add ``-i/--input`` and ``--seed``."""
    function = click.option("--seed", type=int, default=0, show_default=True, help="Seed of random inputs.")(
        function
    )
    return click.option(
        "-i",
        "--input",
        "inputs",
        type=Feed(),
        multiple=True,
        help="An input: NAME=FILE.npy, NAME=random or NAME=random:DIMS. Those not given are random.",
    )(function)


def dimensions(text: str) -> tuple[int, ...]:
    """Return ``"8x3"`` as numbers; ``"scalar"`` has none."""
    return () if text == "scalar" else tuple(int(part) for part in text.split("x"))


def make_feeds(specs: list[TensorSpec], inputs: tuple[tuple[str, str], ...], seed: int) -> dict[str, Any]:
    """Return an array for each input of an engine: from its file, or random.

    Raises
    ------
    InputError
        If a name is unknown, a file can't be read, or a random input's shape is not known.
    """
    import numpy as np
    from tactician.errors import InputError
    from tactician.project import near_matches

    given = dict(inputs)
    names = [s.name for s in specs]
    for name in given:
        if name not in names:
            raise InputError(
                f"the engine has no input '{name}'{near_matches(name, names)}; "
                f"its inputs are {', '.join(names)}"
            )
    rng = np.random.default_rng(seed)
    return {s.name: _feed(s, given.get(s.name, "random"), rng) for s in specs}


def _feed(spec: TensorSpec, source: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    from tactician.errors import InputError
    from tactician.runtime.random_inputs import random_input

    kind, _, dims = source.partition(":")
    if kind != "random":
        return _read_array(spec, Path(source))
    if dims and not re.fullmatch(r"\d+(x\d+)*|scalar", dims):
        raise InputError(f"input '{spec.name}': '{dims}' are no dimensions; write them as 8x3x224x224")
    if not dims and not spec.type.is_static:
        raise InputError(
            f"input '{spec.name}' is {spec.type}: its shape is not known; "
            f"give it as -i {spec.name}=random:DIMS or -i {spec.name}=FILE.npy"
        )
    return random_input(spec, rng, dimensions(dims) if dims else None)


def _read_array(spec: TensorSpec, path: Path) -> np.ndarray[Any, Any]:
    import numpy as np
    from tactician.errors import InputError

    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"input '{spec.name}': can't read '{path}' as a .npy file: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise InputError(f"input '{spec.name}': '{path}' holds several arrays; save one with numpy.save")
    if loaded.dtype.kind == "V" and loaded.dtype.itemsize == spec.type.itemsize:
        return loaded.view(spec.type.numpy_dtype)  # .npy has no name for bfloat16 and its like
    return loaded
