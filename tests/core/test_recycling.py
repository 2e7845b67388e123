"""Token recycling: the matrix by hand, the tree by its shape, sessions that remember."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multispec.drafters.token_recycling import TokenRecycling
from multispec.errors import UsageError
from multispec.history import History
from multispec.stream import Draft, Slot, StreamSpec
from multispec.structures import eagle
from multispec.testing import TableModel, play, row
from tests.core.drafting import VOCABULARY, ask, begin, models, observed, paths, same_as_plain


def ranked(*rows: tuple[int, ...]) -> torch.Tensor:
    """Logits whose best symbols are these, in this order."""
    logits = torch.zeros(len(rows), VOCABULARY)
    for place, symbols in enumerate(rows):
        for rank, symbol in enumerate(symbols):
            logits[place, symbol] = 9.0 - rank
    return logits


SHAPE = (-1, -1, 0, 0, 1, 2)  # two children, two of the first, one of the second, one below


def test_the_tree_is_filled_from_the_rows_of_the_matrix() -> None:
    session = begin(TokenRecycling(width=2, shape=SHAPE), [5, 1])
    history = History([5, 1])
    assert ask(session, history).ids == []
    # Behind the prompt: 1 -> 2 3. Emitted 2. Nothing is known behind 2.
    session.observe(0, observed(Draft.empty(), ranked((2, 3)), [2]))
    history.extend([2])
    assert ask(session, history).ids == []
    session.observe(0, observed(Draft.empty(), ranked((1, 4)), [1], start=1))
    history.extend([1])
    # 1 -> 2 3, 2 -> 1 4; behind 3, 4 nothing is known, so what hangs there is left out.
    draft = ask(session, history, nodes=6)
    assert paths(draft) == {(2,), (3,), (2, 1), (2, 4), (2, 1, 2)}
    assert draft.parents == (-1, -1, 0, 0, 2)
    # A smaller budget takes the first nodes of the shape.
    assert paths(ask(session, history, nodes=3)) == {(2,), (3,), (2, 1)}


def test_every_scored_node_renews_its_row() -> None:
    """Rejected nodes too; of a symbol that stands twice, the accepted place has the last word."""
    draft = Draft(tokens=torch.tensor([2, 3, 2]), parents=(-1, 0, 0))
    logits = ranked((2, 0), (3, 4), (7, 8), (9, 10))
    for last, expected in ((1, {(2,), (2, 3), (2, 4)}), (3, {(7,)}), (2, {(3,), (3, 7), (3, 8)})):
        session = begin(TokenRecycling(width=2, shape=(-1, 0, 0)), [1])
        session.observe(0, observed(draft, logits, [2, 3, 6], path=(0, 1)))
        session.observe(0, observed(Draft.empty(), ranked((0, 5)), [last], start=3))
        assert paths(ask(session, [1, 2, 3, last], nodes=3)) == expected


def test_parallel_slots_recycle_within_their_slot() -> None:
    spec = StreamSpec(slots=(Slot(size=VOCABULARY),) * 2, parallel=True)
    session = begin(TokenRecycling(width=2), [1, 1], spec=spec)
    session.observe(0, observed(Draft.empty(), ranked((2, 3), (4, 5)), [2, 4]))
    session.observe(0, observed(Draft.empty(), ranked((1, 3), (1, 5)), [1, 1], start=2))
    draft = ask(session, [1, 1, 2, 4, 1, 1], nodes=6)
    assert draft.is_chain and draft.ids == [2, 4, 1, 1, 2, 4]


def test_flattened_slots_have_rows_of_their_own() -> None:
    spec = StreamSpec(slots=(Slot(size=VOCABULARY),) * 2)
    session = begin(TokenRecycling(width=1, shape=(-1, 0)), [1], spec=spec)
    session.observe(0, observed(Draft.empty(), ranked((1,)), [1]))  # slot 0 behind 1
    session.observe(0, observed(Draft.empty(), ranked((7,)), [1], start=1))  # slot 1 behind 1
    assert ask(session, [1, 1, 1]).ids == [1, 7]


def test_a_foreign_prompt_is_not_looked_at() -> None:
    spec = StreamSpec(slots=(Slot(size=VOCABULARY),), prompt_size=99)
    session = begin(TokenRecycling(width=1, shape=(-1,)), [5], spec=spec)
    session.observe(0, observed(Draft.empty(), ranked((1,)), [2]))
    session.observe(0, observed(Draft.empty(), ranked((3,)), [5], start=1))
    assert ask(session, History([5], foreign_prompt=True)).ids == []
    session.observe(0, observed(Draft.empty(), ranked((2,)), [2], start=2))
    assert ask(session, [2]).ids == [3]


def test_the_matrix_may_outlast_a_session() -> None:
    for remember in (False, True):
        drafter = TokenRecycling(width=1, shape=(-1,), remember=remember)
        first, beside = begin(drafter, [1], [1]), begin(drafter, [1])
        first.observe(0, observed(Draft.empty(), ranked((2,)), [1]))
        first.end([0, 0])
        assert ask(first, [1], row=1).ids == ask(beside, [1]).ids == []
        assert ask(begin(drafter, [1]), [1]).ids == ([2] if remember else [])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("remember", [False, True])
def test_seeds_decide(remember: bool) -> None:
    assert same_as_plain(TokenRecycling(remember=remember)) > 5


@pytest.mark.usefixtures("unchecked")
def test_chains_for_models_that_score_nothing_else() -> None:
    assert same_as_plain(TokenRecycling(shape=(-1, 0, 1)), models(trees=False)) > 5


def test_greedy_chains_of_a_bigram_model_are_foreseen() -> None:
    """Once each symbol has been seen, the tree holds what a model of order one emits."""
    model = TableModel(VOCABULARY, seed=5, scale=9.0)
    (found,) = play(model, row(drafter=TokenRecycling(shape=eagle()), max_new_tokens=60))
    assert found.report.target_calls < 40


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"num_draft_tokens": 0}, "num_draft_tokens >= 1"),
        ({"width": 0}, "width >= 1"),
        ({"shape": (0,)}, "parents come before"),
        ({"shape": ()}, "num_draft_tokens >= 1"),
    ],
)
def test_settings_that_cannot_be_right(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        TokenRecycling(**settings)
