"""An installed wheel adds `multispec` to site-packages, whole, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"multispec": "multispec", "modalities": "multispec/modalities"}
LEFT_BEHIND = ("__pycache__", "*.pyc", ".DS_Store")


def files_below(folder: Path) -> set[str]:
    """The files that a folder holds itself, links and caches aside."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(path.match(pattern) for pattern in LEFT_BEHIND)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what a build reads, since setuptools leaves its own build folder behind."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns(*LEFT_BEHIND)
    for name in ("multispec", "modalities", "assets"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    run = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return ZipFile(wheel).namelist()


def test_top_level_is_multispec_only(names: list[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    top = {name.split("/")[0] for name in names}
    assert top == {"multispec", f"multispec-{version}.dist-info"}


def test_each_file_is_there_once(names: list[str]) -> None:
    assert len(names) == len(set(names))


def test_nothing_is_missing(source: Path, names: list[str]) -> None:
    expected = {
        "multispec/py.typed",
        *(f"multispec/{name}" for name in python_files(source / "multispec")),
        *(f"multispec/modalities/{name}" for name in python_files(source / "modalities")),
        *(f"multispec/assets/{name}" for name in files_below(source / "assets")),
    }
    assert expected <= set(names)


def test_recipes_and_tests_stay_out(names: list[str]) -> None:
    assert not [name for name in names if {"recipes", "tests"} & set(name.split("/"))]


def test_installed_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    """As an installation without links would: everything comes from the wheel."""
    ZipFile(wheel).extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from importlib.resources import files\n"
        "import multispec, multispec.cli, multispec.modalities.text\n"
        "assert files('multispec.assets').joinpath('README.md').is_file()\n"
        "names = [name for name in sys.modules if name.split('.')[0] == 'multispec']\n"
        "strays = [n for n in names if not str(sys.modules[n].__file__).startswith(sys.argv[1])]\n"
        "assert not strays, strays\n"
    )
    command = [sys.executable, "-I", "-c", program, str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def python_files(folder: Path) -> set[str]:
    return {name for name in files_below(folder) if name.endswith(".py")}
