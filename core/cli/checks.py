"""What ``tactician doctor`` looks at. Every check is read-only and offline, and none can break another."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum
from importlib import metadata
from pathlib import Path

import msgspec
from tactician import __version__


class Level(StrEnum):
    """How bad a finding is. ``FAIL`` makes the command's exit code 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's report, with what to do about it."""

    level: Level
    subject: str
    text: str
    fix: str = ""


DEPENDENCIES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "msgspec", "pluggy", "click", "rich")
CUDA_PACKAGES = ("cuda-core", "cuda-bindings", "nvidia-ml-py", "nvmath-python", "nvidia-cudnn-frontend")
LIBRARIES = {
    "NVRTC": (
        "libnvrtc.so",
        "nvidia-cuda-nvrtc",
        "CUDA kernels can't be compiled: pip install 'tactician[cuda]'",
    ),
    "cuBLASLt": ("libcublasLt.so", "nvidia-cublas", "its tactics decline"),
    "cuDNN": ("libcudnn.so", "nvidia-cudnn-cu13", "its tactics decline"),
}


def run_checks() -> list[Finding]:
    """Return the findings of all checks, in order."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # a doctor that falls ill helps nobody
            name = check.__name__.removeprefix("check_")
            findings.append(
                Finding(Level.WARN, name, f"this check failed itself: {type(error).__name__}: {error}")
            )
    return findings


def check_python() -> list[Finding]:
    """Interpreter, platform, and versions of what tactician depends on."""
    text = f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    level = Level.OK if sys.version_info >= (3, 11) else Level.FAIL
    where = Path(__file__).parents[1]
    findings = [
        Finding(level, "python", text),
        Finding(Level.OK, "tactician", f"{__version__} ({where})"),
        Finding(
            Level.OK,
            "packages",
            ", ".join(f"{name} {_version(name)}" for name in DEPENDENCIES if _version(name)),
        ),
    ]
    return findings + [
        Finding(Level.FAIL, "packages", f"{name} is not installed", "pip install --force-reinstall tactician")
        for name in DEPENDENCIES
        if not _version(name)
    ]


def check_distributions() -> list[Finding]:
    """Two copies of one distribution: the one found first may be stale and hide the other's plugins."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name or "").lower()
        concerns_us = name == "tactician" or any(p.group == "tactician" for p in distribution.entry_points)
        path = str(distribution.locate_file(""))
        info = str(getattr(distribution, "_path", path))
        if (concerns_us or name in places) and info not in [i for i, _ in places[name]]:
            places[name].append((info, distribution.version))
    findings = []
    for name, found in sorted(places.items()):
        editable = [i for i, _ in found if i.endswith(".egg-info")]
        if len({v for _, v in found}) > 1 or (len(found) > 1 and not editable):
            text = f"found {len(found)} times: {', '.join(f'{i} ({v})' for i, v in found)}"
            fix = (
                f"rm -r {editable[0]}"
                if editable
                else f"pip uninstall {name}, until it is gone, then install it again"
            )
            findings.append(Finding(Level.FAIL, name, text, fix))
    return findings or [
        Finding(Level.OK, "distributions", f"{len(places)} concern tactician, each is there once")
    ]


def check_gpu() -> list[Finding]:
    """Driver and GPUs, through NVML; and the packages that reach them."""
    there = [f"{name} {_version(name)}" for name in CUDA_PACKAGES if _version(name)]
    packages = Finding(
        Level.OK, "cuda packages", ", ".join(there) or "none; pip install 'tactician[cuda]' for NVIDIA GPUs"
    )
    if not _version("nvidia-ml-py"):
        return [packages]
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [packages, Finding(Level.OK, "gpu", f"none: {error}; engines are built for the CPU")]
    driver = pynvml.nvmlSystemGetDriverVersion()
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    findings = [
        packages,
        Finding(Level.OK, "driver", f"{driver}, up to CUDA {cuda // 1000}.{cuda % 1000 // 10}"),
    ]
    if cuda < 13000:
        findings.append(Finding(Level.FAIL, "driver", "older than CUDA 13", "install driver 580 or later"))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        level = Level.OK if major >= 8 else Level.WARN
        fix = "" if major >= 8 else "compute capability 8.0 or later is needed"
        findings.append(
            Finding(level, f"gpu {index}", f"{pynvml.nvmlDeviceGetName(handle)}, sm_{major}{minor}", fix)
        )
    return findings


def check_libraries() -> list[Finding]:
    """NVIDIA libraries: in this process, in wheels, and on the system. Two versions of one make crashes."""
    if not _version("cuda-core"):
        return []
    maps = Path("/proc/self/maps")
    loaded = maps.read_text() if maps.exists() else ""
    findings = []
    for name, (file, wheel, without) in LIBRARIES.items():
        found = sorted(set(re.findall(rf"\S*{re.escape(file)}\S*", loaded)))
        places = [f"loaded {p}" for p in found]
        places += [f"wheel {wheel} {_version(wheel)}"] if _version(wheel) else []
        places += [f"system {p}" for p in _system_libraries(file)]
        level = Level.OK if places else Level.WARN
        findings.append(Finding(level, name, "; ".join(places) or f"not found; {without}"))
        if len(found) > 1:
            findings.append(
                Finding(Level.WARN, name, "loaded twice in this process", "remove one of the installations")
            )
    return findings


def check_plugins() -> list[Finding]:
    """State of every plugin, without importing any."""
    from tactician.plugins.discovery import State
    from tactician.plugins.manager import survey_plugins

    findings = []
    for name, status in survey_plugins().items():
        bad = status.state not in (State.FOUND, State.READY, State.DISABLED)
        where = f"{status.version} {status.state} ({status.location})"
        text = where + (f": {status.reason}" if status.reason else "")
        fix = (
            f"pip install --upgrade {status.distribution}, or TACTICIAN_DISABLE_PLUGINS={name}" if bad else ""
        )
        findings.append(Finding(Level.WARN if bad else Level.OK, f"plugin {name}", text, fix))
    return findings or [
        Finding(Level.FAIL, "plugins", "none is installed", "pip install --force-reinstall tactician")
    ]


def check_settings() -> list[Finding]:
    """Project file and environment variables."""
    from tactician.errors import ConfigError
    from tactician.project import read_project

    variables = [
        f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("TACTICIAN_")
    ]
    findings = [Finding(Level.OK, "environment", ", ".join(variables) or "no TACTICIAN_ variables")]
    try:
        project = read_project()
    except ConfigError as error:
        return [*findings, Finding(Level.FAIL, "project file", str(error), "correct the file")]
    keys = ", ".join(project.settings) or "empty"
    return [
        *findings,
        Finding(Level.OK, "project file", f"{project.path} ({keys})" if project.path else "none"),
    ]


def check_cache() -> list[Finding]:
    """Return how the user's timing cache is, and whether its folder can be written."""
    from tactician.errors import CacheError
    from tactician.report.format import size
    from tactician.tactics.cache import TimingCache, default_path

    path = default_path()
    folder = next(p for p in path.parents if p.exists())
    if not os.access(folder, os.W_OK):
        return [
            Finding(Level.FAIL, "timing cache", f"'{folder}' can't be written", "set TACTICIAN_CACHE_DIR")
        ]
    if not path.exists():
        return [Finding(Level.OK, "timing cache", f"none yet; the first build makes {path}")]
    try:
        cache = TimingCache(path)
        problems, info = cache.verify(), cache.info()
    except CacheError as error:
        return [Finding(Level.FAIL, "timing cache", str(error), "tactician cache reset")]
    if problems:
        return [
            Finding(Level.FAIL, "timing cache", f"{path}: {'; '.join(problems[:3])}", "tactician cache reset")
        ]
    return [Finding(Level.OK, "timing cache", f"{path}: {info.entries} entries, {size(info.bytes)}")]


CHECKS: list[Callable[[], list[Finding]]] = [
    check_python,
    check_distributions,
    check_settings,
    check_plugins,
    check_gpu,
    check_libraries,
    check_cache,
]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _system_libraries(file: str) -> list[str]:
    """Return copies of a library in the usual folders, links resolved."""
    folders = [
        Path("/usr/lib"),
        Path("/usr/lib64"),
        Path("/usr/lib/x86_64-linux-gnu"),
        Path("/usr/local/cuda/lib64"),
    ]
    folders += [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    found = {str(p.resolve()) for folder in folders if folder.is_dir() for p in folder.glob(f"{file}.*")}
    return sorted(found)
