"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's timing cache and project settings out of the tests."""
    monkeypatch.setenv("TACTICIAN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    for name in ("TACTICIAN_PLUGINS", "TACTICIAN_DISABLE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def compile_device() -> Callable[[str], object]:
    """Return a maker of devices that compile for an architecture and can't run."""
    pytest.importorskip("cuda.core", reason="the compiler's package is not installed")
    from tactician.builtin_kernels.cuda.device import CompileOnlyDevice

    return CompileOnlyDevice
