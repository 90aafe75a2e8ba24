"""The conformance kit within pytest: a test for each check of a plugin.

``pytest -p tactician.pytest_plugin --tactician-plugin NAME``, or ``pytest_plugins = ["tactician.pytest_plugin"]`` in a
``conftest.py``. It is no entry point: pytest would rewrite the assertions of all that is installed with it, in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tactician.signature import OpSignature
    from tactician.testing.checks import Check
    from tactician.testing.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the kit's options."""
    group = parser.getgroup("tactician", "conformance of tactician plugins")
    group.addoption(
        "--tactician-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="add the conformance checks of this plugin, installed or a .py file; repeatable",
    )
    group.addoption(
        "--tactician-target", default="cpu", metavar="NAME", help="check tactics for this target (cpu)"
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hook that a ``conftest.py`` gives calls by."""
    pluginmanager.add_hookspecs(_Specifications)


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each check of each plugin."""
    names = config.getoption("--tactician-plugin")
    if not names:
        return
    from tactician.testing.checks import CHECKS

    for name in names:
        subject = _Lazy(name, config)
        items += [
            ConformanceItem.from_parent(session, name=f"{name}::{check.name}", check=check, subject=subject)
            for check in CHECKS
        ]


class ConformanceItem(pytest.Item):
    """One check of one plugin."""

    def __init__(self, *, check: Check, subject: _Lazy, **options: Any) -> None:
        super().__init__(**options)
        self._check, self._subject = check, subject
        self.add_marker("tactician")

    def runtest(self) -> None:
        """Run the check."""
        from tactician.testing.conformance import run_check

        result = run_check(self._check, self._subject.get())
        assert result.ok, f"{result.message}\n{result.advice}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what is wrong and what to do, without our own frames."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Return where the test is said to be."""
        return "tactician", None, self.name


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark that the kit's tests have."""
    config.addinivalue_line("markers", "tactician: a check of the conformance kit")


class _Lazy:
    """A plugin, loaded when its first check runs."""

    def __init__(self, name: str, config: pytest.Config) -> None:
        self._name, self._config = name, config
        self._subject: Subject | None = None

    def get(self) -> Subject:
        from tactician.testing.conformance import make_subject

        if self._subject is None:
            hook, target = self._config.hook, self._config.getoption("--tactician-target")
            self._subject = make_subject(
                self._name,
                target,
                lambda: [s for group in hook.pytest_tactician_signatures(plugin=self._name) for s in group],
            )
        return self._subject


class _Specifications:
    """The hook that this plugin asks."""

    @staticmethod
    def pytest_tactician_signatures(plugin: str) -> list[OpSignature] | None:
        """Return calls to check ``plugin`` on besides those of the ONNX project's tests; None for none."""
