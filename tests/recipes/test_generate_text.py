"""``recipes/generate_text.py`` on a tiny model in a folder."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import multispec as ms
from tests.cli.conftest import save

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "generate_text.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama over bytes."""
    return str(save(tmp_path_factory.mktemp("models") / "target", seed=0))


@pytest.mark.parametrize("drafter", ["auto", "none"])
def test_prints_the_text_and_what_it_cost(
    drafter: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--model {model} --drafter {drafter} --max-new-tokens 16 --seed 3".split()
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags, "--prompt", "Once"])
    runpy.run_path(str(RECIPE), run_name="__main__")
    sampling = ms.Sampling(temperature=0.8, seed=3)
    expected = ms.load(model).generate("Once", drafter=None, sampling=sampling, max_new_tokens=16)
    shown = capsys.readouterr().out
    assert shown.startswith(f"Once{expected.output}\n\n")
    assert "mean acceptance length" in shown
