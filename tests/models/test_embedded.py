"""The embedded text models: ordinary folders, small enough, and exact under drafting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import multispec as ms
from multispec.loading import assets

FOLDER = assets() / "text"
PROMPTS = ("Once upon a time", "def fibonacci(n):")


@pytest.fixture(scope="module")
def generator() -> ms.Generator:
    """Both models, loaded once."""
    return ms.load("text")


def _parameters(folder: Path) -> int:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_target_is_worth_accelerating_and_the_draft_is_cheap() -> None:
    """10 to 30 M parameters and at least 6 layers; the draft has at most a tenth of them."""
    target, draft = _parameters(FOLDER / "target"), _parameters(FOLDER / "draft")
    config = AutoModelForCausalLM.from_pretrained(FOLDER / "target").config
    assert 9.5e6 <= target <= 30e6
    assert config.num_hidden_layers >= 6
    assert draft <= target / 10


def test_both_models_fit_the_size_that_is_allowed() -> None:
    """At most 36 MB together."""
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 36e6


def test_the_folders_load_without_our_code() -> None:
    """transformers alone reads them, in a process that never imports multispec."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "[(M.from_pretrained(f), T.from_pretrained(f)) for f in sys.argv[1:]]; "
        "assert 'multispec' not in sys.modules"
    )
    folders = [str(FOLDER / name) for name in ("target", "draft")]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, capture_output=True)


def test_target_and_draft_share_a_tokenizer_that_loses_nothing() -> None:
    """The same ids on both sides, and every text comes back as it was."""
    target, draft = (AutoTokenizer.from_pretrained(FOLDER / name) for name in ("target", "draft"))
    assert target.get_vocab() == draft.get_vocab()
    for text in ("def f(x):\n    return  x\n", "“Où?” said Alice — 你好 🙂", "\ttabs and  spaces\n\n"):
        assert target.decode(target(text)["input_ids"]) == text


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["draft_model", "prompt_lookup"])
def test_drafting_leaves_the_text_as_it_is(generator: ms.Generator, drafter: str, temperature: float) -> None:
    """The promise of the default verifier, on the models that everybody has."""
    sampling = ms.Sampling(temperature=temperature, seed=3)
    settings: dict[str, Any] = {"sampling": sampling, "max_new_tokens": 40}
    plain = generator.generate(list(PROMPTS), drafter=None, **settings)
    drafted = generator.generate(list(PROMPTS), drafter=drafter, **settings)
    assert [one.output for one in drafted] == [one.output for one in plain]


def test_the_draft_is_right_often_enough_to_pay(generator: ms.Generator) -> None:
    """Close to two symbols per pass of the target and more, over stories and code, at temperature 0.8."""
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    sampling = [ms.Sampling(temperature=0.8, seed=seed) for seed in range(len(prompts))]
    results = generator.generate(prompts, drafter="draft_model", sampling=sampling, max_new_tokens=40)
    emitted = sum(result.report.new_tokens for result in results)
    assert emitted / sum(result.report.target_calls for result in results) > 1.8
