"""``model.generate(custom_generate=ms.speculative(...))`` is ``model.generate``, only sooner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    StopStringCriteria,
)

import multispec as ms
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from tests.models import words, zoo

LENGTH = 16
ONE = torch.tensor([list(zoo.IDS)])
RAGGED = torch.tensor(
    [[0, 0, 0, 5, 9, 3, 7, 5, 9], [4, 8, 5, 9, 3, 8, 4, 5, 9], [0, 0, 0, 0, 0, 0, 0, 33, 5]]
)
MASK = (RAGGED != 0).long()
GREEDY: dict[str, Any] = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}


def _llama(**changes: Any) -> Any:
    return zoo.build("llama", **changes) if changes else zoo.shared("llama")


def _stranger() -> DraftModel:
    return DraftModel(zoo.shared("llama", 1), num_draft_tokens=3)


def _itself() -> DraftModel:
    return DraftModel(zoo.shared("llama"), num_draft_tokens=4)


DRAFTERS: dict[str, Any] = {
    "stranger": _stranger,
    "itself": _itself,
    "lookup": PromptLookup,
    "none": lambda: None,
}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_equals_plain_generate(drafter: str) -> None:
    """One prompt, greedy: the same tensor, prompt included."""
    found = _llama().generate(ONE, custom_generate=ms.speculative(DRAFTERS[drafter]()), **GREEDY)
    assert torch.equal(found, _llama().generate(ONE, **GREEDY))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mamba", "bloom"])
@pytest.mark.parametrize("drafter", ["stranger", "lookup"])
def test_a_left_padded_batch_equals_plain_generate(name: str, drafter: str) -> None:
    """Ragged rows, padded on the left as transformers wants them: the same tensor."""
    chosen = DraftModel(zoo.shared(name, 1)) if drafter == "stranger" else PromptLookup()
    model = zoo.shared(name)
    settings = {**GREEDY, "max_new_tokens": 8}
    found = model.generate(RAGGED, attention_mask=MASK, custom_generate=ms.speculative(chosen), **settings)
    if name == "mamba":  # its own generate runs the padding too
        rows = [model.generate(row[row != 0][None], **settings)[0, -8:] for row in RAGGED]
        assert torch.equal(found, torch.cat([RAGGED, torch.stack(rows)], 1))
    else:
        assert torch.equal(found, model.generate(RAGGED, attention_mask=MASK, **settings))


def _ending() -> tuple[Any, list[int]]:
    """A model whose greedy rows end at different places, and its end ids."""
    plain = _llama().generate(RAGGED, attention_mask=MASK, **GREEDY)[:, RAGGED.shape[1] :].tolist()
    return _llama(), [plain[0][3], plain[1][6]]


def test_rows_that_end_early_are_padded() -> None:
    """With several end ids rows stop where plain generate stops, and hold the padding id after that."""
    model, ends = _ending()
    settings = {**GREEDY, "attention_mask": MASK, "eos_token_id": ends}
    found = model.generate(RAGGED, custom_generate=ms.speculative(_itself()), **settings)
    assert torch.equal(found, model.generate(RAGGED, **settings))
    assert bool((found == 0).any())


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("batch", [1, 2])
def test_encoder_decoder_equals_plain_generate(name: str, batch: int) -> None:
    """Encoder inputs, one row and two, with a mask of the encoder."""
    ids = torch.tensor([list(zoo.IDS), [7, 7, 12, 30, 5, 0, 0, 0, 0]])[:batch]
    settings = {**GREEDY, "attention_mask": (ids != 0).long()}
    for drafter in (PromptLookup(), DraftModel(zoo.shared(name, 1))):
        found = zoo.shared(name).generate(ids, custom_generate=ms.speculative(drafter), **settings)
        assert torch.equal(found, zoo.shared(name).generate(ids, **settings))


def test_several_answers_to_one_prompt_differ_and_repeat() -> None:
    """num_return_sequences gives different samples; torch.manual_seed decides which."""

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        loop = ms.speculative(_stranger())
        settings: dict[str, Any] = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 8}
        found: torch.Tensor = _llama().generate(ONE, custom_generate=loop, pad_token_id=0, **settings)
        return found

    first = draw(1)
    assert first.shape == (4, ONE.shape[1] + 8)
    assert len({tuple(row) for row in first.tolist()}) == 4
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))


def test_an_explicit_seed_wins_over_the_global_generator() -> None:
    """seed=... makes sampling reproducible without touching torch's state, and equal to Generator's."""
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": 12}
    before = torch.get_rng_state()
    found = _llama().generate(ONE, custom_generate=ms.speculative(_stranger(), seed=7), **settings)
    assert torch.equal(torch.get_rng_state(), before)
    expected = zoo.generator("llama").generate(
        list(zoo.IDS), drafter=None, sampling=ms.Sampling(seed=7), max_new_tokens=12
    )
    assert found[0, ONE.shape[1] :].tolist() == expected.tokens.tolist()


def _allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
    return list(range(3, 20)) if batch_id == 0 else list(range(20, 50, 1 + len(ids) % 3))


PROCESSED: dict[str, dict[str, Any]] = {
    "temperature": {"do_sample": True, "temperature": 0.5},
    "top_k": {"do_sample": True, "top_k": 4},
    "top_p": {"do_sample": True, "top_p": 0.6, "top_k": 0},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [9, 3], [7, 8]]},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": list(range(1, 40))},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": _allowed},
}


@pytest.mark.parametrize("name", PROCESSED)
def test_processors_act_as_in_plain_decoding(name: str) -> None:
    """Each processor, per row of a padded batch: drafted equals not drafted, and greedy equals generate."""
    settings = {**GREEDY, **PROCESSED[name], "attention_mask": MASK}
    model = _llama()
    runs = [
        model.generate(RAGGED, custom_generate=ms.speculative(make(), seed=3), **settings)
        for make in (DRAFTERS["none"], _stranger, PromptLookup)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    if not settings["do_sample"]:
        assert torch.equal(runs[0], model.generate(RAGGED, **settings))
        assert not torch.equal(runs[0], model.generate(RAGGED, attention_mask=MASK, **GREEDY))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_scores_and_logits_are_those_of_transformers(name: str) -> None:
    """return_dict_in_generate: the same class, one tensor [B, V] per step, the same values."""
    settings = {
        **GREEDY,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "repetition_penalty": 1.3,
    }
    model = zoo.shared(name)
    drafter = DraftModel(zoo.shared(name, 1))
    found: Any = model.generate(ONE, custom_generate=ms.speculative(drafter), **settings)
    expected: Any = model.generate(ONE, **settings)
    kind = GenerateDecoderOnlyOutput if name == "llama" else GenerateEncoderDecoderOutput
    assert [type(found), type(expected)] == [kind, kind]
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) == len(expected.scores) == LENGTH
    for ours, theirs in zip(
        (*found.scores, *found.logits), (*expected.scores, *expected.logits), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


class _Collector:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_receives_the_same_tokens() -> None:
    """Prompt and output, in order, once, and then the end."""
    ours, theirs = _Collector(), _Collector()
    _llama().generate(ONE, custom_generate=ms.speculative(_itself()), streamer=ours, **GREEDY)
    _llama().generate(ONE, streamer=theirs, **GREEDY)
    assert ours.heard == theirs.heard
    assert ours.ended and theirs.ended


@pytest.mark.parametrize("place", [2, 5, 9])
def test_a_stop_string_ends_exactly_where_plain_generate_ends(place: int) -> None:
    """A stop string in the middle of an accepted draft: no symbol more, unlike assisted generation."""
    plain = _llama().generate(ONE, **GREEDY)[0, ONE.shape[1] :].tolist()
    rule = StopStringCriteria(words.letters(), [words.letters().decode(plain[place])])
    settings = {**GREEDY, "stopping_criteria": StoppingCriteriaList([rule])}
    found = _llama().generate(ONE, custom_generate=ms.speculative(_itself()), **settings)
    assert torch.equal(found, _llama().generate(ONE, **settings))
    assert found.shape[1] <= ONE.shape[1] + place + 1


def test_stop_strings_of_the_loop_itself_point_to_the_criterion() -> None:
    """They need a tokenizer, which a decoding loop is not given: refused, not ignored."""
    with pytest.raises(UsageError, match="StopStringCriteria"):
        ms.speculative(stop_strings=["."])


class _SeesEachLength(StoppingCriteria):
    """Stops at a length, and remembers every length it was asked about."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.seen.append(input_ids.shape[1])
        return torch.tensor([input_ids.shape[1] >= self.length] * len(input_ids))


@pytest.mark.parametrize("length", [10, 12, 15])
def test_criteria_are_asked_per_token(length: int) -> None:
    """A criterion of the user's is called after each token, as in plain decoding, and obeyed at once."""
    runs = []
    for loop in (ms.speculative(_itself()), None):
        rule = _SeesEachLength(length)
        settings = {**GREEDY, "stopping_criteria": StoppingCriteriaList([rule])}
        runs.append((_llama().generate(ONE, custom_generate=loop, **settings).tolist(), rule.seen))
    assert runs[0] == runs[1]


def test_transformers_words_choose_the_drafter() -> None:
    """assistant_model and prompt_lookup_num_tokens do in ``speculative`` what they do in generate."""
    assistant = zoo.shared("llama", 1)
    loop = ms.speculative(assistant_model=assistant, num_assistant_tokens=2)
    expected = _llama().generate(ONE, **GREEDY)
    assert torch.equal(_llama().generate(ONE, custom_generate=loop, **GREEDY), expected)
    assert 0 < loop.reports[0].drafted <= 2 * loop.reports[0].rounds
    loop = ms.speculative(prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    assert torch.equal(_llama().generate(ONE, custom_generate=loop, **GREEDY), expected)
    assert loop.reports[0].draft_calls == 0


def test_reports_are_those_of_the_last_call() -> None:
    """One report per row, with the counters of that row."""
    loop = ms.speculative(_itself())
    _llama().generate(RAGGED, attention_mask=MASK, custom_generate=loop, **GREEDY)
    assert [report.new_tokens for report in loop.reports] == [LENGTH] * 3
    _llama().generate(ONE, custom_generate=loop, **GREEDY)
    assert [report.acceptance_rate for report in loop.reports] == [1.0]


@pytest.mark.parametrize(("lengths", "new"), [({"max_new_tokens": 5}, 5), ({"max_length": 12}, 3)])
def test_both_ways_to_say_how_long(lengths: dict[str, int], new: int) -> None:
    """max_length counts the prompt, max_new_tokens does not."""
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, **lengths}
    found = _llama().generate(ONE, custom_generate=ms.speculative(), **settings)
    assert found.shape[1] == ONE.shape[1] + new
    assert torch.equal(found, _llama().generate(ONE, **settings))


@pytest.mark.parametrize("ends", [1, [1], "two"])
def test_end_ids_as_one_or_as_a_list(ends: Any) -> None:
    """eos_token_id may be a number or a list: the output ends at the first of them."""
    plain = _llama().generate(ONE, **GREEDY)[0, ONE.shape[1] :].tolist()
    chosen = [plain[4], plain[7]] if ends == "two" else ends
    settings = {**GREEDY, "eos_token_id": chosen}
    found = _llama().generate(ONE, custom_generate=ms.speculative(_itself()), **settings)
    assert torch.equal(found, _llama().generate(ONE, **settings))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 2}, "cannot do num_beams > 1"),
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    "hidden states": (
        {"output_hidden_states": True, "return_dict_in_generate": True},
        "output_hidden_states",
    ),
    "no cache": ({"use_cache": False}, "use_cache=False"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_place_in_drafting_is_refused(name: str) -> None:
    """The message names the setting and says what to do."""
    extra, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        zoo.build("llama", attn_implementation="eager").generate(
            ONE, custom_generate=ms.speculative(), **{**GREEDY, **extra}
        )


def test_embeddings_in_place_of_ids_are_refused() -> None:
    """Without ids there is nothing to draft from."""
    embeddings = _llama().get_input_embeddings()(ONE)
    with pytest.raises(UnsupportedError, match="Pass input_ids"):
        _llama().generate(inputs_embeds=embeddings, custom_generate=ms.speculative(), **GREEDY)


def test_an_assistant_given_to_generate_drafts() -> None:
    """transformers does not hand assistant_model to a callable; it is honoured all the same."""
    loop = ms.speculative()
    assisted = _llama().generate(
        ONE, custom_generate=loop, assistant_model=zoo.shared("llama"), tokenizer=None, **GREEDY
    )
    assert assisted.tolist() == _llama().generate(ONE, **GREEDY).tolist()
    assert loop.reports[0].draft_calls > 0
    assert loop.reports[0].acceptance_rate == 1


def test_a_streamer_with_a_batch_is_refused_before_any_token() -> None:
    """As in transformers, a streamer follows one prompt."""
    streamer = _Collector()
    with pytest.raises(UnsupportedError, match="follows one prompt: got 3"):
        _llama().generate(
            RAGGED,
            attention_mask=MASK,
            custom_generate=ms.speculative(),
            streamer=streamer,
            **GREEDY,
        )
    assert len(streamer.heard) == RAGGED.numel()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drafter": "promt_lookup"}, "Did you mean 'prompt_lookup'"),
        ({"verifier": "couple"}, "Did you mean 'coupled'"),
        ({"policy": "heuristics"}, "Did you mean 'heuristic'"),
        ({"num_assistant_token": 3}, "Did you mean 'num_assistant_tokens'"),
    ],
)
def test_unknown_names_are_refused_when_the_loop_is_made(wrong: dict[str, Any], message: str) -> None:
    """Before any model is run."""
    with pytest.raises(UnknownNameError, match=message):
        ms.speculative(**wrong)


def test_a_draft_model_by_name_needs_a_model() -> None:
    """drafter="draft_model" without assistant_model says what to pass."""
    with pytest.raises(UsageError, match="assistant_model="):
        _llama().generate(ONE, custom_generate=ms.speculative("draft_model"), **GREEDY)


def test_one_loop_serves_several_models(rows: Sequence[int] = (0, 1)) -> None:
    """The same object may be passed to different models in turn."""
    loop = ms.speculative("prompt_lookup")
    for seed in (*rows, *rows):
        model = zoo.shared("llama", seed)
        found = model.generate(ONE, custom_generate=loop, **GREEDY)
        assert torch.equal(found, model.generate(ONE, **GREEDY))
