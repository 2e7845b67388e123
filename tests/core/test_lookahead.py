"""Lookahead decoding: the window as a tree, the pool by hand, and the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multispec.drafters.lookahead import Lookahead
from multispec.errors import UnsupportedError, UsageError
from multispec.history import History
from multispec.sampling import Sampling
from multispec.stream import Slot, StreamSpec
from multispec.testing import TableModel, play, row
from tests.core.drafting import VOCABULARY, ask, begin, models, observed, paths, same_as_plain


def test_rounds_by_hand() -> None:
    """W = 2, N = 3, G = 2 and a model that answers x + 1 behind every x."""
    session, history = begin(Lookahead(2, 3, 2), [1, 5, 3]), History([1, 5, 3])
    # Rows 1 5 and 3 1: chain 1 5, with 3 below 1 and 1 below 5.
    draft = ask(session, history, nodes=8)
    assert paths(draft) == {(1,), (1, 5), (1, 3), (1, 5, 1)}
    answers = torch.eye(VOCABULARY).roll(1, 1)
    logits = torch.stack([answers[3], *(answers[x] for x in draft.ids)])
    session.observe(0, observed(draft, logits, [4]))
    history.extend([4])
    # Columns 1 3 and 5 1 went on with 4 and 2; the rows are now 3 1 and 4 2.
    draft = ask(session, history, nodes=8)
    assert paths(draft) == {(3,), (3, 1), (3, 4), (3, 1, 2)}
    session.observe(0, observed(draft, torch.stack([answers[x] for x in (4, *draft.ids)]), [1], start=1))
    history.extend([1])
    # N-grams so far: 1 3 4, 5 1 2, 3 4 5, 1 2 3. Both of 1 are verified, beside rows 4 2 and 5 3.
    draft = ask(session, history, nodes=8)
    assert paths(draft) == {(2,), (2, 3), (3,), (3, 4), (4,), (4, 2), (4, 5), (4, 2, 3)}
    assert draft.ids[:4] == [2, 3, 3, 4]
    # Without room for all of the window, only n-grams are verified, and nothing is learnt.
    small = ask(session, history, nodes=5)
    assert paths(small) == {(2,), (2, 3), (3,), (3, 4)}
    session.observe(0, observed(small, torch.stack([answers[x] for x in (1, *small.ids)]), [9], start=2))
    history.extend([9])
    assert paths(ask(session, history, nodes=8)) == {(4,), (4, 2), (4, 5), (4, 2, 3)}


def test_the_pool_keeps_the_latest() -> None:
    session, history = begin(Lookahead(1, 2, 2), [1]), History([1])
    for answer in (2, 3, 4, 3):
        draft = ask(session, history, nodes=9)
        window = next(n for n in range(len(draft)) if draft.ids[n] == 1 and draft.parents[n] < 0)
        logits = torch.zeros(len(draft) + 1, VOCABULARY)
        logits[window + 1, answer] = 9.0
        session.observe(0, observed(draft, logits, [1]))
        # The window is back at 1, so each answer is an n-gram of 1.
        session.observe(0, observed(ask(session, history, nodes=0), logits[:1], [1]))
        inner: Any = session
        inner._rows[0].rows = [[1]]
    assert [token for token in ask(session, history, nodes=9).ids if token != 1] == [3, 4]


def test_greedy_tokens_come_several_at_a_time() -> None:
    """A bigram model, greedy: its n-grams are in the pool before they are asked for."""
    model = TableModel(VOCABULARY, seed=8, scale=4.0)
    asked: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": 60}
    (plain,), (found,) = play(model, row(**asked)), play(model, row(drafter=Lookahead(), **asked))
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert found.report.target_calls < 30


@pytest.mark.usefixtures("unchecked")
def test_seeds_decide() -> None:
    assert same_as_plain(Lookahead(4, 3, 3), models()[:2]) > 2


def test_streams_that_lookahead_cannot_serve() -> None:
    spec = StreamSpec(slots=(Slot(size=4),) * 2, parallel=True)
    with pytest.raises(UnsupportedError, match="2 slots of this stream move together"):
        begin(Lookahead(), [1, 1], spec=spec)
    # A prompt in other symbols leaves nothing to begin with; ids past the vocabulary are no guesses.
    session = begin(Lookahead(1, 2, 1), [1])
    assert ask(session, History([1], foreign_prompt=True)).ids == []
    assert ask(session, [50]).ids == [0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ((0, 3, 3), "window >= 1"),
        ((3, 1, 3), "ngram >= 2"),
        ((3, 3, 0), "guesses >= 1"),
        ((60, 5, 60), "480 nodes"),
    ],
)
def test_settings_that_cannot_be_right(sizes: tuple[int, int, int], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        Lookahead(*sizes)
