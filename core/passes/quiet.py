"""Libraries that passes stand on, kept from writing to the user's terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Within the block, let ``loggers`` report errors only, and Python and NumPy no warnings.

    What they say of a network is no news for its user: what can't be folded or merged stays as it is.
    """
    levels = [(log, log.level) for log in map(logging.getLogger, loggers)]
    for log, _ in levels:
        log.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels:
            log.setLevel(level)
