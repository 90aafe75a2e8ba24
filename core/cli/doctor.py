"""``tactician doctor``: whether the installation is sound, and what is on this machine."""

from __future__ import annotations

import click
from tactician.cli.command import Output, command


@command("doctor")
@click.pass_context
def doctor_command(ctx: click.Context, out: Output) -> None:
    """Check the installation and the machine.

    Reads only, needs no network, imports no plugin code. The exit code is 1 if anything fails.
    """
    import msgspec
    from tactician.cli.checks import Level, run_checks
    from tactician.report.format import table

    findings = run_checks()
    out.result([msgspec.to_builtins(f) for f in findings])
    rows: list[tuple[str, str, str]] = []
    for finding in findings:
        rows.append((finding.level, finding.subject, finding.text))
        if finding.fix:
            rows.append(("", "", f"fix: {finding.fix}"))
    out.text(table(("", "what", "found"), rows))
    if any(f.level is Level.FAIL for f in findings):
        ctx.exit(1)
