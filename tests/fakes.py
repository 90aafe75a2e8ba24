"""A device in host memory with its own clock, a timer that reads it, and tactics good and bad.

A launch moves the device's clock by what its tactic costs, so that races are scripted and take no time.
Tensors know the buffer that they lie in: a broken tactic can write next to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.errors import DeviceError
from tactician.plugins.target import Artifacts, Device, Thunk, Timer
from tactician.signature import Constant, OpSignature, TensorType
from tactician.tactics.registry import Candidate, PluginRef, Registry, tactic_id
from tactician.tactics.tactic import Launch, Tactic

Array = np.ndarray[Any, Any]

OP = "test::Affine"


@dataclass
class FakeTensor:
    """``array`` is a view into ``buffer``, ``offset`` bytes from its start."""

    buffer: Array
    offset: int
    type: TensorType

    @property
    def array(self) -> Array:
        flat = self.buffer[self.offset : self.offset + self.type.nbytes].view(self.type.numpy_dtype)
        return flat.reshape(self.type.dims)


class FakeDevice(Device):
    """Counts what it is asked for; ``lost`` makes every use fail, as a GPU after a bad access does."""

    target = "fake"
    index = 0
    name = "Fake 1"

    def __init__(self, *, memory: int = 1 << 30, **facts: int) -> None:
        self.facts = dict(facts)
        self.artifacts = Artifacts()
        self.fields = {"device": self.name, "driver": "1.0"}
        self.clock = 0.0
        self.lost = False
        self.memory = memory
        self.uploads = 0

    def fingerprint(self) -> dict[str, str]:
        return dict(self.fields)

    def allocate(self, nbytes: int) -> Array:
        self._check()
        if nbytes > self.memory:
            raise DeviceError(f"fake: can't allocate {nbytes} bytes")
        return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)

    def view(self, buffer: Array, offset: int, tensor: TensorType) -> FakeTensor:
        assert offset % 256 == 0
        return FakeTensor(buffer, offset, tensor)

    def upload(self, tensor: FakeTensor, array: Array, stream: Any = None) -> None:
        self._check()
        self.uploads += 1
        tensor.array[...] = array.reshape(tensor.type.dims)

    def download(self, tensor: FakeTensor, stream: Any = None) -> Array:
        self._check()
        return tensor.array.copy()

    def import_tensor(self, array: Any, stream: Any = None) -> None:
        return None

    def create_stream(self) -> str:
        return "stream"

    def wrap_stream(self, stream: Any) -> Any:
        return stream

    def synchronize(self, stream: Any = None) -> None:
        self._check()

    def timer(self) -> Timer:
        return ScriptedTimer(self)

    def _check(self) -> None:
        if self.lost:
            raise DeviceError("fake: an illegal memory access was encountered")


@dataclass
class Contender:
    seconds: float
    thunks: Sequence[Thunk]


class ScriptedTimer(Timer):
    """Times are what launches cost on the device's clock, times drift that all share and noise of their own.

    Parameters
    ----------
    noise
        Standard deviation of the logarithm, in each sample.
    drift
        Standard deviation of the logarithm of the slow wander that all samples share.
    spikes
        Fraction of samples that take up to three times as long.
    """

    def __init__(
        self,
        device: FakeDevice,
        *,
        noise: float = 0.0,
        drift: float = 0.0,
        spikes: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.device = device
        self.noise, self.drift, self.spikes = noise, drift, spikes
        self.random = np.random.default_rng(seed)
        self.level = 0.0
        self.samples = 0
        self.released = 0
        self.prepared: list[Contender] = []

    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> Contender:
        thunks = list(rotate) or [thunk]
        before = self.device.clock
        for call in thunks:
            call("stream")
        contender = Contender((self.device.clock - before) / len(thunks), thunks)
        self.prepared.append(contender)
        return contender

    def round(self, contenders: Sequence[Contender]) -> list[float]:
        return [self._sample(c.seconds) for c in contenders]

    def release(self, contender: Any) -> None:
        self.released += 1

    def _sample(self, seconds: float) -> float:
        self.samples += 1
        # an Ornstein-Uhlenbeck process: the clock wanders, and comes back
        self.level = 0.98 * self.level + self.drift * math.sqrt(1 - 0.98**2) * self.random.standard_normal()
        spike = 1 + 2 * self.random.random() if self.random.random() < self.spikes else 1.0
        return seconds * math.exp(self.level + self.noise * self.random.standard_normal()) * spike


@dataclass(frozen=True)
class Affine(Tactic):
    """y = 2 x + 1, right; subclasses are wrong in one way each, or cost something else."""

    op: ClassVar[str | tuple[str, ...]] = OP
    target: ClassVar[str] = "fake"
    cost: ClassVar[float] = 1e-5
    scratch: ClassVar[int] = 0
    marks: ClassVar[frozenset[str]] = frozenset()
    prepared: ClassVar[list[str]] = []

    def workspace(self, signature: OpSignature, device: Device) -> int:
        return self.scratch

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        return self.marks

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        assert isinstance(device, FakeDevice)
        Affine.prepared.append(self.name())

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            device.clock += self.seconds()
            self.run(device, inputs, outputs, workspace)

        return launch

    def seconds(self) -> float:
        return self.cost

    def run(self, device: FakeDevice, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
        outputs[0].array[...] = affine(inputs[0].array)


@dataclass(frozen=True)
class Sized(Affine):
    """A right tactic whose cost depends on its field: ``best`` is the fastest block."""

    block: int = 0
    best: ClassVar[int] = 0
    step: ClassVar[float] = 0.05
    blocks: ClassVar[tuple[int, ...]] = tuple(range(8))

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return [cls(block=b) for b in cls.blocks]

    def seconds(self) -> float:
        return self.cost * (1 + self.step * abs(self.block - self.best))


def affine(x: Array) -> Array:
    """Return 2 x + 1 in the type of ``x``, computed in double precision."""
    return np.asarray(2 * x.astype(np.float64) + 1).astype(x.dtype)


def reference(signature: OpSignature) -> Callable[[Sequence[Any]], tuple[Array, ...]]:
    """Return the reference of ``OP``."""
    return lambda inputs: (2 * inputs[0] + inputs[0].dtype.type(1),)


def signature(*shape: int, dtype: str = "float32", weights: int = 0) -> OpSignature:
    """Return a call of ``OP`` on a tensor of ``shape``, with a constant of ``weights`` elements to ignore."""
    tensor = TensorType(dtype, shape or (3, 100))
    inputs: tuple[TensorType, ...] = (tensor, TensorType(dtype, (weights,))) if weights else (tensor,)
    constants = (None, Constant()) if weights else (None,)
    return OpSignature(OP, 1, (), inputs, (tensor,), constants)


def make_tactic(class_name: str, base: type[Affine] = Affine, /, **attributes: Any) -> type[Affine]:
    """Return a frozen dataclass derived from ``base`` with these class attributes."""
    return dataclass(frozen=True)(type(class_name, (base,), attributes))


def plugin(name: str = "acme", digest: str = "d1", version: str = "1.0") -> PluginRef:
    """Return a plugin's identity."""
    return PluginRef(name, version, digest)


def registry(*tactics: type[Tactic], **others: type[Tactic] | Sequence[type[Tactic]]) -> Registry:
    """Return a registry of ``tactics`` of plugin ``acme`` and, by keyword, those of other plugins."""
    result = Registry()
    for name, offered in {"acme": tactics, **others}.items():
        for tactic in (offered,) if isinstance(offered, type) else offered:
            result.add(plugin(name), tactic)
    return result


def candidate(tactic: Tactic | type[Affine], owner: PluginRef | None = None) -> Candidate:
    """Return a tactic as the registry would."""
    owner, made = owner or plugin(), tactic() if isinstance(tactic, type) else tactic
    return Candidate(tactic_id(owner, made), made, owner)


def outcomes(records: Iterable[Any]) -> Mapping[str, str]:
    """Return outcome by the tactic's name."""
    return {r.tactic.partition("(")[0].partition(".")[2]: str(r.outcome) for r in records}
