"""Watching candidates: somebody may be told before each thing that could hang or take the process with it, and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Watch:
    """Watches nothing; the worker process that measures for another one tells that one.

    ``careful`` asks for one thing at a time.
    """

    careful = False

    @contextmanager
    def running(self, key: str, candidates: Sequence[str], stage: str) -> Iterator[None]:
        """Enclose what runs code of ``candidates`` (ids) on the call with signature key ``key``.

        ``stage`` is ``"prepare"``, ``"check"`` or ``"time"``.
        """
        yield
