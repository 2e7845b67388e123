"""Policies are pure functions of past outcomes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispec.drafters import DraftModel
from multispec.policies import Confidence, FixedLength, Heuristic, Off
from multispec.protocols import Past, Policy
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel, play, row

PASTS = st.builds(
    Past,
    rounds=st.integers(0, 50),
    last_nodes=st.integers(0, 40),
    last_drafted=st.integers(0, 40),
    last_accepted=st.integers(0, 40),
)


@given(PASTS, st.integers(1, 20))
def test_fixed_length_is_fixed(past: Past, default: int) -> None:
    assert FixedLength().budget(past, default).nodes == default
    assert FixedLength(num_draft_tokens=7).budget(past, default).nodes == 7


@given(PASTS, st.integers(1, 20))
def test_off_never_drafts(past: Past, default: int) -> None:
    assert Off().budget(past, default).nodes == 0


@given(PASTS, st.integers(1, 20))
def test_confidence_asks_for_the_longest_draft(past: Past, default: int) -> None:
    budget = Confidence(threshold=0.3, max_draft_tokens=9).budget(past, default)
    assert (budget.nodes, budget.confidence) == (9, 0.3)


@given(PASTS, st.integers(1, 20))
def test_heuristic_stays_in_its_bounds(past: Past, default: int) -> None:
    nodes = Heuristic(low=2, high=10).budget(past, default).nodes
    assert nodes == default if not (past.rounds and past.last_nodes) else 2 <= nodes <= 10


@pytest.mark.parametrize(("drafted", "accepted", "expected"), [(5, 5, 7), (5, 4, 4), (0, 0, 4), (5, 0, 4)])
def test_heuristic_grows_after_full_success(drafted: int, accepted: int, expected: int) -> None:
    """Two more after all were accepted, one fewer otherwise."""
    past = Past(rounds=3, last_nodes=5, last_drafted=drafted, last_accepted=accepted)
    assert Heuristic().budget(past, 9).nodes == expected


def drafts_of(policy: Policy, drafted: list[int], length: int = 60) -> list[int]:
    script = [1, 2, 3, 4, 5, 6, 7]
    target = ScriptedModel(script)
    play(target, row(drafter=ScriptedDrafter(drafted), policy=policy, max_new_tokens=length))
    return [len(call.drafts[0]) for call in target.sessions[0].calls]


def test_heuristic_over_a_run() -> None:
    """4, 6, 8 ... while all is accepted; the length cap shortens the last."""
    script = [1, 2, 3, 4, 5, 6, 7] * 20
    assert drafts_of(Heuristic(), script, 60) == [4, 6, 8, 10, 12, 13]
    assert drafts_of(Heuristic(high=6), script, 30) == [4, 6, 6, 6, 2]
    assert drafts_of(Heuristic(), [0] * 200, 8) == [4, 3, 2, 1, 1, 1, 0]


def test_off_is_plain_decoding() -> None:
    assert drafts_of(Off(), [1, 2, 3] * 20, 10) == [0] * 9


def test_confidence_stops_behind_the_unsure_symbol() -> None:
    """The symbol whose law is unsure is still drafted: dropping it would bias the output."""
    target = TableModel(seed=2, scale=4.0)
    certain = (target.table.softmax(-1).max(-1).values >= 0.6).tolist()
    drafter = DraftModel(TableModel(seed=2, scale=4.0), 5)
    policy = Confidence(threshold=0.6, max_draft_tokens=6)
    found = play(target, row(drafter=drafter, policy=policy, max_new_tokens=60))[0]
    assert found.report.notes == []
    for call in target.sessions[0].calls[:-4]:
        before = [call.roots[0], *call.drafts[0].tokens.tolist()]
        stops = [not certain[symbol] for symbol in before[:-1]]
        assert not any(stops[:-1])
        assert stops[-1] or len(stops) == 6


def test_policies_are_frozen() -> None:
    for policy in (FixedLength(), Heuristic(), Confidence(), Off()):
        assert dataclasses.is_dataclass(policy)
        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.low = 0  # type: ignore[misc, union-attr]
