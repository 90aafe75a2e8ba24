"""Maps the repository's folders onto the one import namespace ``tactician``."""

import shutil

from setuptools import setup
from setuptools.command.build import build

PACKAGES = {
    "tactician": "core",
    "tactician.cli": "core/cli",
    "tactician.decompositions": "core/decompositions",
    "tactician.layouts": "core/layouts",
    "tactician.passes": "core/passes",
    "tactician.recognition": "core/recognition",
    "tactician.report": "core/report",
    "tactician.runtime": "core/runtime",
    "tactician.scaffold": "core/scaffold",
    "tactician.siblings": "core/siblings",
    "tactician.testing": "core/testing",
    "tactician.plugins": "plugins",
    "tactician.tactics": "tactics",
    "tactician.builtin_kernels": "builtin_kernels",
    "tactician.builtin_kernels.cpu": "builtin_kernels/cpu",
    "tactician.builtin_kernels.cuda": "builtin_kernels/cuda",
}


class CleanBuild(build):
    """Builds from nothing: what an earlier build left in build/lib would bring deleted modules back."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    cmdclass={"build": CleanBuild},
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "tactician": ["py.typed"],
        "tactician.scaffold": ["*/*.template"],
        "tactician.builtin_kernels.cuda": ["*.cu", "*.cuh"],
    },
)
