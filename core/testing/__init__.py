"""The conformance kit: named checks that a plugin's author, and everybody else, can hold it to."""

from __future__ import annotations

from tactician.testing.calls import make_signature, resized, standard_signatures
from tactician.testing.checks import CHECKS, Check
from tactician.testing.conformance import CheckResult, check_plugin, conformance_tests
from tactician.testing.fused_calls import fused_signatures
from tactician.testing.rewrites import check_rewrite
from tactician.testing.subject import Subject, offline_device

__all__ = [
    "CHECKS",
    "Check",
    "CheckResult",
    "Subject",
    "check_plugin",
    "check_rewrite",
    "conformance_tests",
    "fused_signatures",
    "make_signature",
    "offline_device",
    "resized",
    "standard_signatures",
]
