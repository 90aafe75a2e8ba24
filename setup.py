"""Maps the repository's folders onto the one import namespace ``tactician``."""

from setuptools import setup

PACKAGES = {
    "tactician": "core",
    "tactician.cli": "core/cli",
    "tactician.passes": "core/passes",
    "tactician.report": "core/report",
    "tactician.runtime": "core/runtime",
    "tactician.plugins": "plugins",
    "tactician.tactics": "tactics",
    "tactician.builtin_kernels": "builtin_kernels",
    "tactician.builtin_kernels.cpu": "builtin_kernels/cpu",
    "tactician.builtin_kernels.cuda": "builtin_kernels/cuda",
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "tactician": ["py.typed"],
        "tactician.builtin_kernels.cuda": ["*.cu", "*.cuh"],
    },
)
