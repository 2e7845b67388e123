"""Traps 1 to 4, 13 to 18 and 20: what a draw must look like for the output's law to hold.

The numbers are those of the project's list of traps: errors that were found in other code bases.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
import torch
from transformers.generation import TopKLogitsWarper

import multispec as ms
from multispec.drafters import DraftModel
from multispec.policies import Confidence, FixedLength, Heuristic
from multispec.protocols import Past, Request, Standing
from multispec.sampling import CounterNoise, Law, Purpose, Sampling, _uniform
from multispec.stream import Draft
from multispec.testing import ScriptedDrafter, TableModel, TreeDrafter, play, row
from multispec.tree import depths
from multispec.verifiers import Coupled, Rejection
from multispec.verifiers.rejection import residual
from tests.traps.tools import by_hand, constant, distance, generation, law, tokens_of

V = 3
EXACT = 1e-9


def _target() -> TableModel:
    return TableModel(V, seed=1)


def _draft(seed: int = 2, size: int = V) -> TableModel:
    return TableModel(size, seed=seed, strict=False)


def _wrong_q(request: Request) -> Draft:
    """An argmax draft that claims to have been sampled from softmax: the fault of trap 1."""
    model = _draft()
    last = request.history.ids[-1]
    return Draft.chain([int(model.table[last].argmax())], model.table[last].softmax(-1)[None])


def test_trap_01_q_must_be_what_was_sampled() -> None:
    """A sampled draft with its own q, and an argmax draft as a point mass, keep the law."""
    expected = by_hand(_target())
    assert distance(law(_target(), drafter=DraftModel(_draft())), expected) < EXACT
    best = ScriptedDrafter(lambda r: Draft.chain(_wrong_q(r).tokens))
    assert distance(law(_target(), drafter=best), expected) < EXACT


def test_trap_01_an_argmax_draft_with_softmax_q_is_seen_to_be_biased() -> None:
    """The very fault, done on purpose: enumeration shows the bias, so the test above has teeth."""
    biased = law(_target(), drafter=ScriptedDrafter(_wrong_q))
    assert distance(biased, by_hand(_target())) > 0.02


def test_trap_01_the_draft_model_gives_back_the_law_it_drew_from() -> None:
    """Under rejection, q of each node is the processed law of the draft model at that node."""
    model = _draft()
    spy = DraftModel(model)
    settings: dict[str, Any] = {
        "drafter": spy,
        "verifier": Rejection(),
        "sampling": Sampling(temperature=0.7, seed=3),
    }
    target = _target()
    play(target, row(**settings))
    seen = [call.drafts[0] for call in target.sessions[0].calls if len(call.drafts[0])]
    assert seen
    for draft in seen:
        assert draft.kind == "sampled" and draft.q is not None
        for node in range(1, len(draft)):
            before = int(draft.tokens[node - 1])
            expected = (model.table[before] / 0.7).softmax(-1)
            torch.testing.assert_close(draft.q[node], expected)


class _Favourite:
    """A processor that looks at the prefix: raises the symbol after the last one."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, (int(input_ids[0, -1]) + len(input_ids[0])) % V] += 1.0
        return scores


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
def test_trap_02_draft_and_target_are_processed_alike(verifier: Any) -> None:
    """A model that drafts for itself has q = p at every node, whatever the rules: all is accepted."""
    sampling = Sampling(temperature=0.5, top_k=2, repetition_penalty=1.3, frequency_penalty=0.4, seed=9)
    drafter = DraftModel(TableModel(V, seed=1, strict=False))
    settings: dict[str, Any] = {"verifier": verifier, "processors": (_Favourite(),), "max_new_tokens": 40}
    result = generation(_target(), drafter=drafter, sampling=sampling, **settings)
    assert result.report.accepted == result.report.drafted > 20


@pytest.mark.parametrize(
    "truncation", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_p": 0.7, "temperature": 0.6}]
)
def test_trap_03_truncation_comes_before_the_ratio(truncation: dict[str, Any]) -> None:
    """top-k, top-p and min-p shape p and q; the residual is never cut again."""
    sampling = Sampling(**truncation)
    plain = law(_target(), sampling=sampling)
    drafted = law(_target(), sampling=sampling, drafter=DraftModel(_draft()))
    assert distance(drafted, plain) < EXACT
    assert {path for path, mass in drafted.items() if mass > 0} <= set(plain)


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
def test_trap_03_temperature_0_stays_greedy_through_rejections(verifier: Any) -> None:
    """With a draft that is nearly always rejected, temperature 0 is still the argmax, with top-p set."""
    sampling = Sampling(temperature=0, top_p=0.7, seed=1)
    drafter = DraftModel(_draft())
    found = tokens_of(_target(), sampling=sampling, verifier=verifier, drafter=drafter)
    expected, last = [], 1
    for _ in range(8):
        last = int(_target().table[last].argmax())
        expected.append(last)
    assert found == expected


def test_trap_04_greedy_is_one_hot_without_a_softmax() -> None:
    """At temperature 0 p is exactly one-hot, for scores whose softmax would overflow or be flat."""
    scores = torch.tensor([[1e30, 3e30, 2e30], [1.0, 1.0 + 1e-6, 1.0], [-torch.inf, -5e30, -6e30]])
    greedy = Law(scores, greedy=True)
    assert greedy.probs.tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert CounterNoise(3).symbols(greedy, [0, 1, 2]).tolist() == [1, 1, 1]


def test_trap_13_a_symbol_without_mass_is_never_accepted() -> None:
    """u q < p is strict and u is never 0 or 1: p = 0 always fails, p >= q always passes."""
    noise, places = CounterNoise(0), list(range(20_000))
    some, none = torch.full((20_000,), 0.3), torch.zeros(20_000)
    assert not noise.accepts(none, some, places).any()
    assert not noise.accepts(none, none, places).any()
    assert noise.accepts(some, some, places).all()
    extremes = _uniform(torch.tensor([0, -1, 2**63 - 1, -(2**63)]))
    assert bool((extremes > 0).all()) and bool((extremes < 1).all())


@pytest.mark.parametrize("uniform", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_trap_13_inverting_the_distribution_never_ends_on_an_empty_symbol(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest and the largest uniform land on symbols with mass, also where rounding loses some."""
    monkeypatch.setattr(CounterNoise, "uniforms", lambda *_: torch.tensor([uniform] * 3, dtype=torch.float64))
    probs = torch.tensor([[0, 0.1, 0, 0.9, 0], [0, 1e-30, 0.1, 0.0, 0], [0.3, 0.3, 0.3, 0, 0]])
    found = CounterNoise(0).choose(probs, [0, 1, 2], Purpose.RESIDUAL)
    assert bool((probs.gather(1, found[:, None]) > 0).all())


class _Unlucky(CounterNoise):
    """Noise whose every test fails."""

    def accepts(self, p: Any, q: Any, positions: Any, key: int = 0) -> torch.Tensor:
        return torch.zeros(len(p), dtype=torch.bool)


def test_trap_14_an_empty_residual_falls_back_to_p() -> None:
    """p = q and a test that failed by a last bit leave max(p - q, 0) = 0: draw from p, not from NaN."""
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert residual(p[None], p[None])[0].tolist() == p.tolist()
    draft = Draft.chain([0], p[None])
    logits = p.log().expand(2, -1)
    counts = [0, 0]
    for seed in range(400):
        verdict = Rejection().verify(draft, Law(logits, greedy=False), _Unlucky(seed), Standing(0))
        counts[verdict.tokens[0]] += 1
    assert abs(counts[0] / 400 - 0.25) < 0.07


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
def test_trap_15_the_seed_stream_does_not_depend_on_the_draft_length(length: int) -> None:
    """Unused draws leave no trace: every k gives the symbols of plain sampling."""
    model, sampling = TableModel(seed=4), Sampling(seed=11)
    settings: dict[str, Any] = {"sampling": sampling, "max_new_tokens": 40}
    drafter = DraftModel(TableModel(seed=5, strict=False), num_draft_tokens=length)
    assert tokens_of(model, drafter=drafter, **settings) == tokens_of(model, **settings)


def test_trap_15_generation_leaves_the_global_generator_alone() -> None:
    """No draw comes from torch's own state, so user code around us is not disturbed."""
    before = torch.get_rng_state()
    tokens_of(_target(), drafter=DraftModel(_draft()), verifier=Rejection())
    assert torch.equal(torch.get_rng_state(), before)


def test_trap_15_draft_and_verify_draws_are_independent() -> None:
    """The uniforms of drawing, testing and the residual are uncorrelated, and so are two seeds."""
    places = list(range(4000))
    streams = [CounterNoise(7).uniforms(places, purpose) for purpose in Purpose]
    streams.append(CounterNoise(8).uniforms(places, Purpose.DRAFT))
    streams.append(CounterNoise(7, sample=1).uniforms(places, Purpose.DRAFT))
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert float(correlations.abs().max()) < 0.06


def test_trap_15_a_stop_discards_draws_without_shifting_later_ones() -> None:
    """A shorter run is a prefix of a longer one with the same seed."""
    settings: dict[str, Any] = {"sampling": Sampling(seed=2), "drafter": DraftModel(_draft())}
    long = tokens_of(_target(), max_new_tokens=30, **settings)
    for length in (1, 4, 7, 19):
        assert tokens_of(_target(), max_new_tokens=length, **settings) == long[:length]


def test_trap_16_an_unsure_symbol_is_verified_not_dropped() -> None:
    """A confidence threshold ends the draft after the unsure symbol, so every draft has one at least."""
    target = _target()
    policy = Confidence(threshold=1.0, max_draft_tokens=6)
    settings: dict[str, Any] = {"policy": policy, "verifier": Rejection(), "max_new_tokens": 20}
    generation(target, drafter=DraftModel(_draft()), **settings)
    sizes = [len(call.drafts[0]) for call in target.sessions[0].calls]
    assert set(sizes[:-1]) == {1}


def test_trap_16_pruning_by_confidence_keeps_the_law() -> None:
    """The rule looks at max q, never at the symbol drawn: the law is the target's."""
    policy = Confidence(threshold=0.6, max_draft_tokens=2)
    found = law(_target(), length=4, drafter=DraftModel(_draft()), policy=policy)
    assert distance(found, by_hand(_target(), 4)) < EXACT


def test_trap_17_length_from_past_outcomes_keeps_the_law() -> None:
    """A schedule that grows and shrinks with past acceptance leaves the law alone."""
    policy = Heuristic(low=1, high=3)
    found = law(_target(), length=4, drafter=DraftModel(_draft(), num_draft_tokens=1), policy=policy)
    assert distance(found, by_hand(_target(), 4)) < EXACT


def test_trap_17_a_policy_cannot_see_the_draft() -> None:
    """What a policy is told are counts and times of past rounds, and what it made of them: never a symbol."""
    told = get_type_hints(Past)
    assert told.pop("memory") is object
    assert {name for name, kind in told.items() if kind is float} == {"seconds", "draft_seconds"}
    assert all(
        name.startswith("last_") or kind is float or name in ("rounds", "rows", "step", "widest")
        for name, kind in told.items()
    )
    past = Past(rounds=1, last_nodes=4, last_drafted=4, last_accepted=4)
    assert Heuristic().budget(past, 5) == Heuristic().budget(past, 5)


@pytest.mark.parametrize("kind", ["point", "sampled", "without_replacement"])
def test_trap_18_trees_keep_the_law(kind: Any) -> None:
    """Siblings of every kind, two per node and two deep, leave the target's own law."""
    drafter = TreeDrafter(_draft(), branching=(2, 2), kind=kind)
    found = law(_target(), length=4, drafter=drafter, policy=FixedLength(num_draft_tokens=6))
    assert distance(found, by_hand(_target(), 4)) < EXACT


def _misdeclared(request: Request) -> Draft:
    """Two siblings that always differ, declared as independent draws: the fault of trap 18."""
    model = _draft()
    q = model.table[request.history.ids[-1]].softmax(-1)
    first = int(request.noise.choose(q[None], [request.round_start], Purpose.DRAFT, 1))
    rest = q.clone()
    rest[first] = 0
    second = int(request.noise.choose(rest[None], [request.round_start], Purpose.DRAFT, 2))
    tokens = torch.tensor([first, second])
    if request.budget.nodes < 2:
        return Draft.empty()
    return Draft(tokens=tokens, parents=(-1, -1), q=q.expand(2, -1), kind="sampled")


def test_trap_18_siblings_that_are_not_independent_are_seen_to_be_biased() -> None:
    """The very fault, done on purpose: enumeration shows the bias."""
    policy = FixedLength(num_draft_tokens=2)
    found = law(_target(), length=4, drafter=ScriptedDrafter(_misdeclared), policy=policy)
    assert distance(found, by_hand(_target(), 4)) > 1e-3


def test_trap_18_branches_of_one_node_share_one_draw_of_the_target() -> None:
    """Under the coupled rule every node of one depth is tested against the same noise."""
    tree = Draft(tokens=torch.tensor([0, 1, 2, 0, 1, 2]), parents=(-1, -1, -1, 0, 1, 2))
    flat = torch.zeros(len(tree) + 1, 3)
    for seed in range(50):
        noise = CounterNoise(seed)
        verdict = Coupled().verify(tree, Law(flat, greedy=False), noise, Standing(5))
        places = [5 + depth for depth in (0, *depths(tree.parents))]
        same = noise.symbols(Law(flat, greedy=False), places).tolist()
        assert len(set(same[1:4])) == 1 and len(set(same[4:])) == 1
        assert verdict.tokens[:2] == (same[0], same[1])


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()])
@pytest.mark.parametrize(
    "drafter", [None, ScriptedDrafter(constant(2, 2)), ScriptedDrafter(constant(1, 1, 1))]
)
def test_trap_20_ties_are_broken_the_same_way_everywhere(verifier: Any, drafter: Any) -> None:
    """Of equal scores the first wins, in plain and in drafted decoding."""
    tied = torch.zeros(V + 1, V)
    tied[:, 1:3] = 1.0
    model = TableModel(V, table=tied)
    sampling = Sampling(temperature=0)
    found = tokens_of(model, verifier=verifier, drafter=drafter, sampling=sampling)
    assert found == [1] * 8


def test_trap_20_top_k_keeps_what_equals_the_kth_as_transformers_does() -> None:
    """Which symbols survive a tie at rank k is the same as in transformers."""
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    for k in (1, 2, 3, 4, 5):
        rule = ms.Sampling(top_k=k)
        ours = TableModel(5, table=scores[:1].expand(6, -1))
        kept = {path[0] for path in law(ours, 1, sampling=rule)}
        theirs = TopKLogitsWarper(k)(torch.zeros(1, 1).long(), scores[:1])[0]  # pyright: ignore
        assert kept == set(torch.isfinite(theirs).nonzero()[:, 0].tolist())
