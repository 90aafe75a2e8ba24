"""Compiles kernels ahead in processes of their own: NVRTC neither takes Python's lock from who times, nor the driver's."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.device import CompileOnlyDevice, CudaDevice
from tactician.plugins.kernel_binary import KernelBinary
from tactician.plugins.kernel_source import KernelLanguage
from tactician.plugins.target import Artifacts, Device, Precompiler

BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from tactician.builtin_kernels.cuda.compile_server import main; main()"


class CudaPrecompiler(Precompiler):
    """Fills the artifacts of a GPU, whose tactics then find their kernels compiled.

    Parameters
    ----------
    processes
        That compile at the same time; each is started when there is something for it to do.
    """

    def __init__(self, device: CudaDevice, processes: int) -> None:
        self._rehearsal = _Rehearsal(device)
        self._arch, self._artifacts = str(device.facts["arch"]), device.artifacts
        self._begun: dict[str, Future[None]] = {}
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(processes, "tactician-precompile")
        self._servers: list[_Server] = []
        weakref.finalize(self, _end, self._pool, self._servers)

    def submit(self, prepare: Callable[[Device], Any]) -> Sequence[Future[None]]:
        """Begin to compile the kernels of a tactic, those that nobody has asked for yet."""
        return [self._future(source) for source in self._rehearsal.sources(prepare)]

    def _future(self, source: KernelSource | KernelBinary) -> Future[None]:
        key = source.key(self._arch)
        if key not in self._begun:
            self._begun[key] = self._pool.submit(self._compile, key, source)
        return self._begun[key]

    def _compile(self, key: str, source: KernelSource | KernelBinary) -> None:
        if key in self._artifacts:
            return
        server = getattr(self._local, "server", None)
        if server is None or not server.is_alive:
            server = self._local.server = _Server()
            self._servers.append(server)
        code = server.compile(source, self._arch)
        if code is not None:
            self._artifacts.put(key, code)


class _Rehearsal(CompileOnlyDevice):
    """Has the facts of a GPU, and writes down what it is asked to compile."""

    def __init__(self, device: CudaDevice) -> None:  # no base class: nothing is opened
        self.index, self.name, self.facts = device.index, device.name, device.facts
        self.artifacts = Artifacts()
        self._asked: list[KernelSource | KernelBinary] = []

    def sources(self, prepare: Callable[[Device], Any]) -> list[KernelSource | KernelBinary]:
        """Return what ``prepare`` asks for until it ends, or needs more of a GPU than there is here."""
        self._asked = []
        with suppress(Exception, SystemExit):  # it is prepared once more in earnest, and then it is told
            prepare(self)
        return self._asked

    def compile(self, source: KernelSource | KernelBinary | KernelLanguage) -> Any:
        """Write down what has to be compiled; the kernel that comes back can't be launched."""
        if isinstance(source, KernelSource) or (isinstance(source, KernelBinary) and source.form == "ptx"):
            self._asked.append(source)
        return self.no_kernel()


class _Server:
    """One process that compiles."""

    def __init__(self) -> None:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        try:
            self._child: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP.format(path=path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ
                | {"CUDA_VISIBLE_DEVICES": ""},  # compiling needs no GPU, and must not take a context
            )
        except OSError:
            self._child = None  # tactics compile when they are prepared

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._child is None or self._child.poll() is None

    def compile(self, source: KernelSource | KernelBinary, arch: str) -> bytes | None:
        """Return the machine code; None if it does not compile, or the process ended over it."""
        if self._child is None or self._child.stdin is None or self._child.stdout is None:
            return None
        try:
            pickle.dump((source, arch), self._child.stdin)
            self._child.stdin.flush()
            code: bytes | None = pickle.load(self._child.stdout)  # from the process that this one started
        except (OSError, EOFError, pickle.UnpicklingError):
            self._child.kill()
            return None
        return code

    def end(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    stream.close()


def _end(pool: ThreadPoolExecutor, servers: Sequence[_Server]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for server in servers:
        server.end()
