"""The benchmark runs from start to end on tiny models and keeps every figure that it prints."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark_text.py"


def _save(folder: Path, layers: int) -> Path:
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {word: number for number, word in enumerate("<unk> <end> Once upon a time there was".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of one short run."""
    out = tmp_path / "figures.json"
    flags = {
        "target": _save(tmp_path / "target", 2),
        "draft": _save(tmp_path / "draft", 1),
        "new-tokens": 8,
        "long-tokens": 16,
        "runs": 1,
        "out": out,
    }
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *(f"--{name}={value}" for name, value in flags.items())])
    runpy.run_path(str(RECIPE), run_name="__main__")
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


def test_every_figure_of_the_benchmark_is_kept(figures: list[dict[str, Any]]) -> None:
    """Speed, own cost, equality, linearity and memory: each once, each a positive number."""
    names = [row["what"] for row in figures]
    assert len(names) == len(set(names))
    for part in ("tokens per second", "own cost per round", "identical", "new tokens", "peak memory"):
        assert any(part in name for name in names)
    assert all(row["value"] > 0 for row in figures)


def test_drafting_leaves_the_tokens_as_they_are(figures: list[dict[str, Any]]) -> None:
    """The benchmark itself checks that plain and drafted tokens are identical."""
    same = [row["value"] for row in figures if "identical" in row["what"]]
    assert same == [1.0, 1.0]
