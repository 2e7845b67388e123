"""Traps 5 to 7 and 10 to 12: rules that look at the prefix, and where a stream ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import NoRepeatNGramLogitsProcessor

import multispec as ms
from multispec.errors import DrafterWarning, UnknownNameError, UnsupportedError
from multispec.policies import FixedLength
from multispec.sampling import Sampling
from multispec.stream import Allowed, Draft, Slot, StreamSpec
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel
from tests.traps.tools import constant, generation, law, scores_after, tokens_of

V = 12
END = 11
SCRIPT = [2, 3, 4, END, 5, 6, 7, 8]

RULES: dict[str, tuple[Sampling, dict[str, Any]]] = {
    "repetition": (Sampling(repetition_penalty=1.7), {}),
    "presence": (Sampling(presence_penalty=1.1), {}),
    "frequency": (Sampling(frequency_penalty=0.9), {}),
    "bad words": (Sampling(bad_words=((4, 5), (6,), (3, 4, 5))), {}),
    "min new tokens": (Sampling(min_new_tokens=4), {"end_ids": (2, 5)}),
    "no repeated n-gram": (Sampling(), {"processors": (NoRepeatNGramLogitsProcessor(2),)}),
}


@pytest.mark.parametrize("name", RULES)
def test_trap_05_rules_see_the_draft_symbols_before_a_place(name: str) -> None:
    """A place behind drafted symbols is processed as if those symbols had been committed."""
    sampling, more = RULES[name]
    logits = torch.linspace(-2, 2, V)
    for split in range(1, 6):
        ids = [4, 3, 4, 5, 3, 4]
        drafted = scores_after(sampling, ids[:split], ids[split:], logits, **more)
        committed = scores_after(sampling, ids, (), logits, **more)
        assert torch.equal(drafted, committed)


@pytest.mark.parametrize("name", RULES)
def test_trap_05_rules_hold_inside_a_long_draft(name: str) -> None:
    """With every rule, a draft of eight gives the symbols of plain decoding."""
    sampling, more = RULES[name]
    model = TableModel(V, seed=6)
    settings = {"sampling": sampling, "max_new_tokens": 30, **more}
    plain = tokens_of(model, **settings)
    drafter = ScriptedDrafter(plain)
    drafted = generation(model, drafter=drafter, policy=FixedLength(num_draft_tokens=8), **settings)
    assert drafted.tokens.tolist() == plain
    assert drafted.report.accepted == drafted.report.drafted >= len(plain) // 2


class Counting:
    """A processor with a state: after n calls it favours symbol n, so a call too many shows."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        scores[:, self.calls % V] += 4.0
        return scores


@pytest.mark.parametrize("script", [(1, 1, 1, 1), (2, 3, 4, 5), (3, 9)])
def test_trap_06_states_advance_by_committed_symbols_only(script: tuple[int, ...]) -> None:
    """Rejected places never reach a processor's state, and the user's own object is not touched."""
    model, mine = TableModel(V, seed=6), Counting()
    settings: dict[str, Any] = {"sampling": Sampling(seed=3), "max_new_tokens": 24}
    plain = tokens_of(model, processors=(Counting(),), **settings)
    drafter = ScriptedDrafter(constant(*script))
    assert tokens_of(model, processors=(mine,), drafter=drafter, **settings) == plain
    assert mine.calls == 0


def test_trap_06_a_perfect_draft_moves_a_state_along_the_accepted_path() -> None:
    """Accepted places do advance the state: a perfect draft is accepted to the end."""
    model = TableModel(V, seed=6)
    settings: dict[str, Any] = {"sampling": Sampling(seed=3), "max_new_tokens": 24}
    plain = tokens_of(model, processors=(Counting(),), **settings)
    drafted = generation(model, processors=(Counting(),), drafter=ScriptedDrafter(plain), **settings)
    assert drafted.tokens.tolist() == plain
    assert drafted.report.acceptance_rate == 1


def test_trap_06_nothing_behind_a_forbidden_symbol_is_accepted() -> None:
    """A grammar that forbids a drafted symbol cuts the draft there, whatever is drafted behind it."""
    spec = StreamSpec(slots=(Slot(size=V),), grammar=lambda seen: Allowed((2, 4, 6, 8)))
    model = TableModel(V, seed=2, spec=spec)
    drafter = ScriptedDrafter(constant(3, 2, 4, 6))
    result = generation(model, drafter=drafter, max_new_tokens=16)
    assert set(result.tokens.tolist()) <= {2, 4, 6, 8}
    assert result.report.accepted == 0 and result.report.drafted > 0


UNSUPPORTED: dict[str, Any] = {
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "num_beams": 2,
    "forced_eos_token_id": 1,
    "forced_bos_token_id": 1,
    "max_time": 1.0,
    "remove_invalid_values": True,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": (2, 1.5),
    "epsilon_cutoff": 0.1,
    "min_length": 5,
    "token_healing": True,
    "num_return_sequences": 2,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_trap_07_what_is_not_done_is_refused_not_ignored(name: str) -> None:
    """A generation config that asks for something else is refused by the name of the field."""
    config = GenerationConfig()
    setattr(config, name, UNSUPPORTED[name])
    with pytest.raises(UnsupportedError, match=name):
        ms.Generator(TableModel(V)).generate([1], generation_config=config, max_new_tokens=3)


def test_trap_07_an_unknown_option_is_refused_with_the_nearest() -> None:
    """A misspelt option is never dropped."""
    with pytest.raises(UnknownNameError, match="Did you mean 'prompt_lookup_num_tokens'"):
        ms.Generator(TableModel(V)).generate([1], prompt_lookup_num_token=3)


@pytest.mark.parametrize("setting", [{"min_p": 0.4}, {"frequency_penalty": 2.0}, {"typical_p": 0.3}])
def test_trap_07_every_sampling_field_does_something(setting: dict[str, Any]) -> None:
    """Settings that others dropped in silence change the law here."""
    model = TableModel(4, seed=1)
    plain, changed = law(model, 2), law(model, 2, sampling=Sampling(**setting))
    assert max(abs(plain[key] - changed.get(key, 0.0)) for key in plain) > 0.01


def _ending(**settings: Any) -> ms.Generation:
    model = ScriptedModel(SCRIPT, end_ids=(END,))
    return generation(model, drafter=ScriptedDrafter(SCRIPT), end_ids=(END,), **settings)


def test_trap_10_an_end_inside_the_draft_trims_everything() -> None:
    """Tokens, flags, scores, counters and the cache all stop at the end symbol."""
    result = _ending(max_new_tokens=20, keep_scores=True, policy=FixedLength(num_draft_tokens=6))
    assert result.tokens.tolist() == [2, 3, 4, END]
    assert result.finish_reason == "stop"
    assert result.from_draft == (False, True, True, True)
    assert result.log_probs is not None and len(result.log_probs) == 4
    assert result.logits is not None and len(result.logits) == 4
    report = result.report
    assert (report.new_tokens, report.drafted, report.accepted) == (4, 3, 3)
    assert report.accepted_at == [1, 1, 1]


def test_trap_10_the_streamer_gets_nothing_behind_the_end() -> None:
    """What was drafted behind the end symbol is never shown."""
    heard: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            heard.extend(value.flatten().tolist())

        def end(self) -> None:
            heard.append(-1)

    generator = ms.Generator(ScriptedModel(SCRIPT, end_ids=(END,)))
    generator.generate([1], drafter=ScriptedDrafter(SCRIPT), streamer=Streamer(), max_new_tokens=20)
    assert heard == [1, 2, 3, 4, END, -1]


def test_trap_10_a_drafted_end_that_the_target_rejects_ends_nothing() -> None:
    """A drafter that always proposes the end symbol does not stop the sequence."""
    model = ScriptedModel([2, 3, 4, 5], end_ids=(END,))
    drafter = ScriptedDrafter(constant(END, END))
    result = generation(model, drafter=drafter, end_ids=(END,), max_new_tokens=9)
    assert result.tokens.tolist() == [2, 3, 4, 5, 2, 3, 4, 5, 2]
    assert result.finish_reason == "length" and result.report.accepted == 0


@pytest.mark.parametrize("length", range(1, 8))
def test_trap_11_criteria_are_asked_after_every_symbol(length: int) -> None:
    """A criterion that fires inside a block ends the output exactly there, and sees each prefix once."""
    seen: list[int] = []

    def enough(input_ids: torch.Tensor, scores: torch.Tensor) -> bool:
        seen.append(input_ids.shape[1])
        return input_ids.shape[1] >= 1 + length

    generator = ms.Generator(ScriptedModel(SCRIPT))
    drafter = ScriptedDrafter(SCRIPT, num_draft_tokens=6)
    settings: dict[str, Any] = {"stopping_criteria": [enough], "max_new_tokens": 20}
    result = generator.generate([1], drafter=drafter, output_scores=True, **settings)
    assert result.tokens.tolist() == SCRIPT[:length]
    assert len(result.log_probs) == length
    assert seen == list(range(2, length + 2))


def test_trap_11_the_stop_is_checked_before_the_length_cap() -> None:
    """A stop on the very last symbol that fits is a stop, not a length."""

    def third(input_ids: torch.Tensor, scores: torch.Tensor) -> bool:
        return input_ids.shape[1] >= 4

    generator = ms.Generator(ScriptedModel(SCRIPT))
    for drafter in (None, ScriptedDrafter(SCRIPT)):
        result = generator.generate([1], drafter=drafter, stopping_criteria=third, max_new_tokens=3)
        assert result.finish_reason == "stop"
    assert _ending(max_new_tokens=4).finish_reason == "stop"
    assert _ending(max_new_tokens=3).finish_reason == "length"


@pytest.mark.parametrize("length", range(1, 12))
def test_trap_12_a_draft_leaves_room_for_the_symbol_of_the_target(length: int) -> None:
    """Every draft and the symbol behind it fit into what may still be emitted."""
    model = ScriptedModel([2, 3, 4, 5])
    drafter = ScriptedDrafter([2, 3, 4, 5] * 4, num_draft_tokens=5)
    result = generation(model, drafter=drafter, max_new_tokens=length)
    assert len(result.tokens) == length
    emitted = 1
    for call in model.sessions[0].calls:
        assert len(call.drafts[0]) + 1 <= length - emitted
        emitted += len(call.drafts[0]) + 1
    assert emitted == length


def test_trap_12_a_block_drafter_that_ignores_its_budget_is_set_aside() -> None:
    """A drafter of fixed blocks cannot make the output longer, and costs a warning."""
    model = ScriptedModel([2, 3, 4, 5])
    drafter = ScriptedDrafter(lambda request: Draft.chain([2, 3, 4, 5, 2, 3, 4, 5]))
    with pytest.warns(DrafterWarning, match="exceeds the budget"):
        result = generation(model, drafter=drafter, max_new_tokens=5)
    assert result.tokens.tolist() == [2, 3, 4, 5, 2]
    assert result.report.drafter_failures == 1
