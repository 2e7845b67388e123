"""The training recipe runs from data to exported folders that generate and draft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import multispec as ms

RECIPE = Path(__file__).parents[2] / "recipes" / "train_text.py"
STORY = (
    "The fox ran over the hill and looked at the moon. It was cold, and the wind went through the trees.\n\n"
)
MODULE = 'def add(a, b):\n    """Return the sum."""\n    return a + b\n\n\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, at sizes that take seconds."""
    root = tmp_path_factory.mktemp("training")
    for folder, name, text in (("books", "story.txt", STORY), ("code", "module.py", MODULE)):
        (root / folder).mkdir()
        for number in range(3):
            (root / folder / f"{number}_{name}").write_text(text * (400 + number), encoding="utf-8")
    _run(root)
    return root


def _run(root: Path) -> None:
    command = [sys.executable, str(RECIPE), "--smoke", f"--books={root / 'books'}", f"--code={root / 'code'}"]
    command += [f"--out={root / 'run'}", f"--export={root / 'export'}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


def test_the_folders_are_ordinary_ones(trained: Path) -> None:
    """Target and draft load with transformers, and the draft is the smaller one."""
    sizes = [
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(trained / "export" / name).parameters())
        for name in ("target", "draft")
    ]
    assert sizes[1] < sizes[0]


def test_what_was_trained_generates_and_drafts(trained: Path) -> None:
    """The exported pair works together, exactly."""
    generator = ms.load(trained / "export" / "target", draft=trained / "export" / "draft")
    sampling = ms.Sampling(temperature=0.8, seed=1)
    drafted = generator.generate("The fox", sampling=sampling, max_new_tokens=12)
    plain = generator.generate("The fox", sampling=sampling, max_new_tokens=12, drafter=None)
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert drafted.report.draft_calls > 0
