"""What is checked: a loaded plugin, a device, and the calls that its tactics accept there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tactician.config import BuilderConfig
from tactician.errors import DeviceError
from tactician.plugins.manager import Plugins, load_plugins
from tactician.plugins.target import Device
from tactician.project import near_matches
from tactician.signature import OpSignature
from tactician.tactics.registry import Candidate, Registry
from tactician.tactics.tactic import Tactic
from tactician.testing.calls import standard_signatures
from tactician.testing.fused_calls import neighbour_signatures

MOST_CALLS = 12
"""Calls of single operators, and as many of fused nodes, that one tactic is tried on, beyond those that were given."""


@dataclass
class Subject:
    """A plugin under check.

    Parameters
    ----------
    plugin
        Name of an installed one, or path of a ``.py`` file.
    target
        Its tactics for this target are checked.
    signatures
        Calls to check besides those of the ONNX project's tests; an operator of the plugin's own has only these.
    device_index
        Index of the target's device.

    Raises
    ------
    PluginError
        If it can't be loaded.
    """

    plugin: str
    target: str = "cpu"
    signatures: Sequence[OpSignature] = field(default_factory=tuple)
    device_index: int = 0

    @cached_property
    def config(self) -> BuilderConfig:
        """The plugin alone, with the built-in one, which brings the targets."""
        return BuilderConfig(target=self.target, plugins=(self.plugin, "builtin"), strict=True)

    @cached_property
    def plugins(self) -> Plugins:
        """The plugins, loaded."""
        return load_plugins(self.config)

    @property
    def name(self) -> str:
        """Name of the plugin."""
        return self.plugin.rpartition("/")[2].removesuffix(".py") if self.is_file else self.plugin

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and no distribution."""
        return self.plugin.endswith(".py")

    @cached_property
    def device(self) -> Device:
        """The device of the target."""
        return self.plugins.target(self.target).device(self.device_index)

    @cached_property
    def registry(self) -> Registry:
        """The plugin's own tactics."""
        registry = Registry()
        for ref, tactic in self.plugins.registry:
            if ref.name == self.name:
                registry.add(ref, tactic)
        return registry

    @property
    def tactics(self) -> list[type[Tactic]]:
        """Its tactic classes for the target."""
        return [tactic for _, tactic in self.registry if tactic.target == self.target]

    @cached_property
    def calls(self) -> list[OpSignature]:
        """Calls of every operator that its tactics are for, and of fused nodes of the forms that they have."""
        forms = dict.fromkeys(form for t in self.tactics for form in t.fused_forms)
        ops = {op for t in self.tactics for op in ((t.op,) if isinstance(t.op, str) else t.op)}
        own = [*self.signatures, *(s for op in sorted(ops) for s in standard_signatures(op))]
        anchors = sorted({op for form in forms for op in form.anchors} - ops)
        others = [s for op in anchors for s in standard_signatures(op)]
        return [*own, *(s for form in forms for s in neighbour_signatures(form, [*own, *others]))]

    def accepted(self) -> Iterator[tuple[OpSignature, Candidate]]:
        """Yield calls with the plugin's candidates that accept them: all that were given, and some of the others."""
        tried: Counter[tuple[Tactic, bool]] = Counter()
        for number, signature in enumerate(self.calls):
            for candidate in self.registry.candidates(signature, self.device)[0]:
                kind = candidate.tactic, bool(signature.parts)
                if number < len(self.signatures) or tried[kind] < MOST_CALLS:
                    tried[kind] += 1
                    yield signature, candidate


def offline_device(target: str, architecture: str) -> Device:
    """Return a device that is not there, to ask and compile tactics for: ``offline_device("cuda", "sm_90a")``.

    Tests that every candidate compiles run wherever the compiler does; NVRTC needs no GPU.

    Raises
    ------
    DeviceError
        If the target has no such devices, does not know the architecture, or its compiler is not installed.
    """
    targets = load_plugins().targets
    if target not in targets:
        raise DeviceError(f"target '{target}' is brought by no loaded plugin{near_matches(target, targets)}")
    return targets[target].offline_device(architecture)
