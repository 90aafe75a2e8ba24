"""Runs the checks: all of them with their results, or as tests of pytest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from tactician.errors import TacticianError
from tactician.signature import OpSignature
from tactician.testing.checks import CHECKS, Check
from tactician.testing.subject import Subject


class CheckResult(msgspec.Struct, frozen=True):
    """What a check found; ``message`` and ``advice`` are empty where all is well."""

    name: str
    ok: bool
    message: str = ""
    advice: str = ""


Signatures = Callable[[], Sequence[OpSignature]]
"""Makes calls, once the plugin is loaded: an operator of its own has a reference only then."""


def check_plugin(
    plugin: str, *, target: str = "cpu", signatures: Signatures = tuple, device: int = 0
) -> list[CheckResult]:
    """Run every check on a plugin and return the results; none stops the others.

    Parameters
    ----------
    plugin, target
        As ``Subject`` takes them.
    signatures
        Returns the calls to check besides those of the ONNX project's tests.
    device
        Index of the device.

    Raises
    ------
    PluginError, DeviceError
        If the plugin can't be loaded, or there is no such target.
    """
    subject = make_subject(plugin, target, signatures, device)
    assert subject.device is not None  # opened first: what fails here is no check's business
    return [run_check(check, subject) for check in CHECKS]


def conformance_tests(
    plugin: str, *, target: str = "cpu", signatures: Signatures = tuple
) -> Callable[..., None]:
    """Return a test for pytest, one case for each check: ``test_conformance = conformance_tests("acme")``.

    Parameters
    ----------
    plugin, target
        As ``Subject`` takes them.
    signatures
        Returns the calls to check besides those of the ONNX project's tests.
    """
    import pytest

    subjects: list[Subject] = []

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_conformance(check: Any) -> None:
        if not subjects:
            subjects.append(make_subject(plugin, target, signatures))
        result = run_check(check, subjects[0])
        assert result.ok, f"{result.message}\n{result.advice}"

    test: Callable[..., None] = test_conformance
    return test


def make_subject(plugin: str, target: str, signatures: Signatures, device: int = 0) -> Subject:
    """Load a plugin and return it with its calls, as ``check_plugin`` takes them.

    Raises
    ------
    PluginError
        If it can't be loaded.
    """
    loaded = Subject(plugin, target)
    assert loaded.plugins
    return Subject(plugin, target, tuple(signatures()), device)


def run_check(check: Check, subject: Subject) -> CheckResult:
    """Run one check. Whatever the plugin's own code raises is a result too."""
    try:
        check.run(subject)
    except (AssertionError, TacticianError) as error:
        return CheckResult(check.name, False, str(error), check.advice)
    except Exception as error:  # the plugin's own code raises whatever it does
        return CheckResult(check.name, False, f"{type(error).__name__}: {error}", check.advice)
    return CheckResult(check.name, True)
