"""scripts/mend_torchaudio.py, on packages that fail the way torchaudio fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mend_torchaudio.py"

NEEDS_CUDA = """
from pathlib import Path
if list(Path(__file__).parent.glob("lib/*.so")):
    raise OSError("Could not load this library: lib/libtorchaudio.so")
"""
NEEDS_ANOTHER_PACKAGE = "import a_package_that_nobody_has"
WORKS = ""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A place for packages, with a transformers that needs its torchaudio."""
    (tmp_path / "transformers.py").write_text("import torchaudio\nclass LlamaForCausalLM: ...\n")
    return tmp_path


def install(site: Path, source: str) -> Path:
    package = site / "torchaudio"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    (package / "lib" / "libtorchaudio.so").write_text("linked to CUDA")
    return package


def mend(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(SCRIPT)]
    environment = {"PYTHONPATH": str(site)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def libraries(package: Path) -> list[str]:
    return sorted(path.name for path in (package / "lib").iterdir())


def test_libraries_that_do_not_load_are_set_aside(site: Path) -> None:
    package = install(site, NEEDS_CUDA)
    run = mend(site)
    assert run.returncode == 0, run.stderr
    assert "now pure Python (set aside in its lib: libtorchaudio.so)" in run.stdout
    assert libraries(package) == ["libtorchaudio.so.set-aside"]


def test_a_second_run_changes_nothing(site: Path) -> None:
    package = install(site, NEEDS_CUDA)
    mend(site)
    run = mend(site)
    assert run.returncode == 0, run.stderr
    assert "imports, nothing to mend" in run.stdout
    assert libraries(package) == ["libtorchaudio.so.set-aside"]


def test_a_torchaudio_that_works_is_left_alone(site: Path) -> None:
    package = install(site, WORKS)
    run = mend(site)
    assert run.returncode == 0, run.stderr
    assert libraries(package) == ["libtorchaudio.so"]


def test_another_fault_is_reported_and_nothing_is_touched(site: Path) -> None:
    package = install(site, NEEDS_ANOTHER_PACKAGE)
    run = mend(site)
    assert run.returncode == 1
    assert "not a fault that can be mended here: ModuleNotFoundError" in run.stdout
    assert "`import torchaudio` fails: ModuleNotFoundError" in run.stderr
    assert libraries(package) == ["libtorchaudio.so"]


def test_without_torchaudio_there_is_nothing_to_mend(site: Path) -> None:
    (site / "transformers.py").write_text("class LlamaForCausalLM: ...\n")
    run = mend(site)
    assert run.returncode == 0, run.stderr
    assert "not installed, nothing to mend" in run.stdout


def test_this_environment_is_mended() -> None:
    command = [sys.executable, "-c", "import torchaudio; from transformers import LlamaForCausalLM"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
