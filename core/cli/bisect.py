"""``tactician bisect``: which choice of tactics breaks accuracy or speed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import Shape, plugin_options

if TYPE_CHECKING:
    from tactician.config import BuilderConfig
    from tactician.tactics.lock import LockFile
    from tactician.tactics.lock_diff import Swap

NOT_RUN = (126, 127)
"""Exit codes by which the shell says that a command is not there, or is none."""
UNKNOWN = 125
"""Exit code by which a check says that it can't tell, as for ``git bisect run``."""


@command("bisect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--good", required=True, type=click.Path(path_type=Path), help="Lock file whose engine is good."
)
@click.option("--bad", required=True, type=click.Path(path_type=Path), help="Lock file whose engine is not.")
@click.option(
    "--check",
    required=True,
    metavar="CMD",
    help="Shell command that tries the engine in $TACTICIAN_ENGINE: exit code 0 is good, 125 can't tell, any other bad.",
)
@click.option("--shapes", type=Shape(), multiple=True, help="As for build. Repeatable.")
@click.option("--target", metavar="NAME", help="As for build.")
@click.option("--device", type=click.IntRange(min=0), default=0, help="As for build.")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="As for build.")
@plugin_options
def bisect_command(
    out: Output, model: Path, good: Path, bad: Path, check: str, shapes: Any, **options: Any
) -> None:
    """Find which tactics break an engine.

    Two lock files differ in some choices. Engines are built with some of the bad one's and the rest of the good
    one's, and checked, until no choice can be left out. Two builds with `--lock` give the files; `tactician lock diff`
    shows what differs.
    """
    import msgspec
    from tactician.bisect import minimal_cause
    from tactician.cli.lock import describe
    from tactician.config import BuilderConfig
    from tactician.errors import LockError
    from tactician.report.format import plural
    from tactician.tactics.lock import LockFile
    from tactician.tactics.lock_diff import swaps

    config = BuilderConfig(shapes=dict(shapes), **options | {"plugins": options["plugins"] or None})
    locks = LockFile.load(good), LockFile.load(bad)
    changes, strangers = swaps(*locks)
    if strangers:
        raise LockError(
            f"'{good}' and '{bad}' are of different networks: {', '.join(strangers[:5])} differ in more than the "
            "tactic; build both from the same model with the same options"
        )
    if not changes:
        raise LockError(f"'{good}' and '{bad}' choose the same tactics: there is nothing to find")
    trial = _Trial(out, model, config, *locks, check, len(changes))
    trial.require(good, [], bad=False)
    trial.require(bad, changes, bad=True)
    cause = minimal_cause(changes, trial.is_bad)
    choices = [change for swap in cause for change in swap.changes]
    out.result({"cause": msgspec.to_builtins(choices), "builds": trial.builds})
    out.text(
        f"{plural(len(cause), 'choice')} of {len(changes)} suffice, found with {plural(trial.builds, 'build')}:"
    )
    for change in choices:
        out.text(describe(change))


class _Trial:
    """Builds engines with parts of the changes, and checks them."""

    def __init__(
        self,
        out: Output,
        model: Path,
        config: BuilderConfig,
        good: LockFile,
        bad: LockFile,
        check: str,
        total: int,
    ) -> None:
        self._out = out
        self._model = model
        self._config = config
        self._good, self._bad = good, bad
        self._check = check
        self._total = total
        self.builds = 0

    def require(self, lock: Path, changes: Sequence[Swap], *, bad: bool) -> None:
        """Make sure that an end is what it is said to be.

        Raises
        ------
        LockError
            If it is not.
        """
        from tactician.errors import LockError

        if self.is_bad(changes) != bad:
            raise LockError(
                f"the engine of '{lock}' is {'good' if bad else 'bad'} by the check, and was said to be "
                f"{'bad' if bad else 'good'}; there is nothing to find between the two"
            )

    def is_bad(self, changes: Sequence[Swap]) -> bool:
        """Build with ``changes`` and run the check."""
        from tactician.builder import build
        from tactician.errors import ConfigError
        from tactician.tactics.lock_diff import mixed

        nodes = [node for swap in changes for node in swap.names]
        lock_file = mixed(self._good, self._bad, changes)
        with tempfile.TemporaryDirectory(prefix="tactician-bisect-") as folder:
            lock, path = Path(folder, "mixed.lock.json"), Path(folder, "engine.tactician")
            lock_file.save(lock)
            engine = build(self._model, replace(self._config, lock_file=lock))
            _require_replayed(engine, lock_file)
            engine.save(path)
            environment = os.environ | {"TACTICIAN_ENGINE": str(path)}
            code = subprocess.run(
                self._check, shell=True, env=environment, stdout=subprocess.DEVNULL
            ).returncode
        self.builds += 1
        if code in NOT_RUN:
            raise ConfigError(f"the check '{self._check}' can't be run (exit code {code} of the shell)")
        if code == UNKNOWN:
            raise ConfigError(
                f"the check could not tell (exit code {UNKNOWN}) with {len(changes)} of {self._total} changes: "
                f"{', '.join(nodes)}"
            )
        said = "good" if code == 0 else f"bad (exit code {code})"
        self._out.note(
            f"build {self.builds}: {len(changes)} of {self._total} changes from the bad lock file: {said}"
        )
        return code != 0


def _require_replayed(engine: Any, lock: LockFile) -> None:
    """Make sure that the engine is made as the lock file says: else the check would try another one."""
    from tactician.errors import LockMismatchError

    for decision in engine.report.decisions:
        for node in decision.nodes:
            entry = lock.nodes.get(node)
            if entry is None or (entry.tactic, entry.version) != (decision.chosen, decision.winner.version):
                wanted = f"{entry.tactic} version {entry.version}" if entry else "nothing"
                raise LockMismatchError(
                    f"node '{node}': {wanted} is locked, {decision.chosen} version {decision.winner.version} was "
                    f"chosen by {decision.chosen_by}" + (f" ({decision.note})" if decision.note else "")
                )
