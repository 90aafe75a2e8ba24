"""What the sdist and the wheel hold, and that they install."""

import runpy
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import tactician
from packages import ROOT, FreshEnvironment, build_distributions, copy_checkout, run

FOLDERS = {
    "core": Path("tactician"),
    "plugins": Path("tactician/plugins"),
    "tactics": Path("tactician/tactics"),
    "builtin_kernels": Path("tactician/builtin_kernels"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout") / "tactician")


@pytest.fixture(scope="module")
def distributions(checkout, tmp_path_factory):
    return build_distributions(checkout, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def environment(distributions, tmp_path_factory):
    environment = FreshEnvironment(tmp_path_factory.mktemp("wheel") / "venv")
    environment.install(distributions[1])
    return environment


def package_files(root: Path) -> set[str]:
    """Return where every file that belongs into the wheel stands there."""
    found = set()
    for folder, package in FOLDERS.items():
        for path in (root / folder).rglob("*"):
            if path.suffix in (".py", ".cu", ".cuh", ".template") or path.name == "py.typed":
                found.add(str(package / path.relative_to(root / folder)))
    return found


def test_every_package_is_mapped(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    mapped = runpy.run_path(str(ROOT / "setup.py"))["PACKAGES"]
    there = {
        str(p.parent.relative_to(ROOT)) for folder in FOLDERS for p in (ROOT / folder).rglob("__init__.py")
    }
    assert set(mapped.values()) == there


def test_the_wheel_holds_the_package_and_nothing_else(checkout, distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = wheel.namelist()
    metadata = {n for n in names if ".dist-info/" in n}
    assert set(names) - metadata == package_files(checkout)
    assert any(n.endswith("licenses/LICENSE") for n in metadata)


def test_the_sdist_holds_all_that_testing_and_rebuilding_need(checkout, distributions):
    with tarfile.open(distributions[0]) as sdist:
        names = {n.partition("/")[2] for n in sdist.getnames()}
    wanted = {str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_file()}
    assert wanted - names == set()
    assert not [n for n in names if "__pycache__" in n or n.startswith("build/")]


def test_leftovers_of_an_earlier_build_stay_out_of_the_wheel(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    stale = checkout / "build" / "lib" / "tactician" / "deleted.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        tmp_path,
        checkout,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "tactician/deleted.py" not in archive.namelist()


def test_the_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tactician.__version__ == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_works_where_it_is_installed(environment, tmp_path):
    where = environment.run("-c", "import tactician; print(tactician.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(environment.python.parents[1])
    command = environment.python.with_name("tactician")
    assert tactician.__version__ in run(command, "--version", cwd=tmp_path)
    assert "build" in run(command, "--help", cwd=tmp_path)


def test_an_editable_install_works(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    environment = FreshEnvironment(tmp_path / "venv")
    environment.install("--editable", checkout)
    code = "import tactician, tactician.tactics.registry as r; print(tactician.__file__, r.__file__)"
    where = environment.run("-c", code, cwd=tmp_path).split()
    assert [Path(w).relative_to(checkout) for w in where] == [
        Path("core/__init__.py"),
        Path("tactics/registry.py"),
    ]
