"""The front door: forms of prompts, settings per row, scores, endings, reports, the catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, NoRepeatNGramLogitsProcessor

import multispec as ms
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import UnsupportedError, UsageError
from multispec.policies import Confidence, FixedLength, Heuristic
from multispec.stream import Generation
from multispec.testing import ScriptedDrafter, ScriptedModel
from tests.models import words, zoo

IDS = list(zoo.IDS)
GREEDY = ms.Sampling(temperature=0)
SCRIPT = [2, 3, 4, 5, 6, 7, 8, 9]


def _generate(prompt: Any = None, **settings: Any) -> Any:
    settings = {"sampling": GREEDY, "max_new_tokens": 8, **settings}
    return zoo.generator("llama").generate(IDS if prompt is None else prompt, **settings)


@pytest.fixture(scope="module")
def text() -> ms.Generator:
    """A random Llama with a byte-level tokenizer."""
    return ms.load(model=zoo.build("llama", vocab_size=340), tokenizer=words.byte_level())


# ---- prompts ----


@pytest.mark.parametrize(
    "form",
    [IDS, tuple(IDS), torch.tensor(IDS), ms.Prompt(ids=torch.tensor(IDS))],
    ids=["list", "tuple", "tensor", "Prompt"],
)
def test_one_prompt_of_ids_gives_one_result(form: Any) -> None:
    """Every form of one prompt is the same prompt."""
    result = _generate(form)
    assert isinstance(result, Generation)
    assert result.tokens.tolist() == zoo.plain_generate("llama", max_new_tokens=8)
    assert result.output is None


@pytest.mark.parametrize(
    "form",
    [
        [IDS, IDS[:4]],
        [torch.tensor(IDS), torch.tensor(IDS[:4])],
        [tuple(IDS), ms.Prompt(ids=torch.tensor(IDS[:4]))],
    ],
    ids=["lists", "tensors", "mixed"],
)
def test_a_batch_of_ids_gives_a_list(form: Any) -> None:
    """A list of prompts is a list of results, in the same order."""
    found = _generate(form)
    expected = [zoo.plain_generate("llama", ids, 8) for ids in (IDS, IDS[:4])]
    assert [one.tokens.tolist() for one in found] == expected


def test_a_tensor_of_two_dimensions_is_a_batch() -> None:
    """One row or several."""
    assert len(_generate(torch.tensor([IDS, IDS]))) == 2
    assert len(_generate(torch.tensor([IDS]))) == 1


def test_text_alone_and_in_a_list(text: ms.Generator) -> None:
    """A string is one prompt, a list of strings a batch; both equal their ids."""
    settings: dict[str, Any] = {"sampling": GREEDY, "max_new_tokens": 8}
    one = text.generate("the fox", **settings)
    many = text.generate(["the fox", "日本"], **settings)
    ids = words.byte_level()("the fox")["input_ids"]
    assert one.output == many[0].output == text.generate(ids, **settings).output
    assert isinstance(one.output, str) and len(many) == 2


# ---- settings ----


def test_settings_per_row() -> None:
    """Lists give each row its own sampling, length, drafter and policy."""
    found = _generate(
        [IDS, IDS, IDS],
        sampling=[GREEDY, ms.Sampling(seed=1), ms.Sampling(seed=2)],
        max_new_tokens=[3, 5, 7],
        drafter=[None, "prompt_lookup", PromptLookup(num_draft_tokens=2)],
        policy=["auto", "fixed", Heuristic()],
    )
    assert [len(one.tokens) for one in found] == [3, 5, 7]
    assert found[0].report.drafted == 0
    alone = _generate(sampling=ms.Sampling(seed=2), max_new_tokens=7, drafter=None)
    assert found[2].tokens.tolist() == alone.tokens.tolist()


def test_the_length_defaults_to_128_symbols_or_what_the_context_holds() -> None:
    """And the cut is noted."""
    result = zoo.generator("llama").generate(IDS, sampling=GREEDY)
    assert len(result.tokens) == 128 - len(IDS)
    assert result.report.notes == ["max_new_tokens cut from 128 to 119: the context is 128"]


def test_transformers_words_choose_drafter_and_policy() -> None:
    """assistant_model, num_assistant_tokens and their kin, as in transformers' generate."""
    draft = zoo.shared("llama", 1)
    plain = _generate(drafter=None, max_new_tokens=24).tokens.tolist()
    for given in (
        {"assistant_model": draft, "num_assistant_tokens": 2},
        {"assistant_model": draft, "assistant_confidence_threshold": 0.4},
        {"assistant_model": draft, "num_assistant_tokens_schedule": "heuristic"},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    ):
        result = _generate(max_new_tokens=24, **given)
        assert result.tokens.tolist() == plain and result.report.drafted > 0
    two = _generate(max_new_tokens=24, assistant_model=draft, num_assistant_tokens=2)
    assert len(two.report.drafted_at) == 2


def test_a_loaded_draft_is_what_auto_drafts_with() -> None:
    """load(draft=...) serves drafter="auto" and drafter="draft_model"."""
    generator = ms.load(model=zoo.shared("llama"), draft=zoo.shared("llama"))
    for drafter in ("auto", "draft_model"):
        result = generator.generate(IDS, drafter=drafter, sampling=GREEDY, max_new_tokens=9)
        assert result.report.draft_calls > 0 and result.report.acceptance_rate == 1
    plain = generator.generate(IDS, drafter="none", sampling=GREEDY, max_new_tokens=9)
    assert plain.report.draft_calls == 0


def test_the_policy_off_is_plain_decoding() -> None:
    """No symbol is drafted, through the same loop."""
    result = _generate(policy="off", drafter=DraftModel(zoo.shared("llama")))
    assert result.report.drafted == 0
    assert result.tokens.tolist() == zoo.plain_generate("llama", max_new_tokens=8)


# ---- generation configs ----

CONFIGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[7], [9, 3]]},
    "sequence_bias": {"sequence_bias": [[[7], -5.0], [[20], 3.0]]},
    "suppress_tokens": {"suppress_tokens": [7, 20, 33]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 40))},
    "several ends": {"eos_token_id": list(range(30, 64)), "min_new_tokens": 3},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("drafter", [None, "prompt_lookup"])
def test_a_generation_config_does_what_it_does_in_transformers(name: str, drafter: Any) -> None:
    """The same fields, the same tokens as ``model.generate`` with that config."""
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, **CONFIGS[name])
    expected = zoo.shared("llama").generate(torch.tensor([IDS]), generation_config=config)
    found = zoo.generator("llama").generate(IDS, generation_config=config, drafter=drafter)
    assert found.tokens.tolist() == expected[0, len(IDS) :].tolist()


def test_max_length_of_a_config_counts_the_prompt() -> None:
    """As in transformers."""
    config = GenerationConfig(max_length=len(IDS) + 4)
    assert len(zoo.generator("llama").generate(IDS, generation_config=config).tokens) == 4


def test_sampling_fields_of_a_config_are_those_of_sampling() -> None:
    """do_sample with temperature, top-k, top-p, min-p and typical-p is the same Sampling."""
    fields: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95}
    config = GenerationConfig(do_sample=True, max_new_tokens=12, **fields)
    found = zoo.generator("llama").generate(IDS, generation_config=config)
    expected = _generate(sampling=ms.Sampling(**fields), max_new_tokens=12, drafter=None)
    assert found.tokens.tolist() == expected.tokens.tolist()


def test_arguments_win_over_the_config() -> None:
    """An explicit sampling and length replace those of the config."""
    config = GenerationConfig(do_sample=True, temperature=2.0, max_new_tokens=30)
    found = _generate(generation_config=config)
    assert found.tokens.tolist() == zoo.plain_generate("llama", max_new_tokens=8)


def test_a_field_that_is_not_done_is_refused() -> None:
    """By its name."""
    with pytest.raises(UnsupportedError, match="sets num_beams=4"):
        _generate(generation_config=GenerationConfig(num_beams=4))


def test_processors_of_transformers_are_taken_as_they_are() -> None:
    """A list or a LogitsProcessorList."""
    rule = NoRepeatNGramLogitsProcessor(1)
    expected = zoo.shared("llama").generate(
        torch.tensor([IDS]), max_new_tokens=12, do_sample=False, no_repeat_ngram_size=1
    )
    for given in ([rule], LogitsProcessorList([rule])):
        found = _generate(logits_processor=given, max_new_tokens=12)
        assert found.tokens.tolist() == expected[0, len(IDS) :].tolist()


# ---- scores ----


@pytest.mark.parametrize("drafter", [None, "stranger"])
def test_scores_are_those_of_a_plain_forward(drafter: Any) -> None:
    """Raw logits, processed scores and log-probabilities of the emitted symbols, drafted or not."""
    sampling = ms.Sampling(temperature=0.5, top_k=10, seed=3)
    chosen = DraftModel(zoo.shared("llama", 1)) if drafter else None
    result = _generate(sampling=sampling, drafter=chosen, output_scores=True, max_new_tokens=10)
    ids = [*IDS, *result.tokens.tolist()]
    with torch.inference_mode():
        raw = zoo.shared("llama")(torch.tensor([ids]), use_cache=False).logits[0, len(IDS) - 1 : -1]
    torch.testing.assert_close(result.logits, raw, rtol=1e-4, atol=1e-4)
    scores = raw / 0.5
    scores = scores.masked_fill(scores < scores.topk(10).values[:, -1:], -torch.inf)
    torch.testing.assert_close(result.scores, scores, rtol=1e-4, atol=1e-4)
    expected = scores.log_softmax(-1).gather(-1, result.tokens[:, None])[:, 0]
    torch.testing.assert_close(result.log_probs, expected, rtol=1e-4, atol=1e-4)


def test_without_being_asked_for_no_scores_are_kept() -> None:
    """They cost memory."""
    result = _generate()
    assert result.logits is result.scores is result.log_probs is None


# ---- endings ----


def test_finish_reasons() -> None:
    """An end id, a criterion, or the length."""
    generator = ms.Generator(ScriptedModel([2, 3, 4, 11], end_ids=(11,)))
    assert generator.generate([1], max_new_tokens=9).finish_reason == "stop"
    assert generator.generate([1], max_new_tokens=2).finish_reason == "length"
    stopped = generator.generate([1], max_new_tokens=9, stopping_criteria=lambda ids, _: ids[0, -1] == 3)
    assert (stopped.finish_reason, stopped.tokens.tolist()) == ("stop", [2, 3])


def test_a_text_is_saved_as_utf8(text: ms.Generator, tmp_path: Path) -> None:
    """save returns the path it wrote."""
    result = text.generate("the fox", max_new_tokens=8, sampling=GREEDY)
    path = result.save(tmp_path / "out.txt")
    assert path.read_text(encoding="utf-8") == result.output


def test_media_save_themselves_and_ids_do_not(tmp_path: Path) -> None:
    """An output with a save of its own is asked; without an output the error says what to do."""

    class Picture:
        def save(self, path: Path, /) -> None:
            path.write_bytes(b"pixels")

    result = _generate()
    media = Generation(tokens=result.tokens, output=Picture(), report=result.report)
    assert media.save(str(tmp_path / "a.png")).read_bytes() == b"pixels"
    with pytest.raises(UnsupportedError, match="Load the generator with a tokenizer"):
        result.save(tmp_path / "out")


# ---- reports ----


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
@pytest.mark.parametrize("policy", ["fixed", "heuristic", Confidence(), FixedLength(num_draft_tokens=3)])
def test_the_numbers_of_a_report_agree(verifier: str, policy: Any) -> None:
    """Counters add up, whatever was accepted."""
    drafter = DraftModel(zoo.shared("llama", 1))
    sampling = [ms.Sampling(temperature=2.5, seed=n) for n in range(3)]
    found = _generate([IDS] * 3, drafter=drafter, verifier=verifier, policy=policy, sampling=sampling)
    for result in found:
        report = result.report
        assert report.new_tokens == len(result.tokens) == len(result.from_draft)
        assert report.accepted == sum(result.from_draft) == sum(report.accepted_at)
        assert report.drafted == sum(report.drafted_at) >= report.accepted
        assert report.new_tokens - report.accepted in (report.rounds, report.rounds - 1)
        assert sum(report.histogram.values()) == report.rounds == report.target_calls
        assert sum(n * count for n, count in report.histogram.items()) == report.accepted
        assert report.mean_acceptance_length == report.new_tokens / report.rounds
        assert report.variation_spent == 0


def test_a_report_prints_and_is_json() -> None:
    """As a table of names and numbers, and as plain data."""
    report = _generate(drafter=DraftModel(zoo.shared("llama"))).report
    found = json.loads(json.dumps(report.to_dict()))
    assert found["new_tokens"] == 8 and found["acceptance_rate"] == 1
    assert set(found["seconds"]) == {"prefill", "draft", "verify", "overhead", "total"}
    parts = sum(found["seconds"][name] for name in ("prefill", "draft", "verify", "overhead"))
    assert abs(parts - found["seconds"]["total"]) < 1e-6
    assert "mean acceptance length" in str(report)


def test_flags_say_what_was_drafted() -> None:
    """Exactly the symbols that were accepted from a draft."""
    generator = ms.Generator(ScriptedModel(SCRIPT))
    drafter = ScriptedDrafter([2, 3, 9, 5, 6], num_draft_tokens=3)
    result = generator.generate([1], drafter=drafter, max_new_tokens=5)
    assert result.from_draft == (False, True, False, True, False)


# ---- the catalog ----


def test_every_entry_of_the_catalog_can_be_asked_for_by_its_name() -> None:
    """Of a model of words: exact ones leave the text alone, and what is lacking is named."""
    generator = ms.load(model=zoo.shared("llama"), draft=zoo.shared("llama", 1))
    plain = zoo.plain_generate("llama", max_new_tokens=6)
    for entry in [one for one in ms.catalog() if one.kind != "structure" and not one.base]:
        chosen: dict[str, Any] = {entry.kind: entry.name}
        settings = {"max_new_tokens": 6, "sampling": GREEDY, "drafter": "draft_model", **chosen}
        try:
            tokens = generator.generate(IDS, **settings).tokens.tolist()
        except (UsageError, UnsupportedError) as error:
            lacking = entry.needs or "text" not in entry.streams or "temperature above 0" in str(error)
            assert lacking, (entry.name, error)
            continue
        assert len(tokens) == 6
        assert tokens == plain or entry.exactness not in ("any", "seed", "law"), entry.name
