"""The length that gives most symbols per unit of time, from tables of costs and the acceptance so far."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.drafters import DraftModel
from multispec.errors import UnsupportedError, UsageError
from multispec.policies import CostTable, Goodput, measure_costs
from multispec.protocols import Past
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.testing import SlotTableModel, TableModel, play, row

PROMPT = Prompt(ids=torch.tensor([1, 2, 3]))


@settings(max_examples=40)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0, 1), st.integers(1, 9))
def test_goodput_is_the_best_of_all_lengths(costs: list[float], acceptance: float, rows: int) -> None:
    """Symbols per time by the geometric law of what is kept."""
    nodes = Goodput(costs=costs, acceptance=acceptance).budget(Past(rows=rows), 5).nodes

    def rate(g: int) -> float:
        kept = [acceptance**i * (1 - acceptance) for i in range(g)] + [acceptance**g]
        return sum((i + 1) * chance for i, chance in enumerate(kept)) / costs[g]

    rates = [rate(g) for g in range(len(costs))]
    assert rates[nodes] == pytest.approx(max(rates))


def test_goodput_drafts_more_where_more_is_accepted_and_less_where_it_costs() -> None:
    def nodes(acceptance: float, slope: float) -> int:
        costs = [1 + slope * g for g in range(12)]
        return Goodput(costs=costs, acceptance=acceptance).budget(Past(), 5).nodes

    lengths = [nodes(a, 0.1) for a in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 11
    loads = [nodes(0.8, slope) for slope in (0.0, 0.05, 0.2, 1.0)]
    assert loads == sorted(loads, reverse=True) and loads[-1] == 0
    assert all(a != b for a, b in itertools.pairwise(loads))


def test_goodput_learns_the_acceptance_of_its_row() -> None:
    """All accepted: longer; all rejected: plain. What it learned fades once it drafts no more."""
    policy = Goodput(costs=tuple(1 + 0.3 * g for g in range(9)), acceptance=0.5, decay=0.8)

    def after(kept: list[int | None]) -> list[int]:
        past, found = Past(rounds=1), list[int]()
        for share in kept:
            budget = policy.budget(past, 5)
            depth = 0 if share is None else budget.nodes
            found.append(budget.nodes)
            accepted = min(share or 0, depth)
            past = Past(past.rounds + 1, budget.nodes, depth, accepted, depth, accepted, 1, budget.memory)
        return [*found, policy.budget(past, 5).nodes]

    good, bad, again = after([9] * 12), after([0] * 12), after([*[0] * 12, *[None] * 12])
    assert good == sorted(good) and good[-1] > good[0] > 0
    assert 0 in bad and max(bad[4:]) <= 1
    assert again[-1] == again[0]


def test_goodput_by_hand() -> None:
    """a = (0 + 4 * 0.5) / (1 + 4) = 0.4: 1.4 / 1.3 symbols per time against 1, and 1.56 / 1.6."""
    policy = Goodput(costs=(1.0, 1.3, 1.6), acceptance=0.5, prior=4)
    first = policy.budget(Past(rounds=1), 5)
    assert first.nodes == 1  # 1.5 / 1.3 = 1.154 against 1.75 / 1.6 = 1.094
    past = Past(2, 1, 1, 0, 1, 0, 1, first.memory)
    assert policy.budget(past, 5).nodes == 1
    # a = 1.95 / (1.95 + 4 + 1) .. : after many rejections nothing pays.
    for _ in range(9):
        past = past._replace(memory=policy.budget(past, 5).memory)
    assert policy.budget(past, 5).nodes == 0


def test_more_rows_draft_less() -> None:
    """A table in which a batch of one is bound by memory, and one of eight by arithmetic."""
    table = CostTable(rows=(1, 8), seconds=((1.0, 1.01, 1.02, 1.03), (1.2, 2.0, 2.8, 3.6)))
    policy = Goodput(costs=table, acceptance=0.6)
    assert [policy.budget(Past(rows=n), 5).nodes for n in (1, 8, 80)] == [3, 0, 0]
    lengths = [policy.budget(Past(rows=n), 5).nodes for n in range(1, 9)]
    assert lengths == sorted(lengths, reverse=True)


def test_a_table_between_and_beyond_what_was_measured() -> None:
    table = CostTable(rows=(2, 4), seconds=((1.0, 2.0), (3.0, 6.0)))
    assert [table.at(n, 0) for n in (1, 2, 3, 4, 8)] == [1, 1, 2, 3, 6]
    assert [table.at(n, 1) for n in (1, 2, 3, 4, 8)] == [2, 2, 4, 6, 12]
    assert table.nodes == 1


def test_the_loop_says_how_many_rows_are_live() -> None:
    """Drafts grow when the neighbour is done; its tokens do not change."""
    table = CostTable(rows=(1, 2), seconds=((1.0, 1.1, 1.2, 1.3, 2.3), (1.0, 1.5, 4.0, 9.0, 9.0)))
    policy = Goodput(costs=table, acceptance=0.9)
    target, near = TableModel(seed=2), TableModel(seed=2)
    short = row(drafter=DraftModel(near, 5), policy=policy, max_new_tokens=6)
    long = row((3,), drafter=DraftModel(near, 5), policy=policy, max_new_tokens=24, sampling=Sampling(seed=4))
    both = play(target, short, long)
    sizes = [len(call.drafts[-1]) for call in target.sessions[0].calls if 1 in call.rows]
    rows = [len(call.rows) for call in target.sessions[0].calls if 1 in call.rows]
    assert {size for size, n in zip(sizes[:-1], rows, strict=False) if n == 2} == {1}
    assert {size for size, n in zip(sizes[:-1], rows, strict=False) if n == 1} == {3}
    alone = [play(target, one)[0].tokens.tolist() for one in (short, long)]
    assert [one.tokens.tolist() for one in both] == alone


@pytest.mark.parametrize("draft", [None, TableModel(seed=3, strict=False)])
def test_costs_are_measured(draft: TableModel | None) -> None:
    """A time for each number of rows and of symbols; caches hold what they would in a generation."""
    target = TableModel(seed=1)
    table = measure_costs(target, PROMPT, rows=(1, 2), nodes=3, repeats=2, draft=draft)
    assert (table.rows, table.nodes, [len(row) for row in table.seconds]) == ((1, 2), 3, [4, 4])
    assert [len(session.calls) for session in target.sessions] == [8, 8]
    assert [len(call.drafts[0]) for call in target.sessions[0].calls] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert draft is None or len(draft.sessions) == 2
    assert Goodput(costs=table).budget(Past(), 5).nodes <= 3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Goodput(costs=()), "cost of a round"),
        (lambda: Goodput(costs=(1.0, 0.0)), "cost of a round"),
        (lambda: Goodput(acceptance=1.1), "acceptance"),
        (lambda: Goodput(prior=0.0), "prior > 0"),
        (lambda: Goodput(decay=-1.0), "decay"),
        (lambda: CostTable(rows=(2, 1), seconds=((1.0,), (1.0,))), "number of rows"),
        (lambda: CostTable(rows=(1, 2), seconds=((1.0,), (1.0, 2.0))), "number of rows"),
        (lambda: CostTable(rows=(1, 2), seconds=((1.0,),)), "number of rows"),
        (lambda: measure_costs(TableModel(), PROMPT, rows=()), "measure_costs needs"),
        (lambda: measure_costs(TableModel(), PROMPT, repeats=0), "measure_costs needs"),
    ],
)
def test_what_goodput_refuses(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make()


def test_costs_of_parallel_slots_are_not_measured() -> None:
    with pytest.raises(UnsupportedError, match="2 slots of this stream move together"):
        measure_costs(SlotTableModel(), Prompt(ids=torch.tensor([1, 2])))
