"""``tactician cache``: look into the timing cache, move it between machines, clean it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tactician.cli.command import Output, command
from tactician.cli.options import plugin_config

if TYPE_CHECKING:
    from tactician.tactics.cache import TimingCache
    from tactician.tactics.cache_rows import CacheRow

Function = TypeVar("Function", bound=Callable[..., Any])

DAY = 86_400


@click.group("cache")
def cache_command() -> None:
    """Look after the timing cache.

    One SQLite file, by default the user's own, holds what was measured and found out about each tactic. No
    command here imports plugin code, but for `prune --installed-plugins` and `prune --this-device`.
    """


def cache_option(function: Function) -> Function:
    """Add ``--timing-cache``."""
    return click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        help="Timing cache file; by default the user's own.",
    )(function)


def subcommand(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function into a command below ``cache``, with ``--timing-cache``."""

    def make(function: Callable[..., Any]) -> click.Command:
        made = command(name)(cache_option(function))
        cache_command.add_command(made)
        return made

    return make


@subcommand("info")
def info_command(out: Output, timing_cache: Path | None) -> None:
    """Show where the cache is and what it holds."""
    import msgspec
    from tactician.report.format import plural, size

    cache = _existing(out, timing_cache)
    if cache is None:
        return
    info = cache.info()
    out.result(msgspec.to_builtins(info))
    out.text(f"file      {info.path} ({size(info.bytes)})")
    out.text(
        f"entries   {info.entries}, of {plural(info.signatures, 'call')}; {plural(info.incumbents, 'winner')}"
    )
    for device, entries in info.devices.items():
        out.text(f"device    {device}: {plural(entries, 'entry').replace('entrys', 'entries')}")
    if info.oldest is not None and info.newest is not None:
        out.text(f"written   from {_date(info.oldest)} to {_date(info.newest)}")


@subcommand("ls")
@click.argument("pattern", required=False, metavar="[GLOB]")
@click.option("--limit", type=click.IntRange(min=1), help="Most entries to show.")
def ls_command(out: Output, pattern: str | None, limit: int | None, timing_cache: Path | None) -> None:
    """List entries, those whose call or tactic matches GLOB.

    A glob such as 'Conv*' or '*.cublaslt*'.
    """
    from fnmatch import fnmatchcase

    from tactician.report.format import duration, table

    cache = _existing(out, timing_cache)
    if cache is None:
        return
    snapshot = cache.snapshot()
    winners = {(w.signature, w.fingerprint, w.tactic) for w in snapshot.incumbents}
    entries = []
    for row in snapshot.timings:
        call = snapshot.signatures.get(row.signature, row.signature[:16])
        if pattern is None or fnmatchcase(call, pattern) or fnmatchcase(row.tactic, pattern):
            device = snapshot.fingerprints.get(row.fingerprint, {}).get("device", row.fingerprint[:12])
            wins = (row.signature, row.fingerprint, row.tactic) in winners
            entries.append((call, device, row, wins))
    entries.sort(key=lambda e: (e[0], e[1], e[2].timing.median if e[2].timing else float("inf"), e[2].tactic))
    entries = entries[:limit]
    out.result([_plain(*entry) for entry in entries])
    rows = [
        (
            call,
            row.tactic,
            ">" if wins else "",
            duration(row.timing.median if row.timing else None),
            row.outcome,
            device,
            _date(row.created),
        )
        for call, device, row, wins in entries
    ]
    out.text(table(("call", "tactic", "", "time", "outcome", "device", "written"), rows, right=(3,)))


@subcommand("export")
@click.argument("file", type=click.Path(path_type=Path))
def export_command(out: Output, file: Path, timing_cache: Path | None) -> None:
    """Write everything to FILE as JSON, which `import` reads."""
    cache = _existing(out, timing_cache, required=True)
    assert cache is not None
    number = cache.export_json(file)
    out.result({"file": str(file), "entries": number})
    out.text(f"wrote {number} entries to {file}")


@subcommand("import")
@click.argument("file", type=click.Path(path_type=Path))
def import_command(out: Output, file: Path, timing_cache: Path | None) -> None:
    """Take entries out of FILE, an export or another cache, that are not there yet or newer."""
    from tactician.tactics.cache import TimingCache

    cache = TimingCache(timing_cache)
    number = cache.merge(file) if _is_database(file) else cache.import_json(file)
    out.result({"file": str(file), "taken": number})
    out.text(f"took {number} entries from {file}")


@subcommand("prune")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Delete entries older than this."
)
@click.option(
    "--installed-plugins",
    is_flag=True,
    help="Delete entries of other versions of the plugins that are installed.",
)
@click.option(
    "--this-device", metavar="TARGET", help="Delete entries of all devices but this machine's of TARGET."
)
def prune_command(
    out: Output,
    older_than: float | None,
    installed_plugins: bool,
    this_device: str | None,
    timing_cache: Path | None,
) -> None:
    """Delete entries that no build will read again."""
    from tactician.plugins.manager import load_plugins

    if older_than is None and not installed_plugins and this_device is None:
        raise click.UsageError("say what to delete: --older-than, --installed-plugins or --this-device")
    cache = _existing(out, timing_cache)
    if cache is None:
        return
    plugins = load_plugins(plugin_config((), (), False)) if installed_plugins or this_device else None
    number = cache.prune(
        older_than=None if older_than is None else older_than * DAY,
        keep_device=plugins.target(this_device).device().fingerprint() if plugins and this_device else None,
        keep_plugins={n: r.digest for n, r in plugins.refs.items()}
        if plugins and installed_plugins
        else None,
    )
    out.result({"deleted": number})
    out.text(f"deleted {number} entries")


@subcommand("verify")
@click.pass_context
def verify_command(ctx: click.Context, out: Output, timing_cache: Path | None) -> None:
    """Check the file; the exit code is 1 if anything is wrong."""
    cache = _existing(out, timing_cache)
    if cache is None:
        return
    problems = cache.verify()
    out.result({"file": str(cache.path), "problems": problems})
    out.text("\n".join(problems) or f"{cache.path} is sound")
    if problems:
        ctx.exit(1)


@subcommand("reset")
def reset_command(out: Output, timing_cache: Path | None) -> None:
    """Move the file away, damaged or not; the next build makes a new one."""
    from tactician.tactics.cache import TimingCache

    moved = TimingCache.reset(timing_cache)
    out.result({"moved_to": None if moved is None else str(moved)})
    out.text("there is no timing cache" if moved is None else f"moved to {moved}")


def _plain(call: str, device: str, row: CacheRow, wins: bool) -> dict[str, Any]:
    return {
        "call": call,
        "tactic": row.tactic,
        "seconds": row.timing.median if row.timing else None,
        "outcome": str(row.outcome),
        "reason": row.reason,
        "winner": wins,
        "device": device,
        "written": _date(row.created),
    }


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(6) == b"SQLite"


def _existing(out: Output, path: Path | None, *, required: bool = False) -> TimingCache | None:
    """Return the cache, or say that there is none; looking must not make one."""
    from tactician.errors import CacheError
    from tactician.tactics.cache import TimingCache, default_path

    file = path or default_path()
    if file.exists():
        return TimingCache(file)
    if path is not None or required:
        raise CacheError(f"there is no timing cache '{file}'")
    out.result(None)
    out.text(f"there is no timing cache yet; the first build makes {file}")
    return None


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
