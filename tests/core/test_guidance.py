"""Guidance: conventions against transformers' own processors, and both branches as one row of the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.generation import logits_process

import multispec as ms
from multispec.branches import begin
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import PromptError, SamplingError, UsageError
from multispec.guidance import Guidance
from multispec.sampling import Noise, Sampling
from multispec.stream import Generation, Prompt
from multispec.testing import TableModel, TreeDrafter, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.models import zoo

C, U = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
AT = [0, 1, 2]


def test_linear_is_that_of_transformers() -> None:
    theirs: Any = logits_process.ClassifierFreeGuidanceLogitsProcessor(guidance_scale=2.5)
    expected = theirs(torch.zeros(3, 1, dtype=torch.long), torch.cat([C, U]))
    assert torch.allclose(Guidance(scale=2.5).mix(C, U, AT), expected)


def test_masked_is_that_of_dia() -> None:
    """The guided scores choose the k best; the values are conditional."""
    theirs: Any = logits_process.DiaClassifierFreeGuidanceLogitsProcessor(
        guidance_scale=2.5, guidance_top_k=5
    )
    expected = theirs(torch.zeros(3, 1, dtype=torch.long), torch.cat([C, U]))
    found = Guidance(scale=2.5, convention="masked", top_k=5).mix(C, U, AT)
    assert torch.equal(found, expected)


def test_extrapolate_is_linear_with_one_more() -> None:
    found = Guidance(scale=1.5, convention="extrapolate").mix(C, U, AT)
    assert torch.allclose(found, Guidance(scale=2.5).mix(C, U, AT), atol=1e-5)


def test_log_softmax_keeps_what_is_banned_in_both_branches() -> None:
    c, u = C.clone(), U.clone()
    c[:, 3] = u[:, 3] = -torch.inf
    found = Guidance(scale=2.0, convention="log_softmax").mix(c, u, AT)
    assert bool((found[:, 3] == -torch.inf).all()) and not bool(found.isnan().any())


def test_outside_the_interval_p_is_conditional_to_the_last_bit() -> None:
    found = Guidance(scale=3.0, start=1, stop=2).mix(C, U, AT)
    assert torch.equal(found[0], C[0]) and torch.equal(found[2], C[2])
    assert torch.allclose(found[1], U[1] + 3 * (C[1] - U[1]))


def test_schedules_grow_from_neutral_to_the_scale() -> None:
    for schedule, middle in (("linear", 2.0), ("cosine", 2.0)):
        found = Guidance(scale=3.0, schedule=schedule, length=11)
        assert [round(found.scale_at(p), 6) for p in (0, 5, 10, 99)] == [1.0, middle, 3.0, 3.0]
    assert Guidance(scale=3.0, schedule="cosine", length=11).scale_at(1) < 1.1


def test_half_precision_is_mixed_in_float32() -> None:
    found = Guidance(scale=7.0).mix(C.bfloat16(), U.bfloat16(), AT)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": -1.0}, "finite number >= 0"),
        ({"scale": float("nan")}, "finite number >= 0"),
        ({"convention": "linnear"}, "Unknown guidance convention"),
        ({"schedule": "steep"}, "Unknown guidance schedule"),
        ({"schedule": "linear"}, "needs the length"),
        ({"convention": "masked"}, "top_k >= 1"),
        ({"start": 4, "stop": 3}, "0 <= start <= stop"),
    ],
)
def test_what_cannot_be_right_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Guidance(**wrong)


def test_neutral_guidance_runs_one_branch() -> None:
    """A scale that changes nothing costs nothing."""
    for guidance in (
        Guidance(scale=1.0),
        Guidance(scale=0.0, convention="extrapolate"),
        Guidance(scale=4, stop=0),
    ):
        prompt = Prompt(ids=torch.tensor([1]), guidance=guidance, unconditional=Prompt(ids=torch.tensor([2])))
        model = TableModel()
        begin(model, [prompt], [9], 4)
        assert guidance.neutral and len(model.sessions[0].prefill().logits) == 1


# ---- through the loop ----

GUIDED = Prompt(
    ids=torch.tensor([1, 2]), guidance=Guidance(scale=2.0), unconditional=Prompt(ids=torch.tensor([3]))
)


def guided(prompt: Prompt = GUIDED, **changes: Any) -> Any:
    return replace(row(**changes), prompt=prompt)


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_the_law_is_that_of_the_mixed_logits(verifier: str) -> None:
    """Joint law of 2 symbols by enumeration through the loop; with order 2 the branches differ all along."""
    model = TableModel(5, order=3, seed=4)
    draft = TableModel(5, seed=9, strict=False)

    def run(noise: Noise) -> tuple[int, ...]:
        changes: dict[str, Any] = {"noise": noise, "max_new_tokens": 2}
        if verifier == "rejection":
            changes |= {"drafter": TreeDrafter(draft, kind="sampled"), "verifier": Rejection()}
        return tuple(play(model, guided(**changes))[0].tokens.tolist())

    found = enumerate_law(run, horizon=2)
    expected: dict[tuple[int, ...], float] = {}
    for a, pa in enumerate(_law(model, [])):
        for b, pb in enumerate(_law(model, [a])):
            expected[a, b] = pa * pb
    assert max(abs(found.get(pair, 0.0) - p) for pair, p in expected.items()) < 1e-9


def _law(model: TableModel, made: list[int]) -> list[float]:
    c, u = model.after([1, 2, *made], 2), model.after([3, *made], 1)
    found: list[float] = (u + 2.0 * (c - u)).softmax(-1).tolist()
    return found


def _generate(generator: Any, **settings: Any) -> list[list[int]]:
    found = generator.generate([list(zoo.IDS), [7, 3], [5, 5, 9, 2]], max_new_tokens=24, **settings)
    return [one.tokens.tolist() for one in found]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafting_changes_nothing_under_guidance(family: str, temperature: float) -> None:
    """Both branches are rolled back together, in every way of running a model, in batches too."""
    generator = zoo.generator(family)
    settings: dict[str, Any] = {
        "guidance": [ms.Guidance(scale=2.0, convention="log_softmax"), None, 1.5],
        "sampling": Sampling(temperature=temperature, seed=5),
    }
    plain = _generate(generator, drafter=None, **settings)
    for drafter in (
        PromptLookup(),
        DraftModel(generator.target),
        DraftModel(generator.target, guidance=False),
    ):
        assert _generate(generator, drafter=drafter, **settings) == plain
    settings["guidance"] = 2.0
    alone = generator.generate(list(zoo.IDS), max_new_tokens=24, drafter=None, **settings)
    assert alone.tokens.tolist() == plain[0]


def test_a_guided_draft_model_of_its_own_target_is_always_right() -> None:
    generator = zoo.generator("llama")
    asked: dict[str, Any] = {"guidance": 2.0, "max_new_tokens": 24, "sampling": Sampling(seed=1)}
    both = generator.generate(list(zoo.IDS), drafter=DraftModel(generator.target), **asked)
    one = generator.generate(list(zoo.IDS), drafter=DraftModel(generator.target, guidance=False), **asked)
    assert both.report.acceptance_rate == 1.0 > one.report.acceptance_rate
    assert both.tokens.tolist() == one.tokens.tolist()


def _theirs(model: Any, ids: torch.Tensor, **words: Any) -> list[int]:
    found: list[int] = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, **words
    )[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("negative", [None, [[4, 8, 2]]])
def test_guided_generate_of_transformers_is_ours(negative: list[list[int]] | None) -> None:
    """guidance_scale of generate: alone, in our loop inside generate, and from Generator.generate."""
    generator = zoo.generator("llama")
    model, ids = generator.target.model, torch.tensor([zoo.IDS])  # type: ignore[attr-defined]
    words: dict[str, Any] = {"guidance_scale": 1.7}
    if negative is not None:
        words["negative_prompt_ids"] = torch.tensor(negative)
    expected = _theirs(model, ids, **words)
    assert expected != _theirs(model, ids)
    assert _theirs(model, ids, custom_generate=ms.speculative("prompt_lookup"), **words) == expected
    ours = generator.generate(
        list(zoo.IDS),
        guidance=1.7,
        negative=None if negative is None else torch.tensor(negative[0]),
        max_new_tokens=16,
        sampling=Sampling(temperature=0),
    )
    assert ours.tokens.tolist() == expected


def test_a_generation_config_may_ask_for_guidance() -> None:
    from transformers import GenerationConfig

    generator = zoo.generator("llama")
    config = GenerationConfig(guidance_scale=1.7, max_new_tokens=16)
    found = generator.generate(list(zoo.IDS), generation_config=config)
    asked = generator.generate(
        list(zoo.IDS), guidance=1.7, max_new_tokens=16, sampling=Sampling(temperature=0)
    )
    assert found.tokens.tolist() == asked.tokens.tolist()


def test_wrong_requests_are_named_before_anything_runs() -> None:
    generator = zoo.generator("llama")
    with pytest.raises(UsageError, match="guidance is a scale or a"):
        generator.generate([5, 3], guidance="strong")
    with pytest.raises(UsageError, match="one value or one per prompt"):
        generator.generate([[5], [3]], guidance=[1.0, 2.0, 3.0])
    with pytest.raises(PromptError, match="must lie in"):
        generator.generate([5, 3], guidance=2.0, negative=torch.tensor([zoo.VOCABULARY]))


def test_each_symbol_of_a_guided_row_counts_once() -> None:
    """Two branches are one pass: target calls are those of a row without guidance."""
    made: list[Generation] = play(TableModel(), guided(max_new_tokens=6))
    assert made[0].report.target_calls == 6
    assert Counter(made[0].from_draft) == {False: 6}
