"""Shows a build's progress on stderr: a bar with the time left for a person, one line per phase for a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tactician.cli.command import Output, color
from tactician.report.format import duration

if TYPE_CHECKING:
    from tactician.tactics.measure import Progress


class ProgressPrinter:
    """Called with every ``Progress`` of a build, within a ``with`` block."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._phase = ""
        self._detail = ""
        self._started = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, progress: Progress) -> None:
        """Show where the build is."""
        if progress.phase != self._phase:
            self._finish_phase()
            self._phase, self._started = progress.phase, time.perf_counter()
            if self._out.is_interactive:
                self._start_bar(progress)
        known = f", {progress.tactics} tactics, {progress.cached} of them in the timing cache"
        self._detail = f"{progress.done}/{progress.total}" + (known if progress.tactics else "")
        if self._bar is not None:
            eta = progress.eta_seconds
            left = f"about {duration(eta)} left" if eta is not None else ""
            detail = progress.detail[:60]
            self._bar.update(
                self._task, completed=progress.done, total=progress.total, detail=detail, left=left
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_phase(whole=kind is None)

    def _start_bar(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        console = Console(stderr=True, no_color=color() is False)
        self._bar = Bar(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._bar.add_task(progress.phase, total=progress.total, detail="", left="")
        self._bar.start()

    def _finish_phase(self, *, whole: bool = True) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._phase:
            seconds = duration(time.perf_counter() - self._started)
            self._out.note(f"{self._phase:9} {seconds:>8}   {self._detail}" + ("" if whole else " (stopped)"))
        self._phase = ""
