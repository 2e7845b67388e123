"""ADED: tri-grams that follow the text, and the search over them."""

from __future__ import annotations

import pytest
import torch

from multispec.drafters import ADED
from multispec.errors import UsageError
from multispec.history import History
from multispec.testing import TableModel, row
from multispec.testing.laws import output_law, variation
from multispec.tree import depths
from multispec.verifiers import Rejection
from tests.core.drafting import ask, begin, models, paths, same_as_plain

CORPUS = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [0, 1, 2, 3, 4]]


def test_seeds_say_the_same() -> None:
    """On streams of one slot and of two."""
    assert same_as_plain(ADED(simulations=12, num_draft_tokens=8), models()) > 0


def test_rejection_keeps_the_law() -> None:
    """Within 1e-9 of plain decoding."""
    model = TableModel(3, seed=4, support=2)
    drafter = ADED([[0, 1, 2, 1]], num_draft_tokens=3, simulations=6, length=2)
    drafted = output_law(model, drafter, Rejection(), max_new_tokens=3)
    assert variation(drafted, output_law(model, max_new_tokens=3)) < 1e-9
    assert row().drafter is None


def test_the_search_finds_what_followed_most() -> None:
    """Both continuations, the frequent one first; no path twice."""
    session = begin(ADED(CORPUS, num_draft_tokens=6), [7, 0])
    draft = ask(session, [7, 0, 1], 6)
    assert draft.ids[:3] == [2, 3, 4]
    assert {(2, 3, 4), (2, 5, 6)} <= paths(draft)
    assert max(depths(draft.parents)) <= 5


def test_walks_are_shared_out_by_what_they_are_worth() -> None:
    """More walks through the likelier branch, some through the other: exploration."""
    few = ask(begin(ADED(CORPUS, simulations=3), [0]), [0, 1, 2], 9)
    assert len(few) <= 3
    many = ask(begin(ADED(CORPUS), [0]), [0, 1, 2], 9)
    assert {path[0] for path in paths(many)} == {3, 5}
    assert many.ids[0] == 3
    lean = ADED(CORPUS, simulations=4, c1=0.0, c2=1e9)
    assert {path[0] for path in paths(ask(begin(lean, [0]), [0, 1, 2], 9))} == {3}


def test_the_corpus_follows_what_is_emitted() -> None:
    """What the target said counts four times, from the next round on; other rows do not see it."""
    session = begin(ADED(CORPUS), [0, 1, 2], [0, 1, 2])
    history = History([0, 1, 2])
    history.extend([5, 9, 0, 1, 2])
    assert ask(session, history, 1).ids == [5]
    assert ask(session, History([0, 1, 2, 0, 1, 2]), 1, row=1).ids != [5]


def test_bigrams_where_the_pair_is_new() -> None:
    """And nothing where nothing is known, or another vocabulary's symbols."""
    session = begin(ADED([[3, 4, 5, 0]]), [9])
    assert ask(session, [9, 4], 2).ids == [5, 0]
    assert len(ask(begin(ADED(), [9]), [9], 3)) == 0
    assert len(ask(begin(ADED([[1, 99]]), [0]), [0, 1], 3)) == 0
    assert torch.equal(ask(begin(ADED([[1, 2]]), []), [1], 3).tokens, torch.tensor([2]))


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="c1 >= 0 and c2 > 0: got c1=1.0, c2=0.0"):
        ADED(c2=0.0)
    with pytest.raises(UsageError, match="simulations >= 1"):
        ADED(simulations=0)
    with pytest.raises(UsageError, match="takes ids >= 0"):
        ADED([[-1]])
