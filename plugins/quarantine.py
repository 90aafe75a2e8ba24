"""Which plugins took the process down while they were imported: noticed afterwards, confirmed, and kept aside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tactician.user_folders import cache_folder

if TYPE_CHECKING:
    from tactician.plugins.discovery import Source

PROBE_SECONDS = 60.0
"""How long importing a plugin may take in the process that confirms a crash."""

_ENDED = 17
"""Exit code of a process that ended by itself; none of the usual ones."""

_PROBE = """
import os, sys
sys.path[:] = {path!r}
from pathlib import Path
from tactician.plugins.discovery import Source
file = {file!r}
try:
    Source({name!r}, {entry!r}, file=Path(file) if file else None).load()
except BaseException:
    pass  # what raises takes nothing down
os._exit({ended})
"""


class Mark(msgspec.Struct, frozen=True):
    """What is written down of one plugin.

    Parameters
    ----------
    pid
        Process that began to import it.
    verdict
        How a process ended that imported it; empty while it is not known that one did.
    digest
        Of its files, when the verdict was found: it holds for no others.
    """

    pid: int
    since: float
    verdict: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Quarantine:
    """Marks in a folder, one file for each plugin that is being imported or took a process down.

    A mark is made before a plugin is imported and goes when that ends, in whatever way. So one that is still there,
    of a process that is not, means that the process ended meanwhile: by the plugin's doing, or by accident. Importing
    it once more in a process of its own tells which.
    """

    folder: Path

    @classmethod
    def of_user(cls) -> Quarantine:
        """Return the user's own, beside the timing cache."""
        return cls(cache_folder() / "quarantine")

    def verdict(self, source: Source, *, confirm: bool = False) -> str | None:
        """Return what importing ``source`` does to a process, or None where it is not known to do harm.

        Parameters
        ----------
        confirm
            Whether to find out, in a process of its own, where an earlier one ended while it imported it.
        """
        mark = self._read(source.name)
        if mark is None:
            return None
        if mark.verdict:
            if mark.digest == _digest(source):
                return mark.verdict
            self.release(source.name)  # it has been changed since
            return None
        if not confirm or _is_alive(mark.pid):
            return None
        found = _probe(source)
        if found is None:
            self.release(source.name)
            return None
        when = time.strftime("%Y-%m-%d", time.localtime(mark.since))
        verdict = f"importing it took down a process on {when}, and again when this was checked ({found})"
        self._write(source.name, msgspec.structs.replace(mark, verdict=verdict, digest=_digest(source)))
        return verdict

    @contextmanager
    def importing(self, name: str) -> Iterator[None]:
        """Keep a mark while plugin ``name`` is imported."""
        made = self._read(name) is None and self._write(name, Mark(os.getpid(), time.time()))
        try:
            yield
        finally:
            if made:
                self.release(name)

    def release(self, name: str) -> bool:
        """Forget plugin ``name``, and return whether there was anything to forget."""
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> Mark | None:
        try:
            return msgspec.json.decode(self._path(name).read_bytes(), type=Mark)
        except (OSError, msgspec.MsgspecError):
            return None

    def _write(self, name: str, mark: Mark) -> bool:
        """Write a mark; a folder that can't be written means that nothing is remembered."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path(name).write_bytes(msgspec.json.encode(mark))
        except OSError:
            return False
        return True


def _probe(source: Source) -> str | None:
    """Import ``source`` in a new process; return how that ended, or None where it ended by itself."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    script = _PROBE.format(
        path=path, file=str(source.file or ""), name=source.name, entry=source.entry, ended=_ENDED
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = child.wait(PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not end within {PROBE_SECONDS:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code < 0:
        return signal.Signals(-code).name
    return None if code == _ENDED else f"exit code {code}"


def _digest(source: Source) -> str:
    from tactician.plugins.digest import plugin_digest

    return plugin_digest(source, None)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
