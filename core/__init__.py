"""tactician: an open inference builder in which kernels of any package compete."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "build": "tactician.builder",
    "BuilderConfig": "tactician.config",
    "Engine": "tactician.engine",
    "load": "tactician.runtime.session",
    "Session": "tactician.runtime.session",
    "Network": "tactician.network",
    "AlgorithmSelector": "tactician.tactics.selector",
    "CandidateRecord": "tactician.tactics.record",
    "Decision": "tactician.tactics.record",
    "TacticRecorder": "tactician.tactics.replay",
    "TacticReplayer": "tactician.tactics.replay",
    "Op": "tactician.plugins.op",
    "OpSignature": "tactician.signature",
    "Part": "tactician.signature",
    "FusedForm": "tactician.tactics.fused_form",
    "TensorType": "tactician.signature",
    "Tactic": "tactician.tactics.tactic",
    "Launch": "tactician.tactics.tactic",
    "host_launch": "tactician.tactics.tactic",
    "Target": "tactician.plugins.target",
    "Device": "tactician.plugins.target",
    "Timer": "tactician.plugins.target",
    "KernelSource": "tactician.plugins.kernel_source",
    "RewriteRule": "tactician.plugins.rewrite_rule",
    "KernelBinary": "tactician.plugins.kernel_binary",
    "TritonSource": "tactician.plugins.triton_source",
    "InlinePlugin": "tactician.plugins.inline",
    "hookimpl": "tactician.plugins.hookspecs",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that importing tactician stays cheap."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tactician' has no attribute '{name}'")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
