"""Wheel, sdist, editable install and source tree hold the same files, csrc/ and kernels/ among them."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
)
FOLDERS = ("srnas_fast", "csrc", "kernels", "python_tests")

pytestmark = pytest.mark.skipif(
    not ((ROOT / "setup.py").is_file() and (ROOT / "csrc").is_dir() and (ROOT / "kernels").is_dir()),
    reason="the tests do not lie in a source checkout",
)


def run(*command, **options):
    """Run a command of this Python quietly; its output shows if it fails."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment | options.pop("env", {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def package_files(package):
    """Every file of a package folder, through its links, as 'srnas_fast/...'."""
    return {
        (Path(folder) / name).relative_to(package.parent).as_posix()
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if not name.endswith((".pyc", ".pyo")) and Path(folder).name != "__pycache__"
    }


def wheel_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("srnas_fast/") and name[-1] != "/"}


def only(folder, pattern):
    [path] = folder.glob(pattern)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree, links as links, so that building leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "srnas_fast"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return copy


@pytest.fixture(scope="module")
def dist(tree, tmp_path_factory):
    """An sdist, and the wheel built from what the sdist holds."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel that `pip install .` builds from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, tree)
    return only(out, "srnas_fast-*.whl")


def imported(code, *arguments, path=""):
    """Run code without site-packages, so that srnas_fast can come from nowhere but where the test says."""
    return run("-S", "-c", code, *arguments, env={"PYTHONPATH": str(path)}, cwd="/").strip()


def test_links_are_relative_and_lead_beside_the_package():
    for name in ("csrc", "kernels"):
        link = ROOT / "srnas_fast" / name
        assert link.is_symlink(), f"{link} must be a link (on Windows: git config core.symlinks true)"
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == (ROOT / name).resolve()


def test_tree_holds_the_linked_rooms(tree):
    files = package_files(tree / "srnas_fast")
    assert {"srnas_fast/__init__.py", "srnas_fast/kernels/__init__.py", "srnas_fast/csrc/README.md"} <= files
    assert "srnas_fast/csrc/gpu/kernels.h" in files  # read at run time


def test_wheel_holds_exactly_the_files_of_the_tree(wheel, tree):
    assert wheel_files(wheel) == package_files(tree / "srnas_fast")


def test_new_native_files_travel_without_being_listed(tree, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(tree, grown, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for name in ("csrc/bindings.cpp", "csrc/gpu/deep/kernel.h", "kernels/one.py"):
        (grown / name).parent.mkdir(parents=True, exist_ok=True)
        (grown / name).write_text("")
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, grown)
    added = {
        "srnas_fast/csrc/bindings.cpp",
        "srnas_fast/csrc/gpu/deep/kernel.h",
        "srnas_fast/kernels/one.py",
    }
    assert added <= wheel_files(only(tmp_path, "*.whl"))


def test_sdist_builds_the_same_wheel(dist, wheel):
    assert wheel_files(only(dist, "*.whl")) == wheel_files(wheel)


def test_sdist_holds_no_links_and_all_sources(dist, tree):
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert package_files(tree / "srnas_fast") <= files
    assert {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md"} <= files
    assert "python_tests/test_packaging.py" in files


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata_file = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        info = Path(metadata_file).parent.as_posix()
        metadata = archive.read(metadata_file).decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "Name: srnas-fast\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.10\n" in metadata
    assert "srnas-fast = srnas_fast.cli:main" in scripts


def test_installed_wheel_imports(wheel, tmp_path):
    target = tmp_path / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
    code = "import srnas_fast as s, srnas_fast.kernels as k; print(s.__version__, s.__file__, k.__file__)"
    version, package, kernels = imported(code, path=target).split()
    assert version == "0.7.0"
    assert Path(package) == target / "srnas_fast" / "__init__.py"
    assert Path(kernels) == target / "srnas_fast" / "kernels" / "__init__.py"
    assert (target / "srnas_fast" / "csrc" / "README.md").is_file()


def test_editable_install_sees_the_tree(tree, tmp_path):
    target = tmp_path / "site"
    run(
        *("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--target", target, "--editable", tree),
    )
    code = (
        "import pathlib, site, sys; site.addsitedir(sys.argv[1]); "
        "import srnas_fast, srnas_fast.kernels as k; "
        "home = pathlib.Path(srnas_fast.__file__).parent; "
        "print(home, k.__file__, (home / 'csrc/README.md').is_file())"
    )
    home, kernels, native = imported(code, target).split()
    assert Path(home).samefile(tree / "srnas_fast")
    assert Path(kernels).samefile(tree / "kernels" / "__init__.py")
    assert native == "True"


def test_source_tree_imports(tree):
    code = "import srnas_fast.kernels as k; print(k.__file__)"
    assert Path(imported(code, path=tree)) == tree / "srnas_fast" / "kernels" / "__init__.py"


def test_constraints_pin_every_direct_dependency(wheel):
    """A dependency that setup.py names must be pinned, or the tested set of versions has a hole."""
    requirements = pytest.importorskip("packaging.requirements")
    utils = pytest.importorskip("packaging.utils")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    needed = [requirements.Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    text = (ROOT / "constraints.txt").read_text()
    pins = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            pins[utils.canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    for requirement in needed:
        pinned = pins.get(utils.canonicalize_name(requirement.name))
        assert pinned and requirement.specifier.contains(pinned), f"{requirement} is not met by constraints.txt"
