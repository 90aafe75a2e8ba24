"""Every exception that a user of tactician can meet, each with the exit code that the command line returns."""

from typing import ClassVar


class TacticianError(Exception):
    """Base of all of tactician's own errors: something named, with its values, and what to do about it."""

    exit_code: ClassVar[int] = 1


class ConfigError(TacticianError):
    """An option, a project file or an environment variable holds a value that makes no sense."""


class InvalidModelError(TacticianError):
    """The ONNX model is damaged, hostile or breaks the ONNX specification."""


class ExternalDataError(InvalidModelError):
    """A weight file that the model refers to is missing, too short, or outside of the model's folder."""


class UnknownOpError(InvalidModelError):
    """A node's operator or domain is known to no opset and to no installed plugin."""


class ShapeError(InvalidModelError):
    """Shapes or types of a node's inputs do not fit together, or a ``--shapes`` binding does not fit the model."""


class InputError(TacticianError):
    """The arrays given to a session do not fit the engine's inputs."""


class ProfileError(InputError):
    """The shapes given to a session are in none of the engine's optimization profiles."""


class DeviceError(TacticianError):
    """A target or device is not there, is out of memory, or reported a failure."""


class PluginError(TacticianError):
    """A plugin is missing, broken, incompatible or breaks the contract."""

    exit_code: ClassVar[int] = 6


class UnknownPluginError(PluginError):
    """A plugin was named that is not installed."""

    exit_code: ClassVar[int] = 1


class TacticError(PluginError):
    """A tactic that had accepted a signature failed to compile or to run: a bug of its plugin."""


class NoTacticError(TacticianError):
    """No installed tactic runs a node; the message lists every candidate and why it declined."""


class SelectionError(TacticianError):
    """A selector or a ``--tactic`` rule names what does not exist, or leaves a node without a tactic."""


class LockError(TacticianError):
    """A lock file is damaged or has a format that this version can't read."""

    exit_code: ClassVar[int] = 5


class LockMismatchError(LockError):
    """``--locked`` was asked for and the network, a plugin or a choice differs from the lock file."""


class CacheError(TacticianError):
    """A timing cache file is damaged, not a timing cache, or can't be written."""


class TimingCacheMissError(CacheError):
    """``--error-on-timing-cache-miss`` was asked for and an entry is missing; the message names the field that differs."""


class EngineError(TacticianError):
    """An engine file can't be used."""


class DamagedEngineError(EngineError):
    """An engine file is truncated, altered or not an engine."""


class EngineMismatchError(EngineError):
    """An engine was built for another device, another format version, or needs a plugin that is missing or differs."""


class RefitError(EngineError):
    """New weights don't fit into an engine: the model is another network, or shares weights otherwise."""


class SpecialisationError(EngineError):
    """An engine can't be made for a shape within a profile: what that takes is not installed, or the model can't have it."""


class AccuracyError(TacticianError):
    """Outputs differ from the reference by more than the tolerance."""

    exit_code: ClassVar[int] = 3


class RegressionError(TacticianError):
    """A comparison found the engine slower than its baseline by more than the noise."""

    exit_code: ClassVar[int] = 4


class BuildCancelledError(TacticianError):
    """The user cancelled; what was timed so far stays in the timing cache."""

    exit_code: ClassVar[int] = 130
