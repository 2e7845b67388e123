"""Bandits: over lengths, over drafters, over other policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from multispec.drafters import DraftModel, Jacobi, PromptLookup, TokenRecycling
from multispec.drafters.among import Among
from multispec.errors import DrafterWarning, UsageError
from multispec.policies import EXP3, SVIP, UCB, AdaEDL, Confidence, DraftAndVerify, FixedLength, TapOut
from multispec.policies.exp3 import chances
from multispec.protocols import Budget, Drafter, Past, Policy
from multispec.sampling import CounterNoise, Purpose, Sampling
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel, play, row


def played(policy: Policy, keeps: Callable[[Budget], int], rounds: int) -> list[Budget]:
    """The budgets of a row in which a draft of that budget has so many symbols accepted."""
    past, found = Past(rounds=1), list[Budget]()
    for number in range(2, rounds + 2):
        budget = policy.budget(past, 5)
        found.append(budget)
        kept = min(keeps(budget), budget.nodes)
        past = Past(number, budget.nodes, budget.nodes, kept, budget.nodes, kept, 1, budget.memory)
    return found


def often(values: Sequence[int]) -> int:
    return max({*values}, key=list(values).count)


@pytest.mark.parametrize(("best", "accepting"), [(8, 8), (1, 0), (4, 4)])
@pytest.mark.parametrize("policy", [UCB(), EXP3()], ids=lambda p: p.name)
def test_bandits_find_the_length_that_pays(policy: Any, best: int, accepting: int) -> None:
    """A target that keeps so many symbols of each draft."""
    lengths = [budget.nodes for budget in played(policy, lambda _: accepting, 1200)]
    assert {*lengths} == {*policy.lengths}
    assert often(lengths[-400:]) == best


def test_ucb_by_hand() -> None:
    """Every arm once; then the mean and the root: rewards (n + 1) / (1 + g / 10) over the most, 9 / 1.8."""
    budgets = played(UCB(explore=0.0), lambda _: 2, 5)
    assert [budget.nodes for budget in budgets] == [1, 2, 4, 8, 2]
    memory: Any = budgets[-1].memory
    expected = [kept / cost / 5 for kept, cost in ((2, 1.1), (3, 1.2), (3, 1.4), (3, 1.8))]
    assert memory.sums == pytest.approx(expected) and memory.counts == (1, 1, 1, 1)


@pytest.mark.parametrize("policy", [UCB(draft_costs=(0.0, 0.5)), EXP3(draft_costs=(0.0, 0.5))])
@pytest.mark.parametrize("good", [0, 1])
def test_bandits_find_the_drafter_that_pays(policy: Any, good: int) -> None:
    """One of two is always right, the other never; the dear one pays as well where it alone is right."""
    budgets = played(policy, lambda budget: 99 if budget.drafter == good else 0, 1200)
    assert {budget.drafter for budget in budgets} == {0, 1}
    assert often([budget.drafter for budget in budgets[-400:]]) == good


def test_a_draft_that_does_not_come_is_a_plain_step() -> None:
    """The arm of a drafter that finds nothing is not asked for ever."""
    past, found = Past(rounds=1), list[int]()
    policy = UCB(lengths=(4,), draft_costs=(0.0, 0.0))
    for number in range(2, 60):
        budget = policy.budget(past, 5)
        found.append(budget.drafter)
        depth = 4 * budget.drafter
        past = Past(number, 4, depth, depth, depth, depth, 1, budget.memory)
    assert often(found) == 1


def test_a_length_of_none_switches_drafting_off() -> None:
    """Nothing is ever accepted: plain steps give most."""
    assert often([budget.nodes for budget in played(UCB(lengths=(0, 4)), lambda _: 0, 200)]) == 0


def test_exp3_draws_by_its_chances() -> None:
    """They sum to 1, none below explore / K; the draw follows them, and no noise of a draft."""
    p = chances((0.0, 1.0, 800.0, -800.0), 0.4)
    assert sum(p) == pytest.approx(1) and min(p) >= 0.1 - 1e-12
    assert p[2] == pytest.approx(0.7)
    nodes = [EXP3().budget(Past(rounds=n), 5).nodes for n in range(600)]
    assert [nodes.count(g) / 600 for g in (1, 2, 4, 8)] == pytest.approx([0.25] * 4, abs=0.05)
    drawn = torch.tensor([float(g) for g in nodes]).log2()
    for key in (0, 1):
        uniforms = CounterNoise(0).uniforms(range(600), Purpose.DRAFT, key).float()
        assert abs(float(torch.corrcoef(torch.stack([drawn, uniforms]))[0, 1])) < 0.12
    assert nodes[:50] != [EXP3(seed=1).budget(Past(rounds=n), 5).nodes for n in range(50)]


# ---- TapOut ----


def test_tapout_finds_the_policy_that_pays() -> None:
    """Rewards of n / G and n / g in equal parts: the one whose drafts are kept."""
    policy = TapOut(policies=(Confidence(), FixedLength(num_draft_tokens=3), SVIP()))
    budgets = played(policy, lambda budget: 3 if budget.nodes == 3 else 1, 400)
    assert [budget.nodes for budget in budgets[:3]] == [20, 3, 20]
    assert [budget.confidence for budget in budgets[:2]] == [0.4, 0.0]
    assert often([budget.nodes for budget in budgets]) == 3


def test_tapout_remembers_for_each_policy_alone() -> None:
    """Each policy sees the very rounds that it was chosen for, as if it had run on these alone."""
    arms = (DraftAndVerify(), AdaEDL())
    policy, keeps = TapOut(policies=arms), [0, 3, 1, 12, 5, 2, 9, 0, 7, 4, 12, 3]
    past, own = Past(rounds=1), [Past(rounds=1), Past(rounds=1)]
    chosen = list[int]()
    for number, kept in enumerate(keeps, 2):
        budget = policy.budget(past, 5)
        state: Any = budget.memory
        arm = state.played.arm
        chosen.append(arm)
        alone = arms[arm].budget(own[arm]._replace(rounds=past.rounds), 5)
        assert budget._replace(memory=None) == alone._replace(memory=None)
        outcome = Past(number, budget.nodes, 12, kept, 12, kept)
        own[arm] = outcome._replace(memory=alone.memory)
        past = outcome._replace(memory=budget.memory)
        other = 1 - arm
        if own[other].last_drafted:
            # What it learned of its own last round it knows already.
            learned = arms[other].budget(own[other], 5).memory
            own[other] = Past(memory=learned)
    assert {*chosen} == {0, 1} and chosen != sorted(chosen)


# ---- one of several drafters ----


FOUR = (0.1,) * 4


def models() -> tuple[TableModel, list[Drafter]]:
    """A target over few symbols, and four drafters of every kind."""
    near = TableModel(seed=2, support=3, strict=False)
    drafters: list[Drafter] = [
        DraftModel(TableModel(table=near.table + 0.3, strict=False, spec=near.spec), 3),
        PromptLookup(),
        TokenRecycling(),
        Jacobi(),
    ]
    return TableModel(seed=2, support=3), drafters


@pytest.mark.parametrize("policy", [UCB(lengths=(2, 5), draft_costs=FOUR), EXP3(draft_costs=FOUR)])
def test_among_drafters_the_tokens_are_those_of_plain_decoding(policy: Policy) -> None:
    """Sessions follow the text whoever drafts: each of them is asked, and drafts that are kept come."""
    target, drafters = models()
    samplings = [Sampling(seed=n) for n in range(2)]
    plain = [play(target, row(sampling=one, max_new_tokens=60))[0].tokens.tolist() for one in samplings]
    drafter = Among(drafters)
    asked = [row(drafter=drafter, policy=policy, sampling=one, max_new_tokens=60) for one in samplings]
    found = play(target, *asked)
    assert [one.tokens.tolist() for one in found] == plain
    assert all(not one.report.notes and one.report.accepted > 10 for one in found)
    assert found[0].report.draft_calls > 1


def test_among_asks_the_one_that_the_policy_names() -> None:
    """Script 0 is wrong and script 1 right: after one try each, the right one drafts."""
    script = [1, 2, 3, 4, 5, 6, 7] * 20
    target = ScriptedModel(script)
    drafter = Among([ScriptedDrafter([0] * 200), ScriptedDrafter(script, num_draft_tokens=6)])
    assert drafter.num_draft_tokens == 6
    policy = UCB(lengths=(4,), draft_costs=(0.1, 0.1), explore=0.01)
    report = play(target, row(drafter=drafter, policy=policy, max_new_tokens=60))[0].report
    assert report.histogram[4] >= 10 and report.histogram[0] <= 3


def test_among_needs_drafters_and_a_policy_that_knows_them() -> None:
    with pytest.raises(UsageError, match="got none"):
        Among([])
    policy = UCB(lengths=(4,), draft_costs=(0.1, 0.1))
    with pytest.warns(DrafterWarning, match="among has 1 drafters: got number 1"):
        play(TableModel(), row(drafter=Among([PromptLookup()]), policy=policy, max_new_tokens=30))


@pytest.mark.parametrize(
    "make",
    [
        lambda: UCB(lengths=()),
        lambda: UCB(draft_costs=(-0.1,)),
        lambda: UCB(explore=-1.0),
        lambda: EXP3(lengths=(-1, 1)),
        lambda: EXP3(draft_costs=()),
        lambda: EXP3(explore=0.0),
        lambda: TapOut(policies=()),
        lambda: TapOut(blend=2.0),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(UsageError, match="needs"):
        make()
