"""``tactician bench``: how long an engine takes, and whether it is faster than another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import feed_option, make_feeds
from tactician.cli.session import feed_specs, open_session, session_options

if TYPE_CHECKING:
    from tactician.report.statistics import Comparison, Summary

WARM_UP_SECONDS = 0.5
ROUND_SECONDS = 0.05


@dataclass
class Runner:
    """One engine ready to be timed: ``engine`` enqueues it on data in place, ``run`` has the copies too."""

    engine: Callable[[], float]
    run: Callable[[], float]
    engine_samples: list[float] = field(default_factory=list)
    run_samples: list[float] = field(default_factory=list)
    round_medians: list[float] = field(default_factory=list)


@command("bench")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    help="Another engine, or the --json output of an earlier bench.",
)
@click.option(
    "--rounds", type=click.IntRange(min=6), default=20, show_default=True, help="Rounds, engines in turn."
)
@click.option("--fail-if-slower", is_flag=True, help="Exit with 4 if --compare finds this engine slower.")
@feed_option
@session_options
def bench_command(
    out: Output,
    engine: Path,
    compare: Path | None,
    rounds: int,
    fail_if_slower: bool,
    inputs: tuple[tuple[str, str], ...],
    seed: int,
    **options: Any,
) -> None:
    """Measure how long an engine takes, and compare it.

    "engine" is the network alone, on data that lies on its device; "run" is Session.run with NumPy arrays,
    copies included. Intervals hold the median with 95 % confidence. Two engines are run in turn, in random
    order, round by round.
    """
    from tactician.errors import RegressionError
    from tactician.report.statistics import Verdict, summarize

    earlier = _read_earlier(compare) if compare and compare.suffix == ".json" else None
    runners = {"this": _prepare(engine, inputs, seed, options)}
    if compare and not earlier:
        runners["other"] = _prepare(compare, inputs, seed, options)
    out.note(
        f"warm-up {WARM_UP_SECONDS} s, {rounds} rounds of about {ROUND_SECONDS} s per engine, in random order"
    )
    _measure(list(runners.values()), rounds, seed)
    summaries = {
        name: {"engine": summarize(r.engine_samples), "run": summarize(r.run_samples)}
        for name, r in runners.items()
    }
    if earlier:
        summaries["other"] = earlier
    comparison = _compare(summaries, runners)
    _print(out, summaries, comparison)
    if comparison and comparison.verdict is Verdict.SLOWER and fail_if_slower:
        raise RegressionError(
            f"'{engine}' is {100 * comparison.change:.1f} % slower than '{compare}' "
            f"(95 % interval {100 * comparison.low:.1f} to {100 * comparison.high:.1f} %)"
        )


def _prepare(path: Path, inputs: tuple[tuple[str, str], ...], seed: int, options: dict[str, Any]) -> Runner:
    session = open_session(path, **options)
    feeds = make_feeds(feed_specs(session), inputs, seed)
    session.run(feeds)
    timer = session.timer()
    contender = timer.prepare(session.thunk(feeds))

    def run() -> float:
        start = time.perf_counter()
        session.run(feeds)
        return time.perf_counter() - start

    return Runner(lambda: timer.round([contender])[0], run)


def _measure(runners: Sequence[Runner], rounds: int, seed: int) -> None:
    """Take samples of all runners, round by round."""
    counts = []
    for runner in runners:
        end = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < end:
            cost = runner.run() + runner.engine()
        counts.append(max(3, min(1000, round(ROUND_SECONDS / max(cost, 1e-9)))))
    from statistics import median

    order = random.Random(seed)
    for _ in range(rounds):
        for index in order.sample(range(len(runners)), len(runners)):
            runner = runners[index]
            samples = [runner.engine() for _ in range(counts[index])]
            runner.engine_samples += samples
            runner.round_medians.append(median(samples))
            runner.run_samples += [runner.run() for _ in range(counts[index])]


def _compare(summaries: dict[str, dict[str, Summary]], runners: dict[str, Runner]) -> Comparison | None:
    from tactician.report.statistics import compare_apart, compare_paired

    if "other" in runners:
        return compare_paired(runners["this"].round_medians, runners["other"].round_medians)
    if "other" in summaries:
        return compare_apart(summaries["this"]["engine"], summaries["other"]["engine"])
    return None


def _read_earlier(path: Path) -> dict[str, Summary]:
    import msgspec
    from tactician.errors import ConfigError
    from tactician.report.statistics import Summary

    try:
        document = msgspec.json.decode(path.read_bytes())
        return {kind: msgspec.convert(document["this"][kind], Summary) for kind in ("engine", "run")}
    except OSError as error:
        raise ConfigError(f"can't read '{path}': {error.strerror}") from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is no output of `tactician bench --json`: {error}") from error


def _print(out: Output, summaries: dict[str, dict[str, Summary]], comparison: Comparison | None) -> None:
    import msgspec
    from tactician.report.format import duration, table
    from tactician.report.statistics import NOISE_FLOOR

    plain = {name: msgspec.to_builtins(kinds) for name, kinds in summaries.items()}
    out.result(plain | ({"comparison": msgspec.to_builtins(comparison)} if comparison else {}))
    rows = [
        (
            name,
            kind,
            duration(s.median),
            f"[{duration(s.low)}, {duration(s.high)}]",
            duration(s.mean),
            duration(s.p99),
            f"{1 / s.median:,.0f} /s",
            str(s.samples),
        )
        for name, kinds in summaries.items()
        for kind, s in kinds.items()
    ]
    header = ("", "", "median", "95 % interval", "mean", "p99", "throughput", "samples")
    out.text(table(header, rows, right=(2, 3, 4, 5, 6, 7)))
    if comparison:
        out.text(
            f"{comparison.verdict}: engine time {100 * comparison.change:+.1f} % "
            f"(95 % interval {100 * comparison.low:+.1f} to {100 * comparison.high:+.1f} %, "
            f"noise floor {100 * NOISE_FLOOR:.1f} %)"
        )
