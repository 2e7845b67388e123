"""Suffix automata, SAM-Decoding and SuffixDecoding against counting by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multispec.drafters.automaton import CountedAutomaton, SuffixAutomaton
from multispec.drafters.suffix_automaton import SuffixAutomatonDrafter
from multispec.drafters.suffix_decoding import SuffixDecoding
from multispec.errors import UsageError
from multispec.history import History
from multispec.testing import ScriptedModel, play, row
from tests.core.drafting import ask, begin, models, paths, same_as_plain

TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=24)


def occurrences(text: Sequence[int], string: Sequence[int]) -> list[int]:
    """The places where a string ends."""
    n = len(string)
    return [end for end in range(n - 1, len(text)) if list(text[end - n + 1 : end + 1]) == list(string)]


def substrings(text: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1)}


# ---- the automata ----


@given(TEXT)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_automaton_holds_the_substrings_and_where_they_ended_first(text: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    strings, found = substrings(text), set()
    stack: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while stack:
        string, v = stack.pop()
        if string:
            found.add(string)
            assert automaton.first_end[v] == occurrences(text, string)[0]
            assert len(string) <= automaton.length[v]
        stack += [((*string, x), to) for x, to in automaton.edges(v)]
    assert found == strings
    assert len(automaton.length) <= max(2 * len(text), 2)  # states, the root included


@given(TEXT, st.integers(1, 6))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_are_exact_up_to_the_depth(text: list[int], depth: int) -> None:
    counted = CountedAutomaton(text, depth)
    automaton = counted.automaton
    for string in substrings(text):
        v = 0
        for x in string:
            to = automaton.step(v, x)
            assert to is not None
            v = to
        if len(string) <= depth:
            assert counted.known(v)
        if counted.known(v):
            assert counted.count[v] == len(occurrences(text, string))


@pytest.mark.usefixtures("unchecked")
def test_a_long_period_takes_linear_work() -> None:
    """One symbol for ever: no step walks along all the states before it."""
    counted = CountedAutomaton([1] * 2000, depth=8)
    assert len(counted.automaton.length) == 2001
    assert [counted.count[v] for v in range(1, 9)] == [2000 - n for n in range(8)]


# ---- SAM-Decoding ----


def copied(ids: list[int], nodes: int) -> list[int]:
    """Behind the first occurrence of the longest suffix that occurs twice; into its own copy."""
    for n in range(len(ids) - 1, 0, -1):
        ends = occurrences(ids, ids[-n:])
        if len(ends) > 1:
            grown = list(ids)
            for _ in range(nodes):
                grown.append(grown[len(grown) - (len(ids) - 1 - ends[0])])
            return grown[len(ids) :]
    return []


@pytest.mark.usefixtures("unchecked")
@given(TEXT, st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_longest_suffix_goes_on_as_it_first_did(prompt: list[int], rounds: list[list[int]]) -> None:
    """Asked after every round, it answers as a rescan of the whole text."""
    session, history = begin(SuffixAutomatonDrafter(), prompt), History(prompt)
    for tokens in [[], *rounds]:
        history.extend(tokens)
        assert ask(session, history).ids == copied(history.ids, 5)


def test_references_draft_where_their_match_is_longer_by_the_bias() -> None:
    book = [7, 8, 1, 2, 3, 9, 10]
    other = [4, 4, 11]
    for bias, expected in ((1, [9, 10]), (2, [5, 3, 6, 1, 2])):
        drafter = SuffixAutomatonDrafter(references=[book, other], bias=bias)
        ids = [3, 5, 3, 6, 1, 2, 3]  # 3 alone came before, and three symbols of the book
        assert ask(begin(drafter, ids), ids).ids == expected
    # No match goes from one text into the next, and nothing behind the end of a text is drafted.
    session = begin(SuffixAutomatonDrafter(references=[book, other], bias=0), [9, 10, 4])
    assert ask(session, [9, 10, 4]).ids == [4, 11]
    assert ask(begin(SuffixAutomatonDrafter(references=[book]), [9, 10]), [9, 10]).ids == []


def test_references_are_followed_through_a_text() -> None:
    session = begin(SuffixAutomatonDrafter(references=[[1, 2, 3, 4, 5, 6]], bias=0), [1, 2])
    history = History([1, 2])
    for tokens, expected in (([], [3, 4]), ([3], [4, 5]), ([9], []), ([4, 5], [6])):
        history.extend(tokens)
        assert ask(session, history, nodes=2).ids == expected


def test_short_matches_draft_nothing_where_more_is_asked_for() -> None:
    ids = [1, 2, 3, 1, 2]
    assert ask(begin(SuffixAutomatonDrafter(min_match=2), ids), ids).ids == [3, 1, 2, 3, 1]
    assert ask(begin(SuffixAutomatonDrafter(min_match=3), ids), ids).ids == []


def test_prompts_in_other_symbols_are_not_looked_at() -> None:
    """Behind a foreign prompt only what was generated counts; ids past the vocabulary end a draft."""
    history = History([1, 2, 3, 1, 2], foreign_prompt=True)
    session = begin(SuffixAutomatonDrafter(), [1, 2, 3, 1, 2])
    assert ask(session, history).ids == []
    history.extend([4, 5, 4])
    assert ask(session, history).ids == [5, 4, 5, 4, 5]
    extra = [1, 2, 3, 50, 4, 1, 2]
    assert ask(begin(SuffixAutomatonDrafter(), extra), extra).ids == [3]


# ---- SuffixDecoding ----


Path = tuple[int, ...]


def shares(texts: Sequence[Sequence[int]], suffix: Path, least: float) -> dict[Path, float]:
    """D of every continuation of a suffix with at least ``least``: products of shares among siblings."""
    found: dict[Path, float] = {(): 1.0}
    queue: list[Path] = [()]
    for path in queue:
        counts = {x: sum(len(occurrences(t, (*suffix, *path, x))) for t in texts) for x in range(3)}
        for x, count in counts.items():
            share = found[path] * count / max(sum(counts.values()), 1)
            if share >= least:
                found[*path, x] = share
                queue.append((*path, x))
    del found[()]
    return found


@pytest.mark.usefixtures("unchecked")
@given(TEXT, st.lists(TEXT, max_size=2), st.integers(1, 8), st.sampled_from([0.1, 0.4]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tree_with_the_best_score(
    ids: list[int], others: list[list[int]], nodes: int, least: float
) -> None:
    """A scan of all suffixes, here and elsewhere: no tree scores more, and one of them is this one."""
    drafter = SuffixDecoding(references=others, min_share=least, factor=1.5)
    tree = paths(ask(begin(drafter, ids), ids, nodes))
    best, own = 0.0, 0.0
    for texts in ([ids], others):
        for p in range(1, len(ids) + 1):
            room = min(int(1.5 * p), nodes)
            known = shares(texts, tuple(ids[-p:]), least)
            best = max(best, sum(sorted(known.values())[-room:]))
            if len(tree) <= room and tree <= {*known}:
                own = max(own, sum(known[path] for path in tree))
    assert own == pytest.approx(best)


def test_a_row_grows_as_its_text_does() -> None:
    """Asked round by round, or once at the end: the same tree."""
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2]
    history, session = History(text[:3]), begin(SuffixDecoding(), text[:3])
    for x in text[3:]:
        ask(session, history)
        history.extend([x])
    slow, once = ask(session, history), ask(begin(SuffixDecoding(), text), text)
    assert slow.ids == once.ids and slow.parents == once.parents
    # 1 2 went on with 3, 4, 3; MAX_SPEC is 2: 3 (2/3), then 4 (1/3), before 3 1 and 3 5 (1/3).
    assert paths(once) == {(3,), (4,)}


def test_outputs_are_remembered_for_later_sessions() -> None:
    drafter = SuffixDecoding(remember=True, capacity=8)
    first, second = begin(drafter, [1], [1]), begin(drafter, [1])
    history = History([1])
    history.extend([5, 6, 7])
    ask(first, history)
    ask(first, History([9]), row=1)
    first.end([0])
    # Neither a row beside it nor a session that runs already learns of it.
    assert ask(first, [9, 5], row=1).ids == ask(second, [9, 5]).ids == []
    assert ask(begin(drafter, [9, 5]), [9, 5]).ids == [6]
    # Beyond the capacity the oldest outputs go.
    for x in (8, 10):
        session = begin(drafter, [1])
        history = History([1])
        history.extend([x, x + 1, x, x + 1])
        ask(session, history)
        session.end([0])
    session = begin(drafter, [5])
    assert ask(session, [9, 5]).ids == [] and ask(begin(drafter, [10]), [10]).ids == [11]
    assert ask(begin(SuffixDecoding(), [9, 5]), [9, 5]).ids == []


def test_chains_follow_the_likeliest_path() -> None:
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2]
    draft = ask(begin(SuffixDecoding(tree=False, factor=2), text), text)
    assert draft.is_chain and draft.ids[0] == 3


# ---- both ----


@pytest.mark.parametrize(
    "drafter",
    [
        SuffixAutomatonDrafter(references=[[1, 2, 1, 0]]),
        SuffixDecoding(references=[[1, 2, 1, 0]], remember=True),
        SuffixDecoding(tree=False),
    ],
    ids=["suffix_automaton", "suffix_decoding", "chains"],
)
@pytest.mark.usefixtures("unchecked")
def test_seeds_decide(drafter: Any) -> None:
    assert same_as_plain(drafter) > 5


def test_a_periodic_model_is_drafted_in_full() -> None:
    """A model that repeats itself: behind the first periods every draft is accepted."""
    model = ScriptedModel([1, 2, 3, 4])
    for drafter in (SuffixAutomatonDrafter(), SuffixDecoding(num_draft_tokens=16)):
        (found,) = play(model, row(drafter=drafter, max_new_tokens=80))
        assert found.report.target_calls < 14 and found.report.acceptance_rate > 0.6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: SuffixAutomatonDrafter(num_draft_tokens=0), "num_draft_tokens >= 1"),
        (lambda: SuffixAutomatonDrafter(min_match=0), "min_match >= 1"),
        (lambda: SuffixAutomatonDrafter(references=[[]]), "without ids: number 0 of 1"),
        (lambda: SuffixAutomatonDrafter(references=[[1, -1]]), "got -1"),
        (lambda: SuffixAutomatonDrafter(references=[1, 2]), "a list of texts"),  # type: ignore[list-item]
        (lambda: SuffixAutomatonDrafter(references=["ab"]), "a list of texts"),  # type: ignore[list-item]
        (lambda: SuffixDecoding(min_share=0), "0 < min_share <= 1"),
        (lambda: SuffixDecoding(factor=0.5), r"factor \+ offset >= 1"),
        (lambda: SuffixDecoding(depth=1), "depth >= 2"),
    ],
)
def test_settings_that_cannot_be_right(make: Any, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        make()


@pytest.mark.usefixtures("unchecked")
def test_models_that_score_chains_only() -> None:
    assert same_as_plain(SuffixDecoding(tree=False), models(trees=False)[1:2]) > 0
