"""Drafters of frames: copies of the frame before, and n-grams of the codes of a frame."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.previous_frame import PreviousFrame
from multispec.errors import UnsupportedError, UsageError
from multispec.history import History
from multispec.processing import Pipeline
from multispec.protocols import Budget, Context, Drafter, DraftSession, Request
from multispec.sampling import CounterNoise, Sampling
from multispec.stream import Allowed, Forced, Prompt, Slot, StreamSpec
from multispec.testing import TableModel, play, row
from tests.core.two_levels import Tiny

LEVELS = StreamSpec(slots=(Slot(size=12),) * 3)
FLAT = StreamSpec(slots=(Slot(size=12),))


def session(drafter: Drafter, spec: StreamSpec) -> DraftSession:
    prompts = {0: Prompt(ids=torch.tensor([1]))}
    where: Any = {"vocab_size": spec.vocab_size, "device": torch.device("cpu"), "specs": {0: spec}}
    return drafter.begin(Context(prompts=prompts, capacity={0: 100}, **where))


def guess(
    drafter: Drafter, made: Sequence[int], nodes: int = 6, confidence: float = 0.0, **changes: Any
) -> Any:
    spec = changes.pop("spec", LEVELS)
    history = History([1])
    history.extend(made)
    budget, pipeline = Budget(nodes, confidence), Pipeline(Sampling(), spec.vocab_size)
    request = Request(0, history, budget, CounterNoise(0), pipeline, True)
    (draft,) = session(drafter, spec).propose([request])
    return draft.ids


# ---- previous frame ----


def test_frames_are_copied_on_and_on() -> None:
    """From the middle of a frame: the rest of it, and the frame that then lies behind."""
    assert guess(PreviousFrame(), [1, 2, 3, 4], nodes=7) == [2, 3, 4, 2, 3, 4, 2]
    assert guess(PreviousFrame(period=2), [1, 2, 3, 4], spec=FLAT, nodes=3) == [3, 4, 3]
    assert guess(PreviousFrame(), [1, 2]) == []


def test_a_copy_keeps_to_the_grammar() -> None:
    """What is forced is drafted; what is not allowed ends the draft."""

    def rule(generated: Sequence[int]) -> Forced | Allowed | None:
        known: dict[int, Forced | Allowed] = {3: Forced(9), 5: Allowed((1, 2))}
        return known.get(len(generated))

    spec = StreamSpec(slots=(Slot(size=12),) * 3, grammar=rule)
    assert guess(PreviousFrame(), [1, 2, 3], spec=spec) == [9, 2]
    assert guess(DepthNgram(), [1, 2, 3], spec=spec) == [9, 2]


def test_slots_of_other_symbols_end_a_copy() -> None:
    """A period that does not fit the slots drafts nothing that they cannot hold."""
    spec = StreamSpec(slots=(Slot(size=3), Slot(size=3, offset=3)))
    assert guess(PreviousFrame(period=1), [0, 4], spec=spec) == []
    assert guess(PreviousFrame(), [0, 4], spec=spec, nodes=2) == [0, 4]


# ---- n-grams ----


def test_the_longest_context_decides() -> None:
    """Code 2 behind (1, 7) was 5, whatever came before it elsewhere."""
    made = [1, 7, 5, 2, 7, 6, 2, 7, 6, 1, 7]
    assert guess(DepthNgram(), made, nodes=1) == [5]
    # One code above alone: 6 is the more frequent one behind 7.
    assert guess(DepthNgram(max_ngram=2), [*made[:9], 3, 7], nodes=1) == [6]
    # No code above: the frame before decides, then the slot.
    assert guess(DepthNgram(max_ngram=1), [1, 7, 5, 2, 7, 6, 2, 7], nodes=1) == [6]


def test_of_equals_the_latest_is_taken() -> None:
    """Code 0 is a 1 and then a 4, in the first frames and behind the same code of the frame before."""
    assert guess(DepthNgram(), [1, 2, 3, 4, 2, 3], nodes=1) == [4]
    assert guess(DepthNgram(), [5, 0, 0, 1, 0, 0, 5, 0, 0, 4, 0, 0, 5, 0, 0], nodes=1) == [4]


def test_unsure_guesses_end_a_draft() -> None:
    """A symbol that was half of what followed is the last one, where the budget asks for more."""
    made = [1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 4, 1, 2, 3, 1]
    assert len(guess(DepthNgram(), made, nodes=9)) == 9
    assert guess(DepthNgram(), made, nodes=9, confidence=0.9) == [2, 4]


def test_counts_go_on_from_round_to_round() -> None:
    """What a session has counted is what a fresh one counts."""
    rng = random.Random(0)
    made = [rng.randrange(3) for _ in range(60)]
    going, history = session(DepthNgram(), LEVELS), History([1])
    pipeline, noise = Pipeline(Sampling(), 12), CounterNoise(0)
    for start in range(0, 60, 4):
        history.extend(made[start : start + 4])
        request = Request(0, history, Budget(6), noise, pipeline, True)
        assert going.propose([request])[0].ids == guess(DepthNgram(), made[: start + 4])


def test_nothing_is_guessed_without_a_frame() -> None:
    """The first symbol of a stream, and slots that were never seen."""
    assert guess(DepthNgram(), []) == []
    assert guess(DepthNgram(), [4]) == []


# ---- both ----


@pytest.mark.parametrize("drafter", [PreviousFrame(num_draft_tokens=7), DepthNgram(num_draft_tokens=7)])
def test_the_output_is_that_of_the_seed(drafter: Drafter) -> None:
    """On two levels, four rows together, and on a flat stream with a period."""
    tiny = Tiny(sizes=(3, 3, 3))
    changes: list[dict[str, Any]] = [
        {"sampling": Sampling(seed=place, temperature=0.4), "max_new_tokens": 30} for place in range(4)
    ]
    plain = [play(tiny.fake(), row(**one))[0] for one in changes]
    found = play(tiny.target(), *(row(**one, drafter=drafter) for one in changes))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(plain, found, strict=True))
    assert sum(one.report.accepted for one in found) > 0
    flat = TableModel(support=2)
    periodic = type(drafter)(num_draft_tokens=5, period=3)  # type: ignore[call-arg]
    assert torch.equal(play(flat, row())[0].tokens, play(flat, row(drafter=periodic))[0].tokens)


@pytest.mark.parametrize("kind", [PreviousFrame, DepthNgram])
def test_frames_have_to_be_known(kind: type[PreviousFrame | DepthNgram]) -> None:
    """One slot and no period; settings that draft nothing."""
    with pytest.raises(UnsupportedError, match="period=7"):
        session(kind(), FLAT)
    for wrong in ({"num_draft_tokens": 0}, {"period": 0}):
        with pytest.raises(UsageError, match="at least one symbol"):
            kind(**wrong)


def test_an_ngram_holds_a_code() -> None:
    """Nothing can be counted of none."""
    with pytest.raises(UsageError, match="one code or more"):
        DepthNgram(max_ngram=0)
