"""Builds the repository and installs it into fresh environments, for tests of packaging and examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = (
    "core",
    "plugins",
    "tactics",
    "builtin_kernels",
    "docs",
    "examples",
    "tests",
    "benchmarks",
    ".ci",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "mkdocs.yml",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
)
"""What a checkout holds; whatever else lies about must not matter."""

LEFTOVERS = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", "*.tactician")


def copy_checkout(target: Path) -> Path:
    """Copy the repository's own files to ``target``, so that building leaves nothing in the working tree."""
    for name in TOP:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=LEFTOVERS)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; if it fails, raise with that."""
    words = [str(word) for word in command]
    # the tests' own import paths must not stand in for what an installation lacks
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (env or {})
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(words)} returned {done.returncode}:\n{done.stdout}")
    return done.stdout


def build_distributions(checkout: Path, target: Path) -> tuple[Path, Path]:
    """Build the sdist and, from it, the wheel; return their paths."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, checkout, cwd=target.parent)
    (sdist,) = target.glob("*.tar.gz")
    (wheel,) = target.glob("*.whl")
    return sdist, wheel


class FreshEnvironment:
    """A new virtual environment with nothing of its own.

    The packages that tactician depends on are lent by the running environment, through links; tactician
    itself and its plugins are not. So a test downloads nothing, and imports what was installed here or fails.
    """

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        lent = folder / "lent"
        lent.mkdir()
        for source in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
            for entry in Path(source).iterdir():
                if not entry.name.startswith(("tactician", "__editable__", "__pycache__")):
                    (lent / entry.name).symlink_to(entry)
        own = run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(own, "lent.pth").write_text(f"{lent}\n")

    def install(self, *arguments: str | Path) -> str:
        """Install with pip, without dependencies."""
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet")
        offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
        return run(*pip, *offline, *arguments)

    def run(self, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Run this environment's Python."""
        return run(self.python, *arguments, cwd=cwd, env=env)
