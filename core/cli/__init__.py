"""The command ``tactician``: subcommands are imported when run, errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click
from tactician import __version__
from tactician.cli.command import Output
from tactician.errors import TacticianError

EXIT_BUG = 70
"""Exit code of an error that is none of ``tactician.errors``: EX_SOFTWARE of sysexits.h."""
EXIT_INTERRUPTED = 130

COMMANDS = {
    "build": "Build an engine from an ONNX model.",
    "refit": "Put new weights into an engine.",
    "run": "Run an engine, and check its outputs.",
    "bench": "Measure how long an engine takes, and compare it.",
    "inspect": "Show what an engine is and does.",
    "explain": "Show why each tactic was chosen.",
    "tactics": "List the tactics that plugins offer.",
    "plugins": "List plugins, look into one, check it, begin one.",
    "lock": "Look into lock files.",
    "bisect": "Find which tactics break an engine.",
    "cache": "Look after the timing cache.",
    "doctor": "Check the installation and the machine.",
}
"""Name and first line of help of each subcommand: `tactician --help` imports none of them."""


class LazyGroup(click.Group):
    """A group whose commands live in the module of their name, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"tactician.cli.{cmd_name}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tactician", message="%(prog)s %(version)s")
def cli() -> None:
    """Build inference engines in which kernels of any package compete.

    Results go to stdout, progress to stderr. Every command takes --json.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `docs/cli.md` lists them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    out = Output("--json" in arguments, sys.stdout, sys.stderr)
    try:
        result = cli.main(arguments, prog_name="tactician", standalone_mode=False, obj=out)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("cancelled", "BuildCancelledError", EXIT_INTERRUPTED, out)
    except BrokenPipeError:
        # the reader has gone (`tactician tactics | head`): do not flush into the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TacticianError as error:
        _raise_if_debugging()
        return _fail(str(error), type(error).__name__, error.exit_code, out)
    except Exception as error:
        _raise_if_debugging()
        text = f"{type(error).__name__}: {error}"
        return _fail(
            f"{text}\nThis is a bug of tactician or of a plugin; TACTICIAN_DEBUG=1 shows where.",
            "bug",
            EXIT_BUG,
            out,
        )


def _fail(message: str, kind: str, exit_code: int, out: Output) -> int:
    click.secho("error: ", fg="red", nl=False, err=True, color=False if os.environ.get("NO_COLOR") else None)
    click.echo(message, err=True)
    if not out.has_result:  # a result that says what failed is the document
        out.result({"error": {"type": kind, "message": message, "exit_code": exit_code}})
    return exit_code


def _raise_if_debugging() -> None:
    if os.environ.get("TACTICIAN_DEBUG"):
        raise
