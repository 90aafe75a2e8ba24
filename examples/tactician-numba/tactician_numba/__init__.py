"""The plugin ``numba_target``: a target called ``numba``, and the tactics that run on it.

Importing it imports neither Numba nor a kernel: those wait until a tactic is prepared.
"""

from __future__ import annotations

from tactician import Tactic, Target, hookimpl

from tactician_numba import convolution, elementwise, movement, products, reductions, rows
from tactician_numba.target import NumbaTarget


@hookimpl
def targets() -> list[type[Target]]:
    return [NumbaTarget]


@hookimpl
def tactics() -> list[type[Tactic]]:
    modules = (convolution, elementwise, movement, products, reductions, rows)
    return [tactic for module in modules for tactic in module.TACTICS]
