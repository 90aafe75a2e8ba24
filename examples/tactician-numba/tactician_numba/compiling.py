"""How kernels are compiled: with which promises to the compiler, when, and where the result is kept.

Promises: ``error_model="numpy"`` makes x / 0 an infinity and not an exception, which would end every
vectorized loop. Of the fastmath flags there are at most two. ``contract`` joins a product and a sum into one
instruction that rounds once. ``reassoc`` lets a sum be taken in another order, in lanes; without it no sum is
vectorized. Neither says that there are no NaN or infinities, so those come out as they should.

Types: of the signature alone. A kernel has no annotations, which Numba would not read.

When: in ``Tactic.prepare``, for one signature, and never in a launch.

Where: ``cache=True`` has Numba keep machine code in its cache folder (``__pycache__`` beside the kernels, or
the user's cache, or ``NUMBA_CACHE_DIR``). The worker process that measures, the build, and every later
session on the machine compile a kernel once between them. It can't be kept in the engine: that would be host
code in a file that must be safe to open. Numba looks at the kernel's own file to see whether code is stale:
so a helper stands in the same file as the kernels that call it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}


class Kernel:
    """A function that is compiled for one signature, on demand.

    Parameters
    ----------
    function
        What Numba is to compile.
    signature
        Types as Numba writes them: ``"void(float32[::1], int64)"``; ``[::1]`` is a contiguous array.
    fastmath
        Flags, see above.
    """

    def __init__(self, function: Callable[..., None], signature: str, fastmath: set[str]) -> None:
        self._dispatcher = numba.njit(function, fastmath=fastmath, **OPTIONS)
        self._signature = signature
        self._lock = threading.Lock()

    def compile(self) -> Callable[..., None]:
        """Return the compiled kernel, called with NumPy arrays, ints and ``numpy.float32`` scalars."""
        with self._lock:
            if not self._dispatcher.signatures:
                self._dispatcher.compile(self._signature)
                # arguments of other types raise from now on, instead of being compiled for in a launch
                self._dispatcher.disable_compile()
        return self._dispatcher


def kernel(signature: str, *, fastmath: set[str] | None = None) -> Callable[[Callable[..., None]], Kernel]:
    """Make a ``Kernel`` of the function below."""
    return lambda function: Kernel(function, signature, fastmath or set())


def helper(*, fastmath: set[str] | None = None) -> Callable[[Callable[..., Any]], Any]:
    """Make the function below one that kernels of the same file may call."""
    return numba.njit(fastmath=fastmath or set(), **OPTIONS)
