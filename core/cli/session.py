"""Opening an engine for the commands that run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tactician.cli.options import plugin_config, plugin_options

if TYPE_CHECKING:
    from pathlib import Path

    from tactician.engine import Engine
    from tactician.runtime.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])


def session_options(function: Function) -> Function:
    """Add the plugin options, ``--device`` and ``--allow-mismatch``."""
    function = click.option(
        "--allow-mismatch",
        is_flag=True,
        help="Run although a plugin's files differ from those at build time.",
    )(function)
    function = click.option("--device", type=click.IntRange(min=0), default=0, help="Index of the device.")(
        function
    )
    return plugin_options(function)


def open_session(
    engine: Engine | Path,
    *,
    device: int = 0,
    allow_mismatch: bool = False,
    plugins: tuple[str, ...] = (),
    disabled_plugins: tuple[str, ...] = (),
    strict: bool = False,
) -> Session:
    """Return a session of an engine or an engine file, with the plugins that it needs and no others."""
    from tactician.engine import Engine
    from tactician.plugins.manager import load_plugins
    from tactician.runtime.session import Session

    engine = engine if isinstance(engine, Engine) else Engine.load(engine)
    loaded = load_plugins(
        plugin_config(plugins, disabled_plugins, strict), only={p.name for p in engine.plan.plugins}
    )
    return Session(engine, device=device, plugins=loaded, allow_mismatch=allow_mismatch)
