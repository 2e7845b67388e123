"""LLMA, ANPD, Cacheback and N-Grammys against scans of the whole text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multispec.drafters.anpd import ANPD
from multispec.drafters.cacheback import Cacheback
from multispec.drafters.llma import LLMA
from multispec.drafters.n_grammys import NGrammys, model_bigrams
from multispec.errors import IncompatibleModelsError, UnsupportedError, UsageError
from multispec.history import History
from multispec.protocols import Drafter
from multispec.stream import Slot, StreamSpec
from multispec.testing import SlotTableModel, TableModel, play, row
from tests.core.drafting import VOCABULARY, ask, begin, models, paths, same_as_plain

TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=24)
ROUNDS = st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5)


# ---- LLMA ----


@pytest.mark.usefixtures("unchecked")
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_llma_copies_behind_the_longest_then_first_match(
    texts: list[list[int]], ids: list[int], low: int, more: int
) -> None:
    expected: list[int] = []
    for n in range(low, low + more + 1):
        found = [t[i + n : i + n + 5] for t in texts for i in range(len(t) - n) if t[i : i + n] == ids[-n:]]
        if found and n <= len(ids):
            expected = found[0]
    drafter = LLMA(references=texts, min_ngram=low, max_ngram=low + more)
    assert ask(begin(drafter, ids), ids).ids == expected


def test_llma_may_copy_from_earlier_outputs() -> None:
    drafter = LLMA(remember=True)
    first = begin(drafter, [1], [1])
    history = History([1])
    history.extend([5, 6, 50, 7])
    assert ask(first, history).ids == []
    first.end([0])
    assert ask(first, [5], row=1).ids == []
    session = begin(drafter, [5])
    assert ask(session, [5]).ids == [6] and ask(session, [50]).ids == [7]
    assert ask(session, History([5], foreign_prompt=True)).ids == []


# ---- ANPD ----


def predicted(ids: list[int], nodes: int, low: int, high: int) -> list[int]:
    """Symbol by symbol from counts of the committed text alone; of equals the first to get there."""
    line = list(ids)
    while len(line) < len(ids) + nodes:
        x = next((x for n in range(high - 1, low - 2, -1) if (x := leader(ids, line, n)) is not None), None)
        if x is None:
            break
        line.append(x)
    return line[len(ids) :]


def leader(ids: list[int], line: list[int], n: int) -> int | None:
    counts, best = Counter[int](), None
    for place in range(n, len(ids)) if n <= len(line) else ():
        if ids[place - n : place] == line[len(line) - n :]:
            counts[ids[place]] += 1
            best = ids[place] if best is None or counts[ids[place]] > counts[best] else best
    return best


@pytest.mark.usefixtures("unchecked")
@given(TEXT, ROUNDS, st.integers(2, 3), st.integers(0, 2))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anpd_predicts_from_the_counts_so_far(
    prompt: list[int], rounds: list[list[int]], low: int, more: int
) -> None:
    """Asked after every round, it answers as counting anew would."""
    session, history = begin(ANPD(low + more, min_ngram=low), prompt), History(prompt)
    for tokens in [[], *rounds]:
        history.extend(tokens)
        assert ask(session, history).ids == predicted(history.ids, 5, low, low + more)


# ---- Cacheback ----


def test_cacheback_grows_from_the_latest_followers() -> None:
    text = [1, 2, 3, 4, 1, 2, 5, 6, 3, 4, 7, 8, 1, 2]
    tree = paths(ask(begin(Cacheback(), text), text, nodes=20))
    # 1 2 was followed by 5 6 lately and by 3 4 before; 5 6 by 3 4; 3 4 by 7 8 lately and by 1 2 before.
    assert {(5, 6, 3, 4), (3, 4, 7, 8), (3, 4, 1, 2)} <= tree
    assert ask(begin(Cacheback(), text), text, nodes=2).ids == [5, 6]
    assert ask(begin(Cacheback(tree=False), text), text, nodes=6).ids == [5, 6, 3, 4, 7, 8]
    assert ask(begin(Cacheback(width=1), text), text, nodes=4).ids == [5, 6, 3, 4]


def test_cacheback_forgets_what_was_used_least_recently() -> None:
    text = [1, 2, 3, 4, 5, 6, 7]
    few, history = begin(Cacheback(leader=1, follower=1, leaders=4), text), History([*text, 4])
    # Leaders 4, 5, 6 and 7 are left; the look-up of 4 makes 5 the next to go, for 9, and then 6, for 8.
    assert ask(few, history, nodes=1).ids == [5]
    history.extend([9, 8, 5])
    assert ask(few, history, nodes=1).ids == []
    history.extend([4])
    assert ask(few, history, nodes=1).ids == [9]
    one = begin(Cacheback(leader=1, follower=1, width=2), [1])
    assert paths(ask(one, [1, 2, 1, 3, 1, 4, 1], nodes=2)) == {(4,), (3,)}


def test_cacheback_stops_at_ids_past_the_vocabulary() -> None:
    text = [1, 2, 3, 50, 1, 2]
    assert ask(begin(Cacheback(), text), text, nodes=9).ids == [3]


@pytest.mark.usefixtures("unchecked")
@given(TEXT, ROUNDS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tables_grow_as_the_text_does(prompt: list[int], rounds: list[list[int]]) -> None:
    """Where nothing is forgotten, asking in between changes nothing."""
    drafters: list[Drafter] = [Cacheback(width=99), NGrammys(rows=3), NGrammys(rows=2, query=2)]
    for drafter in drafters:
        session, history = begin(drafter, prompt), History(prompt)
        grown = ask(session, history, nodes=12)
        for tokens in rounds:
            history.extend(tokens)
            grown = ask(session, history, nodes=12)
        once = ask(begin(drafter, prompt), history.ids, nodes=12)
        assert grown.ids == once.ids and grown.parents == once.parents


# ---- N-Grammys ----


def test_rows_out_of_the_context_come_first() -> None:
    text = [1, 2, 3, 9, 1, 2, 3, 8, 1, 4, 5, 7, 1]
    successors = torch.tensor([[(x + 1) % 12, (x + 6) % 12] for x in range(12)])
    draft = ask(begin(NGrammys(rows=4, bigrams=successors), text), text, nodes=8)
    # Rows of two: 2 3 twice, then 4 5; then by bigrams 1 -> 2 -> 3, which is there, and 1 -> 7 -> 8.
    assert paths(draft) == {(2,), (2, 3), (4,), (4, 5), (7,), (7, 8)}
    counted = ask(begin(NGrammys(rows=4), text), text, nodes=8)
    assert paths(counted) == {(2,), (2, 3), (4,), (4, 5)}
    assert ask(begin(NGrammys(rows=1), text), text, nodes=3).ids == [4, 5, 7]


def test_bigrams_of_a_model_are_its_best_successors() -> None:
    """With one symbol as the prompt, in batches."""
    model = TableModel(VOCABULARY, seed=4)
    table = model_bigrams(model, top=3, batch=5)
    assert torch.equal(table, model.table[:VOCABULARY].topk(3).indices)
    (found,) = play(model, row(drafter=NGrammys(bigrams=table), max_new_tokens=30))
    assert found.report.target_calls < 25
    with pytest.raises(IncompatibleModelsError, match="of 5 symbols"):
        begin(NGrammys(bigrams=table[:5]), [1])
    with pytest.raises(UnsupportedError, match="move together"):
        model_bigrams(SlotTableModel(2, 3))
    spec = StreamSpec(slots=(Slot(size=3),), prompt_size=9)
    with pytest.raises(UnsupportedError, match="other symbols"):
        model_bigrams(TableModel(3, spec=spec))


# ---- all ----


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "drafter",
    [LLMA(references=[[1, 2, 1, 0]], remember=True), ANPD(), Cacheback(), NGrammys()],
    ids=lambda one: str(one.name),
)
def test_seeds_decide(drafter: Drafter) -> None:
    assert same_as_plain(drafter) > 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("drafter", [Cacheback(tree=False), NGrammys(rows=1)], ids=lambda one: str(one.name))
def test_chains_for_models_that_score_nothing_else(drafter: Drafter) -> None:
    assert same_as_plain(drafter, models(trees=False)[1:2]) > 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: LLMA(), "copies from references: got none"),
        (lambda: LLMA(references=[[1]], min_ngram=3, max_ngram=2), "max_ngram >= 3"),
        (lambda: LLMA(references=[[]]), "without ids"),
        (lambda: ANPD(max_ngram=1), "max_ngram >= 2"),
        (lambda: ANPD(min_ngram=1), "min_ngram >= 2"),
        (lambda: ANPD(num_draft_tokens=0), "num_draft_tokens >= 1"),
        (lambda: Cacheback(leader=0), "leader >= 1"),
        (lambda: Cacheback(leaders=0), "leaders >= 1"),
        (lambda: NGrammys(rows=0), "rows >= 1"),
        (lambda: NGrammys(rows=5, num_draft_tokens=4), "num_draft_tokens >= 5"),
    ],
)
def test_settings_that_cannot_be_right(make: Any, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        make()
