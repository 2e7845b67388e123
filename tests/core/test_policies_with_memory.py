"""Policies that remember, and all policies in the loop: pure, exact, blind to neighbours."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from multispec.drafters import DraftModel
from multispec.errors import UsageError
from multispec.policies import (
    EXP3,
    SVIP,
    UCB,
    AcceptanceAware,
    AdaEDL,
    Confidence,
    DraftAndVerify,
    DynamicDepth,
    FixedLength,
    Goodput,
    Heuristic,
    Off,
    PathConfidence,
    TapOut,
)
from multispec.protocols import Budget, Past, Policy
from multispec.sampling import Noise, Sampling
from multispec.testing import ScriptedDrafter, SlotTableModel, TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection

pytestmark = pytest.mark.usefixtures("unchecked")

# Each with settings at which it takes different lengths on the models below.
POLICIES: list[Policy] = [
    FixedLength(num_draft_tokens=3),
    Heuristic(high=6),
    Confidence(threshold=0.5, max_draft_tokens=6),
    DraftAndVerify(threshold=0.55, max_draft_tokens=6),
    AdaEDL(threshold=0.5, max_draft_tokens=6),
    SVIP(h=0.9, max_draft_tokens=6),
    PathConfidence(threshold=0.2, max_draft_tokens=6),
    DynamicDepth(threshold=-1.0, depths=(1, 3), max_draft_tokens=6),
    AcceptanceAware(max_draft_tokens=6),
    Goodput(costs=tuple(1 + 0.1 * g for g in range(6))),
    UCB(lengths=(1, 2, 5)),
    EXP3(lengths=(1, 2, 5)),
    TapOut(policies=(SVIP(h=0.9, max_draft_tokens=6), UCB(lengths=(1, 4)), DraftAndVerify())),
    Off(),
]
NAMED = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


def fold(policy: Policy, rounds: list[tuple[int, float]]) -> list[Budget]:
    """Budgets over a run: how many were drafted in each round, and the share that was accepted."""
    past, found = Past(rounds=1), list[Budget]()
    for number, (drafted, share) in enumerate(rounds, 2):
        budget = policy.budget(past, 5)
        found.append(budget)
        nodes = min(drafted, budget.nodes)
        kept = round(share * nodes)
        past = Past(number, budget.nodes, nodes, kept, nodes, kept, 1, budget.memory)
    return [*found, policy.budget(past, 5)]


@NAMED
def test_a_policy_is_a_pure_function(policy: Policy) -> None:
    """The same past gives the same budget, also between the rounds of another row."""
    rounds = [(4, 0.5), (4, 1.0), (0, 0.0), (3, 0.0)]
    first = fold(policy, rounds)
    fold(policy, [(4, 0.0)] * 9)
    assert fold(policy, rounds) == first
    assert all(budget.nodes >= 0 for budget in first)


@pytest.mark.parametrize("policy", [DraftAndVerify(), AdaEDL()], ids=lambda p: p.name)
def test_thresholds_follow_acceptance(policy: Policy) -> None:
    """Little accepted: stop sooner. All accepted, and yet stopped early: go on longer."""

    def sureness(budget: Budget) -> float:
        return budget.confidence - (budget.entropy if budget.entropy < math.inf else 0.0)

    bad = [sureness(b) for b in fold(policy, [(4, 0.0)] * 20)]
    good = [sureness(b) for b in fold(policy, [(4, 1.0)] * 20)]
    assert bad == sorted(bad) and bad[-1] > bad[0]
    assert good == sorted(good, reverse=True) and good[-1] < good[0]


def test_draft_and_verify_by_hand() -> None:
    """M = .9 / 2 + .5 / 2 = .7 < .9, so th = .9 * .6 + .1 * .61; a draft as long as allowed moves nothing."""
    first, second = fold(DraftAndVerify(), [(4, 0.5)])
    assert [first.confidence, second.confidence] == pytest.approx([0.6, 0.601])
    whole = fold(DraftAndVerify(max_draft_tokens=4), [(4, 1.0)])
    assert whole[1].confidence == pytest.approx(0.6)
    early = fold(DraftAndVerify(max_draft_tokens=9), [(4, 1.0)])
    assert early[1].confidence == pytest.approx(0.599)


def test_ada_edl_by_hand() -> None:
    """1 - sqrt(.2 H) < .4 is H > .36 / .2; r = .9 / 2 + .5 / 2 < .9 raises lambda by a tenth of .01."""
    first, second = fold(AdaEDL(gamma=0.2, threshold=0.4), [(4, 0.5)])
    assert first.entropy == pytest.approx(0.36 / 0.2)
    assert second.entropy == pytest.approx((1 - 0.401) ** 2 / 0.2)
    assert SVIP(h=0.5).budget(Past(), 5).entropy == 0.25


def test_acceptance_aware_by_hand() -> None:
    """c = (1 + .5) / 2 = .75 at depth 1, (0 + .5) / 2 = .25 at depth 2, .5 unseen behind: .75, .1875."""
    policy = AcceptanceAware(h=0.8, acceptance=0.5, decay=1.0)
    before, after = fold(policy, [(3, 1 / 3)])
    assert before.nodes == 3  # 1 - .5 ** 3 = .875 is the first above .8
    assert after.nodes == 2  # 1 - .1875 = .8125
    assert [b.nodes for b in fold(policy, [(9, 1.0)] * 30)][-1] > 10
    assert [b.nodes for b in fold(policy, [(9, 0.0)] * 30)][-1] == 1
    assert AcceptanceAware(acceptance=1.0, max_draft_tokens=7).budget(Past(), 5).nodes == 7


# ---- in the loop ----

TARGET, NEAR = TableModel(seed=2), TableModel(seed=2, strict=False)
NEAR.table = NEAR.table + 0.8 * TableModel(seed=5).table


@NAMED
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_seed_gives_the_same_tokens_with_any_policy(policy: Policy, temperature: float) -> None:
    """Alone and in a batch, against plain decoding; and policies do draft."""
    samplings = [Sampling(seed=n, temperature=temperature) for n in range(3)]
    drafter = DraftModel(NEAR, 4)

    def asked(n: int, **changes: Any) -> Any:
        return row((n + 1,), sampling=samplings[n], max_new_tokens=20 + n, **changes)

    plain = [one.tokens.tolist() for one in play(TARGET, *map(asked, range(3)))]
    rows = [asked(n, drafter=drafter, policy=policy) for n in range(3)]
    together = play(TARGET, *rows)
    alone = play(TARGET, rows[1])[0]
    assert [one.tokens.tolist() for one in together] == plain
    assert alone.tokens.tolist() == plain[1]
    assert alone.report.histogram == together[1].report.histogram
    assert all(one.report.notes == [] for one in together)
    assert (alone.report.accepted > 0) == (policy.name != "off")


@NAMED
def test_a_row_does_not_depend_on_its_neighbours(policy: Policy) -> None:
    """Under ``rejection`` the draws follow the lengths, and these the row's own past."""
    drafter = DraftModel(NEAR, 4)
    rows = [
        row((n,), drafter=drafter, policy=policy, verifier=Rejection(), max_new_tokens=24) for n in (1, 5, 7)
    ]
    together, alone = play(TARGET, *rows), play(TARGET, rows[1])[0]
    assert together[1].tokens.tolist() == alone.tokens.tolist()


@pytest.mark.parametrize("policy", POLICIES[3:-1], ids=lambda policy: policy.name)
def test_the_law_is_left_alone(policy: Policy) -> None:
    """Four symbols by enumeration, against the table."""
    target, near = TableModel(3, seed=1, support=2), TableModel(3, seed=2, strict=False, support=2)

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row(
            drafter=DraftModel(near), policy=policy, verifier=Rejection(), max_new_tokens=4, noise=noise
        )
        return tuple(play(target, asked)[0].tokens.tolist())

    law, table = enumerate_law(run), target.table.softmax(-1)
    for path in itertools.product(range(3), repeat=4):
        expected = math.prod(float(table[a, b]) for a, b in itertools.pairwise((1, *path)))
        assert law.get(path, 0.0) == pytest.approx(expected, abs=1e-9)


def test_what_a_policy_is_told() -> None:
    """Counts of the last round, the rows of the next, and its own memory."""
    told = list[Past]()

    class Listening(Heuristic):
        def budget(self, past: Past, default_nodes: int) -> Budget:
            told.append(past)
            return Budget(nodes=3, memory=(past.memory, past.rounds) if past.rounds < 3 else "full")

    model = TableModel(seed=2)
    rows = [row(drafter=DraftModel(model, 3), policy=Listening(), max_new_tokens=n) for n in (6, 30)]
    play(TARGET, *rows)
    assert {past.rows for past in told[:2]} == {2} and told[-1].rows == 1
    assert told[0].memory is None
    assert [past.memory for past in told[-3:]] == ["full"] * 3
    full = [past for past in told if past.last_nodes == 3]
    assert full and all(past.last_depth == past.last_kept == past.last_drafted == 3 for past in full)


def test_depths_of_parallel_slots_are_steps() -> None:
    """Symbols are counted one by one, depths by steps; a step is kept when all its slots are."""
    told = list[Past]()

    class Listening(Heuristic):
        def budget(self, past: Past, default_nodes: int) -> Budget:
            told.append(past)
            return Budget(nodes=4)

    target = SlotTableModel(2, 3, seed=1)
    drafter = ScriptedDrafter([0] * 50)
    play(target, row((1, 2), drafter=drafter, policy=Listening(), max_new_tokens=40))
    drafted = [past for past in told if past.last_drafted]
    assert {past.last_depth for past in drafted} <= {1, 2}
    assert all(past.last_kept <= past.last_depth for past in drafted)
    assert all(2 * past.last_kept <= past.last_accepted <= 2 * past.last_depth for past in drafted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DraftAndVerify(threshold=2.0),
        lambda: DraftAndVerify(max_draft_tokens=0),
        lambda: AdaEDL(gamma=0.0),
        lambda: AdaEDL(target=-0.1),
        lambda: SVIP(h=-1.0),
        lambda: SVIP(max_draft_tokens=0),
        lambda: PathConfidence(threshold=1.5),
        lambda: DynamicDepth(threshold=0.5),
        lambda: DynamicDepth(depths=(0, 2)),
        lambda: AcceptanceAware(h=-0.1),
        lambda: AcceptanceAware(max_draft_tokens=0),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(UsageError, match="needs"):
        make()
