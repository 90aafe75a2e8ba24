"""tactician: an open inference builder in which kernels of any package compete."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what ``__getattr__`` does, for those who only read
    from tactician.builder import build as build
    from tactician.config import BuilderConfig as BuilderConfig
    from tactician.engine import Engine as Engine
    from tactician.network import Network as Network
    from tactician.plugins.hookspecs import hookimpl as hookimpl
    from tactician.plugins.inline import InlinePlugin as InlinePlugin
    from tactician.plugins.kernel_binary import KernelBinary as KernelBinary
    from tactician.plugins.kernel_source import KernelSource as KernelSource
    from tactician.plugins.op import ChannelsLast as ChannelsLast
    from tactician.plugins.op import Op as Op
    from tactician.plugins.rewrite_rule import RewriteRule as RewriteRule
    from tactician.plugins.target import (
        Artifacts as Artifacts,
    )
    from tactician.plugins.target import (
        Device as Device,
    )
    from tactician.plugins.target import (
        Target as Target,
    )
    from tactician.plugins.target import (
        Thunk as Thunk,
    )
    from tactician.plugins.target import (
        Timer as Timer,
    )
    from tactician.plugins.triton_source import TritonSource as TritonSource
    from tactician.profiled_engine import ProfiledEngine as ProfiledEngine
    from tactician.profiles import OptimizationProfile as OptimizationProfile
    from tactician.refitting import refit as refit
    from tactician.runtime.profiled_session import ProfiledSession as ProfiledSession
    from tactician.runtime.session import Session as Session
    from tactician.runtime.session import load as load
    from tactician.signature import OpSignature as OpSignature
    from tactician.signature import Part as Part
    from tactician.signature import TensorType as TensorType
    from tactician.tactics.fused_form import FusedForm as FusedForm
    from tactician.tactics.record import CandidateRecord as CandidateRecord
    from tactician.tactics.record import Decision as Decision
    from tactician.tactics.replay import TacticRecorder as TacticRecorder
    from tactician.tactics.replay import TacticReplayer as TacticReplayer
    from tactician.tactics.selector import AlgorithmSelector as AlgorithmSelector
    from tactician.tactics.tactic import Launch as Launch
    from tactician.tactics.tactic import Tactic as Tactic
    from tactician.tactics.tactic import host_launch as host_launch

__version__ = "0.1.0"

_EXPORTS = {
    "build": "tactician.builder",
    "BuilderConfig": "tactician.config",
    "OptimizationProfile": "tactician.profiles",
    "Engine": "tactician.engine",
    "ProfiledEngine": "tactician.profiled_engine",
    "load": "tactician.runtime.session",
    "refit": "tactician.refitting",
    "Session": "tactician.runtime.session",
    "ProfiledSession": "tactician.runtime.profiled_session",
    "Network": "tactician.network",
    "AlgorithmSelector": "tactician.tactics.selector",
    "CandidateRecord": "tactician.tactics.record",
    "Decision": "tactician.tactics.record",
    "TacticRecorder": "tactician.tactics.replay",
    "TacticReplayer": "tactician.tactics.replay",
    "ChannelsLast": "tactician.plugins.op",
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
    "Artifacts": "tactician.plugins.target",
    "Thunk": "tactician.plugins.target",
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
