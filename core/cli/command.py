"""What all commands share: ``--json``, a stdout for the result alone, defaults out of the project file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click
from tactician.errors import ConfigError
from tactician.project import near_matches, read_project


class Output:
    """Where a command writes: its result to stdout, as text or as one JSON document; all else to stderr."""

    def __init__(self, as_json: bool, stdout: TextIO, stderr: TextIO) -> None:
        self.as_json = as_json
        self.has_result = False
        """Whether the JSON document has been written: there is one at most."""
        self._stdout = stdout
        self._stderr = stderr

    def text(self, text: str) -> None:
        """Write a part of the result; nothing under ``--json``."""
        if not self.as_json:
            click.echo(text, file=self._stdout)

    def result(self, plain: Any) -> None:
        """Write the result as JSON under ``--json``, else nothing."""
        if self.as_json:
            self.has_result = True
            click.echo(json.dumps(plain, indent=2, default=str), file=self._stdout)

    def note(self, text: str) -> None:
        """Write a line about what is going on."""
        click.echo(text, file=self._stderr)

    def warn(self, text: str) -> None:
        """Write a warning."""
        click.secho("warning: ", fg="yellow", nl=False, file=self._stderr, color=color())
        click.echo(text, file=self._stderr)

    @property
    def is_interactive(self) -> bool:
        """Whether a person sees stderr as it comes."""
        return self._stderr.isatty()


class Command(click.Command):
    """A command that gets an ``Output`` first, and may take defaults from the project file."""

    def __init__(self, *args: Any, project_defaults: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._project_defaults = project_defaults
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result as one JSON document.")
        )

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Make the context, with the project file's settings as defaults of the options."""
        if self._project_defaults and not {"-h", "--help"} & set(args):
            extra["default_map"] = self._defaults()
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with stdout kept for its result: what plugins print goes to stderr."""
        as_json = ctx.params.pop("as_json")
        out = ctx.find_object(Output) or Output(as_json, sys.stdout, sys.stderr)
        with contextlib.redirect_stdout(sys.stderr), _warnings_to(out):
            ctx.obj = out
            return super().invoke(ctx)

    def _defaults(self) -> dict[str, Any]:
        project = read_project()
        options = {
            o.removeprefix("--"): p for p in self.params if isinstance(p, click.Option) for o in p.opts
        }
        defaults = {}
        for key, value in project.settings.items():
            if key in ("plugins", "disable-plugins"):
                continue  # tactician.plugins.policy reads these
            option = options.get(key)
            if option is None or option.name is None or option.name == "as_json":
                raise ConfigError(f"{project.path}: there is no option '{key}'{near_matches(key, options)}")
            if isinstance(option.type, click.Path) and isinstance(value, str) and project.path is not None:
                value = str(project.path.parent / Path(value).expanduser())
            defaults[option.name] = value
        return defaults


def command(name: str, *, project_defaults: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function into the command ``name``; it is called with an ``Output`` first."""

    def make(function: Callable[..., Any]) -> click.Command:
        with_output = click.pass_obj(function)
        made: click.Command = click.command(name, cls=Command, project_defaults=project_defaults)(with_output)
        return made

    return make


def color() -> bool | None:
    """Return False where the user asked for no colour (NO_COLOR), else None: click finds out."""
    return False if os.environ.get("NO_COLOR") else None


@contextlib.contextmanager
def _warnings_to(out: Output) -> Iterator[None]:
    """Show what the library logs as warnings, each message once."""
    handler = _WarningHandler(out)
    logger = logging.getLogger("tactician")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _WarningHandler(logging.Handler):
    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._seen:
            self._seen.add(message)
            self._out.warn(message)
