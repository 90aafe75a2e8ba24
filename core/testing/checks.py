"""All checks by name: each raises AssertionError with what is wrong, and says what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tactician.testing.running_checks import (
    check_capture,
    check_devices,
    check_engine,
    check_numerics,
    check_repeats,
    check_shapes,
    check_stream,
)
from tactician.testing.static_checks import (
    check_fields,
    check_import,
    check_metadata,
    check_purity,
    check_served,
)
from tactician.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """A check with a name; ``advice`` is what to do where it fails."""

    name: str
    advice: str
    run: Callable[[Subject], None]


CHECKS = (
    Check("import", "Import heavy packages where they are needed: within prepare or a launch.", check_import),
    Check(
        "metadata",
        'Give the distribution a licence and `dependencies = ["tactician>=…"]`.',
        check_metadata,
    ),
    Check(
        "served",
        "Give calls that the tactic accepts, in a test: conformance_tests(…, signatures=lambda: [make_signature(…)]).",
        check_served,
    ),
    Check("fields", "Use a frozen dataclass whose fields are int, bool or str.", check_fields),
    Check(
        "purity",
        "candidates, decline, workspace and numerics depend on their arguments alone; reasons are words.",
        check_purity,
    ),
    Check(
        "numerics",
        "Decline what the kernel can't do; write every element of the outputs and nothing else; use the given stream.",
        check_numerics,
    ),
    Check("shapes", "As for numerics; the message has the smallest shape that failed.", check_shapes),
    Check("repeats", "Keep no state between launches, or declare 'nondeterministic'.", check_repeats),
    Check("stream", "Enqueue everything on the stream that the launch is given.", check_stream),
    Check(
        "capture",
        "A launch only enqueues on its stream: no allocation, no synchronisation, no copy to the host.",
        check_capture,
    ),
    Check(
        "devices",
        "Keep what prepare makes with the device that it was made for; no state in globals.",
        check_devices,
    ),
    Check(
        "engine",
        "What prepare needs must be in the signature, the device or the tactic's fields.",
        check_engine,
    ),
)
"""All checks, cheap ones first."""
