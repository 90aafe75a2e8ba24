"""The process that compiles kernels for another one: reads sources from standard input, writes machine code."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress

from tactician.builtin_kernels.cuda.compiler import loadable_code
from tactician.errors import TacticError
from tactician.plugins.target import Artifacts

NICENESS = 10
"""How far it stands back behind the process that measures."""


def main() -> None:
    """Compile what comes until nothing more does."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            source, arch = pickle.load(sys.stdin.buffer)  # from the process that started this one
            try:
                code: bytes | None = loadable_code(source, arch, Artifacts())
            except TacticError:
                code = None  # whoever prepares the tactic compiles it once more, and reads why
            pickle.dump(code, output)
            output.flush()
    os._exit(0)
