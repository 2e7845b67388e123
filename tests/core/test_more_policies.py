"""Policies that compute their length from costs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispec.drafters import DraftModel
from multispec.errors import UsageError
from multispec.policies.goodput import Goodput
from multispec.protocols import Past
from multispec.testing import TableModel, play, row


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
    st.floats(0, 1),
    st.builds(Past, rounds=st.integers(0, 9), last_nodes=st.integers(0, 9)),
)
def test_goodput_is_the_best_of_all_lengths(costs: list[float], acceptance: float, past: Past) -> None:
    """Whatever the past: symbols per time by simulation of the geometric law of what is kept."""
    policy = Goodput(costs=costs, acceptance=acceptance)
    nodes = policy.budget(past, 5).nodes

    def rate(g: int) -> float:
        kept = [acceptance**i * (1 - acceptance) for i in range(g)] + [acceptance**g]
        return sum((i + 1) * chance for i, chance in enumerate(kept)) / costs[g]

    rates = [rate(g) for g in range(len(costs))]
    assert rates[nodes] == pytest.approx(max(rates))
    assert policy.goodput(nodes) == pytest.approx(rates[nodes])


def test_goodput_drafts_more_where_more_is_accepted_and_less_where_it_costs() -> None:
    def nodes(acceptance: float, slope: float) -> int:
        costs = [1 + slope * g for g in range(12)]
        return Goodput(costs=costs, acceptance=acceptance).budget(Past(), 5).nodes

    lengths = [nodes(a, 0.1) for a in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 11
    loads = [nodes(0.8, slope) for slope in (0.0, 0.05, 0.2, 1.0)]
    assert loads == sorted(loads, reverse=True) and loads[-1] == 0
    assert all(a != b for a, b in itertools.pairwise(loads))


def test_goodput_in_the_loop() -> None:
    """Drafts of that length, as far as there is room."""
    target = TableModel(seed=2)
    policy = Goodput(costs=(1.0, 1.1, 1.2, 1.3, 2.3), acceptance=0.9)
    play(target, row(drafter=DraftModel(TableModel(seed=2), 5), policy=policy, max_new_tokens=20))
    sizes = [len(call.drafts[0]) for call in target.sessions[0].calls]
    assert set(sizes[:-1]) == {3}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"costs": ()}, "cost of a round"),
        ({"costs": (1.0, 0.0)}, "cost of a round"),
        ({"acceptance": 1.1}, "acceptance"),
    ],
)
def test_what_goodput_refuses(settings: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Goodput(**settings)  # type: ignore[arg-type]
