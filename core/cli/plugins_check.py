"""``tactician plugins check``: holds a plugin to the conformance kit."""

from __future__ import annotations

import click
from tactician.cli.command import Output, command


@command("check")
@click.argument("name", metavar="NAME|FILE")
@click.option("--target", default="cpu", show_default=True, help="Whose tactics are checked.")
@click.option("--device", default=0, show_default=True, help="Index of the device.")
def check_command(out: Output, name: str, target: str, device: int) -> None:
    """Hold a plugin, by name or as a .py file, to the conformance kit.

    It is loaded with the built-in kernels alone. Exits with 6 if a check fails, and says what to do about it.
    """
    import msgspec
    from tactician.errors import ConfigError, PluginError
    from tactician.report.format import table

    try:
        from tactician.testing import check_plugin
    except ImportError as error:
        raise ConfigError(
            f"the conformance kit needs hypothesis ({error}); pip install hypothesis"
        ) from error
    results = check_plugin(name, target=target, device=device)
    out.result(msgspec.to_builtins(results))
    rows = [(r.name, "passed" if r.ok else "FAILED", r.message) for r in results]
    out.text(table(("check", "", "what was found"), rows))
    failed = [r for r in results if not r.ok]
    if failed:
        advice = "\n".join(f"  {r.name}: {r.advice}" for r in failed)
        raise PluginError(f"'{name}' fails {len(failed)} of {len(results)} checks:\n{advice}")
