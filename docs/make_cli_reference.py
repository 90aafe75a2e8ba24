"""Writes the reference part of docs/cli.md out of the commands' own help; a test holds the page to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from tactician.cli import COMMANDS, cli

FILE = Path(__file__).with_name("cli.md")
_GENERATED = re.compile(r"(?<=<!-- generated: begin -->\n).*(?=<!-- generated: end -->)", re.DOTALL)


def updated(text: str) -> str:
    """Return the page with its reference part written anew."""
    parts = [section for name in COMMANDS for section in _sections(name, cli, ["tactician"])]
    return _GENERATED.sub(lambda _: "\n" + "\n".join(parts) + "\n", text)


def _sections(name: str, group: click.Group, path: list[str]) -> Iterator[str]:
    parent = click.Context(
        group,
        help_option_names=["-h", "--help"],
        info_name=" ".join(path),
        terminal_width=100,
        max_content_width=100,
    )
    command = group.get_command(parent, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    heading = f"{'#' * (len(path) + 2)} {' '.join([*path[1:], name])}"
    yield f"{heading}\n\n```\n{command.get_help(context).strip()}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _sections(child, command, [*path, name])


if __name__ == "__main__":
    FILE.write_text(updated(FILE.read_text(encoding="utf-8")), encoding="utf-8")
