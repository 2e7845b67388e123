"""Prompt lookup against a rescan of the whole text: the longest match, then the latest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.drafters import PromptLookup
from multispec.errors import UsageError
from multispec.history import History
from multispec.processing import Pipeline
from multispec.protocols import Budget, Context, DraftSession, Request
from multispec.sampling import CounterNoise, Sampling
from multispec.stream import Prompt
from multispec.testing import TableModel, play, row

VOCABULARY = 12
TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def begin(drafter: PromptLookup, prompt: list[int]) -> DraftSession:
    prompts = {0: Prompt(ids=torch.tensor(prompt))}
    cpu = torch.device("cpu")
    return drafter.begin(Context(prompts=prompts, capacity={0: 99}, vocab_size=VOCABULARY, device=cpu))


def ask(session: DraftSession, history: History, nodes: int = 5) -> list[int]:
    request = Request(
        row=0,
        history=history,
        budget=Budget(nodes=nodes),
        noise=CounterNoise(0),
        pipeline=Pipeline(Sampling(), VOCABULARY),
        coupled=True,
    )
    found: list[int] = session.propose([request])[0].tokens.tolist()
    return found


def rescan(ids: list[int], low: int, high: int, nodes: int) -> list[int]:
    """What follows the longest, then latest, earlier occurrence of the last n; into its own copy."""
    for n in range(min(high, len(ids)), low - 1, -1):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[-n:]:
                period = len(ids) - start - n
                grown = list(ids)
                for _ in range(nodes):
                    grown.append(grown[len(grown) - period])
                return grown[len(ids) :]
    return []


@given(TEXT, st.integers(1, 3), st.integers(0, 3), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_longest_then_latest_match(ids: list[int], low: int, more: int, nodes: int) -> None:
    drafter = PromptLookup(min_ngram=low, max_ngram=low + more)
    found = ask(begin(drafter, ids), History(ids), nodes)
    assert found == rescan(ids, low, low + more, nodes)


@given(TEXT, st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_index_grows_as_the_text_does(prompt: list[int], steps: list[list[int]]) -> None:
    """Asked after every round, it answers as a rescan from the start would."""
    session, history = begin(PromptLookup(max_ngram=3), prompt), History(prompt)
    for tokens in [[], *steps]:
        history.extend(tokens)
        assert ask(session, history) == rescan(history.ids, 1, 3, 5)


def test_a_match_at_the_end_goes_on_into_its_own_copy() -> None:
    """Periods of any length are drafted for as long as the budget lasts."""
    prompt = [1, 2, 3, 1, 2, 3]
    assert ask(begin(PromptLookup(), prompt), History(prompt), 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert ask(begin(PromptLookup(), [7, 7]), History([7, 7]), 4) == [7, 7, 7, 7]


def test_nothing_new_under_the_sun_drafts_nothing() -> None:
    assert ask(begin(PromptLookup(), [1, 2, 3]), History([1, 2, 3])) == []
    assert ask(begin(PromptLookup(min_ngram=2), [1, 2, 1]), History([1, 2, 1])) == []


def test_ids_past_the_vocabulary_end_the_draft() -> None:
    """Extra ids of a prompt (placeholders of an image) are matched and never drafted."""
    prompt = [1, 2, 3, 50, 4, 1, 2]
    assert ask(begin(PromptLookup(), prompt), History(prompt)) == [3]
    again = [50, 60, 50]
    assert ask(begin(PromptLookup(), again), History(again)) == []


@pytest.mark.parametrize("asked", [{"min_ngram": 0}, {"max_ngram": 0}, {"num_draft_tokens": 0}])
def test_settings_that_cannot_be_right(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="prompt_lookup needs 1 <= min_ngram <= max_ngram"):
        PromptLookup(**asked)


def test_a_periodic_model_is_drafted_in_full() -> None:
    """Through the loop: all drafts of a model that repeats itself are accepted."""
    table = torch.eye(VOCABULARY, dtype=torch.float64).roll(1, 1).log()
    target = TableModel(table=torch.cat([table, table[:1]]))
    prompt = [*range(VOCABULARY), 0, 1]
    found = play(target, row(prompt, drafter=PromptLookup(), max_new_tokens=40))[0]
    assert found.tokens.tolist() == [(2 + n) % VOCABULARY for n in range(40)]
    assert found.report.acceptance_rate == 1
