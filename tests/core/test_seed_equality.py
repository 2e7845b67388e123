"""The same seed gives the same tokens: any drafter, any draft length, any neighbours, or none."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters import DraftModel, PromptLookup
from multispec.policies import Confidence, FixedLength, Heuristic
from multispec.testing import ScriptedDrafter, TreeDrafter
from tests.models import zoo

pytestmark = pytest.mark.usefixtures("unchecked")

PROMPTS = 200
LENGTH = 10
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 1.1, "top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "bad_words": [[5], [9, 3]]},
    {"temperature": 0, "frequency_penalty": 0.3},
)


def _prompts() -> list[list[int]]:
    rng = random.Random(0)
    symbols = range(3, zoo.VOCABULARY)
    return [rng.choices(symbols, k=rng.randint(1, 14)) for _ in range(PROMPTS)]


def _sampling(n: int) -> ms.Sampling:
    return ms.Sampling(seed=1000 + n, **SETTINGS[n % len(SETTINGS)])


def _generate(chosen: list[int], **settings: Any) -> list[list[int]]:
    prompts = _prompts()
    found = zoo.generator("llama").generate(
        [prompts[n] for n in chosen],
        sampling=[_sampling(n) for n in chosen],
        max_new_tokens=LENGTH,
        **settings,
    )
    return [one.tokens.tolist() for one in found]


@cache
def _plain() -> list[list[int]]:
    """Every prompt alone and without a drafter, its settings and its seed by its number."""
    return [_generate([n], drafter=None)[0] for n in range(PROMPTS)]


def _batches(size: int) -> list[list[int]]:
    order = list(range(PROMPTS))
    random.Random(size).shuffle(order)
    return [order[start : start + size] for start in range(0, PROMPTS, size)]


@pytest.mark.parametrize("drafter", ["none", "draft_model", "prompt_lookup"])
def test_200_prompts_in_batches_of_eight_are_each_prompt_alone(drafter: str) -> None:
    """Ragged batches in mixed order, each row with its own seed and settings, equal plain decoding alone."""
    stranger = DraftModel(zoo.shared("llama", 1), num_draft_tokens=3)
    chosen = stranger if drafter == "draft_model" else drafter
    for batch in _batches(8):
        assert _generate(batch, drafter=chosen) == [_plain()[n] for n in batch]


def test_drafting_for_one_prompt_changes_nothing() -> None:
    """200 prompts in batch 1, drafters in turn: a stranger, itself, prompt lookup, random trees."""
    drafters: list[Any] = [
        DraftModel(zoo.shared("llama", 1), num_draft_tokens=4),
        DraftModel(zoo.shared("llama")),
        PromptLookup(),
        TreeDrafter(),
    ]
    for n in range(PROMPTS):
        assert _generate([n], drafter=drafters[n % 4]) == [_plain()[n]], f"prompt {n}"


def test_rows_of_one_batch_may_draft_differently() -> None:
    """A drafter and a policy per row, some rows without: nobody's tokens change."""
    stranger = DraftModel(zoo.shared("llama", 1))
    drafters = [stranger, None, PromptLookup(), TreeDrafter(), stranger, "prompt_lookup"]
    policies = [Heuristic(), "fixed", FixedLength(num_draft_tokens=1), "auto", Confidence(), "off"]
    batch = list(range(40, 46))
    found = _generate(batch, drafter=drafters, policy=policies)
    assert found == [_plain()[n] for n in batch]


@pytest.mark.parametrize("right", [0.0, 0.3, 0.7, 0.95])
def test_drafts_that_are_right_some_of_the_time(right: float) -> None:
    """Every pattern of acceptance ends in the same tokens."""
    rng = random.Random(right)
    for n in range(0, PROMPTS, 8):
        plain = _plain()[n]
        script = [token if rng.random() < right else 4 for token in plain]
        drafter = ScriptedDrafter(script, num_draft_tokens=1 + n % 7)
        assert _generate([n], drafter=drafter) == [plain]


def test_seeds_and_samples_differ() -> None:
    """Another seed or another sample number is another draw; the same pair is the same."""
    settings: dict[str, Any] = {"drafter": "prompt_lookup", "max_new_tokens": LENGTH}
    samplings = [ms.Sampling(seed=seed, sample=sample) for seed in (1, 2) for sample in (0, 1)]
    generator = zoo.generator("llama")
    found = generator.generate([list(zoo.IDS)] * 4, sampling=samplings, **settings)
    outputs = {tuple(one.tokens.tolist()) for one in found}
    assert len(outputs) == 4
    again = generator.generate(list(zoo.IDS), sampling=samplings[2], **settings)
    assert again.tokens.tolist() == found[2].tokens.tolist()


def test_the_model_is_float32_here() -> None:
    """What this file promises, it promises in float32; half precision has its own rule (trap 19)."""
    assert {p.dtype for p in zoo.shared("llama").parameters()} == {torch.float32}
