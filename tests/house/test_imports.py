"""The import contract of pyproject.toml holds, and would notice if it did not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_contract_holds() -> None:
    run = lint_imports(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("multispec/errors.py", "import multispec.modalities.text"),
        ("multispec/stream.py", "import multispec.verifiers"),
        ("modalities/text/__init__.py", "import multispec.modalities.speech"),
        ("modalities/text/__init__.py", "import recipes.train_text"),
        ("multispec/errors.py", "import modalities.text"),
    ],
)
def test_contract_notices(tmp_path: Path, module: str, statement: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for folder in ("multispec", "modalities", "assets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{statement}\n")
    run = lint_imports(tmp_path)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout
