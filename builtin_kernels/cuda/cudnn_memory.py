"""Which plans cuDNN has for a call, as it said before: in the user's cache, since to ask is to build them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from tactician.builtin_kernels.cuda.cudnn_plan import LibraryError, PlanGraph, library
from tactician.plugins.target import Artifacts


class KnownPlans(msgspec.Struct, frozen=True):
    """Plans of one call that can be built, best first: engine, knobs, bytes of workspace.

    ``error`` has the library's own words where it has none.
    """

    plans: tuple[tuple[int, str, int], ...]
    error: str = ""

    def workspace(self, engine: int, knobs: str) -> int | None:
        """Return the bytes that a plan asks for, None if it is not known."""
        return next((n for e, k, n in self.plans if (e, k) == (engine, knobs)), None)


def known_plans(device: Any, what: str, count: int, graph: Callable[[], PlanGraph]) -> KnownPlans:
    """Return up to ``count`` plans that the heuristics propose.

    Parameters
    ----------
    what
        All that the graph depends on beside library, driver and GPU.
    graph
        Describes the call to the library: only where these have not been asked for yet.
    """
    version = (str(library().backend_version()), str(getattr(library(), "__version__", "")))
    machine = (str(device.facts["driver"]), str(device.facts["arch"]), device.name)
    key = Artifacts.key("cudnn plans", *version, *machine, what, str(count))
    return _known(key) or _ask(key, count, graph)


_asked: dict[str, KnownPlans] = {}


def _known(key: str) -> KnownPlans | None:
    if key not in _asked:
        # a file that can't be read, or was written by another version, is as good as none
        with suppress(OSError, msgspec.DecodeError):
            _asked[key] = msgspec.json.decode(_path(key).read_bytes(), type=KnownPlans)
    return _asked.get(key)


def _ask(key: str, count: int, graph: Callable[[], PlanGraph]) -> KnownPlans:
    try:
        described = graph()
        plans = tuple((e, k, described.build(e, k)) for e, k in described.proposals(count))
    except LibraryError as error:
        known = _asked[key] = KnownPlans((), str(error))
        return known  # for this process: another one may have the memory that this one had not
    known = _asked[key] = KnownPlans(plans)
    with suppress(OSError):  # then the next build asks again
        _write(_path(key), msgspec.json.encode(known))
    return known


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def _path(key: str) -> Path:
    return folder() / f"{key}.json"


@cache
def folder() -> Path:
    """Return where plans are remembered."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tactician")) / "cudnn_plans"
