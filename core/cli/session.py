"""Opening an engine for the commands that run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tactician.cli.options import plugin_config, plugin_options

if TYPE_CHECKING:
    from pathlib import Path

    from tactician.engine import Engine
    from tactician.plan import TensorSpec
    from tactician.profiles import OptimizationProfile
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


def profile_option(function: Function) -> Function:
    """Add ``--profile-index``."""
    return click.option(
        "--profile-index",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Which optimization profile's engine to show, where there are several.",
    )(function)


def load_engine(path: Path, profile_index: int) -> tuple[Engine, tuple[OptimizationProfile, ...]]:
    """Return the engine of one profile, or the only one, from a file, and all profiles."""
    from tactician.cli.build_summary import engines_of, profiles_of
    from tactician.engine import Engine
    from tactician.errors import ConfigError

    engine = Engine.load(path, verify_weights=False)
    engines, profiles = engines_of(engine), profiles_of(engine)
    if profile_index >= len(engines):
        raise ConfigError(
            f"--profile-index is {profile_index}, but '{path}' has {len(profiles) or 'no'} profiles, counted from 0"
        )
    return engines[profile_index], profiles


def feed_specs(session: Session) -> list[TensorSpec]:
    """Return the inputs to make random data for; of an engine with profiles in the first one's ``opt``."""
    return [session.plan.tensors[i] for i in session.plan.inputs]


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
