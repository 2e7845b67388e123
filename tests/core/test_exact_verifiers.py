"""The exact rules beyond rejection: the law of what they emit, by enumeration, and how much they accept."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Standing, Verifier
from multispec.sampling import CounterNoise, Law, Noise, Purpose, Sampling
from multispec.stream import Draft, DraftKind
from multispec.testing import EnumeratedNoise, TableModel, TreeDrafter, enumerate_law, play, row
from multispec.tree import path_to
from multispec.verifiers.block import BlockVerification
from multispec.verifiers.k_seq import KSeq, share
from multispec.verifiers.optimal import Optimal
from multispec.verifiers.rejection import Rejection
from multispec.verifiers.sample_and_match import SampleAndMatch
from multispec.verifiers.spechub import SpecHub
from multispec.verifiers.traversal import Traversal

EXACT = 1e-9
FIRST = 0
KINDS: tuple[DraftKind, ...] = ("point", "sampled", "without_replacement")
RULES: tuple[Verifier, ...] = (
    BlockVerification(),
    Traversal(),
    KSeq(),
    SpecHub(),
    SampleAndMatch(),
    Optimal(),
    Rejection(),
)
CHAIN, TREES = (1, 1), ((2, 1), (2, 2), (3,))
JointLaw = dict[tuple[int, ...], float]
Make = Callable[["Laws", tuple[int, ...], DraftKind, Noise], Draft]


@dataclass(frozen=True, eq=False)
class Laws:
    """p and q after every symbol ``[V, V]``."""

    p: Tensor
    q: Tensor


@lru_cache
def laws(seed: int, size: int = 3, sharp: float = 1.5) -> Laws:
    """Random laws; q is near p, and each rules something out."""
    generator = torch.Generator().manual_seed(seed)
    p, noise = (torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(2))
    q = p + 0.7 * noise
    return Laws((sharp * p).softmax(-1), (sharp * q).softmax(-1))


def cut(one: Laws) -> Laws:
    """p without its rarest symbol, q without its second one."""
    p = one.p.scatter(-1, one.p.argmin(-1, keepdim=True), 0.0)
    q = one.q.scatter(-1, one.q.argsort(-1)[:, 1:2], 0.0)
    return Laws(p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True))


def drafted(one: Laws, branching: tuple[int, ...], kind: DraftKind, noise: Noise) -> Draft:
    """A tree with ``branching[d]`` children at depth d, as far as q reaches."""
    tokens, parents, q = list[int](), list[int](), list[Tensor]()
    frontier = [-1]
    for depth, count in enumerate(branching):
        grown = list[int]()
        for parent in frontier:
            law = one.q[tokens[parent] if parent >= 0 else FIRST]
            for token in siblings(law, count, kind, noise, depth, len(tokens)):
                grown.append(len(tokens))
                tokens.append(token)
                parents.append(parent)
                q.append(law)
        frontier = grown
    rows = torch.stack(q) if kind != "point" else None
    return Draft(tokens=torch.tensor(tokens), parents=tuple(parents), q=rows, kind=kind)


def siblings(law: Tensor, count: int, kind: DraftKind, noise: Noise, depth: int, key: int) -> list[int]:
    if kind == "point":
        return law.topk(min(count, int((law > 0).sum()))).indices.tolist()
    left, found = law.clone(), list[int]()
    while len(found) < count and float(left.sum()) > 0:
        found.append(int(noise.choose(left[None], [depth], Purpose.DRAFT, key + len(found))))
        if kind == "without_replacement":
            left[found[-1]] = 0.0
    return found


def verdict(rule: Verifier, one: Laws, draft: Draft, noise: Noise) -> tuple[tuple[int, ...], int]:
    """What a round emits, and how many of the symbols were drafted."""
    before = [FIRST, *draft.ids]
    p = one.p[before]
    found = rule.verify(draft, Law(p.log(), greedy=False), noise, Standing(0))
    assert found.path == path_to(draft.parents, found.path[-1]) if found.path else True
    assert found.tokens[:-1] == tuple(draft.ids[node] for node in found.path)
    return found.tokens, len(found.path)


Rounds = dict[tuple[tuple[int, ...], int], float]


class Unfinished:
    """Noise that leaves the last symbol of a round open, and keeps its law."""

    def __init__(self, inner: Noise) -> None:
        self._inner, self.left = inner, (1.0,)
        self.symbols, self.perturbed, self.accepts = inner.symbols, inner.perturbed, inner.accepts

    def choose(self, probs: Tensor, positions: Any, purpose: Purpose, key: int = 0) -> Tensor:
        if purpose is not Purpose.RESIDUAL:
            return self._inner.choose(probs, positions, purpose, key)
        self.left = tuple((probs[0] / probs.sum()).tolist())
        return torch.zeros(1, dtype=torch.long)


def rounds(
    rule: Verifier, one: Laws, branching: tuple[int, ...], kind: DraftKind, make: Make = drafted
) -> Rounds:
    """The exact law of a round: (symbols, number of accepted ones)."""

    def run(noise: Noise) -> tuple[tuple[int, ...], int, tuple[float, ...]]:
        draft = make(one, branching, kind, noise)
        if rule.name == "sample_and_match":  # all its draws are alike
            return (*verdict(rule, one, draft, noise), (1.0,))
        unfinished = Unfinished(noise)
        return (*verdict(rule, one, draft, unfinished), unfinished.left)

    found: Rounds = {}
    for (tokens, count, left), mass in enumerate_law(run).items():
        for column, chance in enumerate(left):
            key = (*tokens[:-1], tokens[-1] + column), count
            found[key] = found.get(key, 0.0) + mass * chance
    return found


def joint(found: Rounds, one: Laws, length: int) -> JointLaw:
    """The law of the first ``length`` symbols, when what follows a round is drawn from p."""
    law: JointLaw = {}
    for (tokens, _), mass in found.items():
        for rest in itertools.product(range(len(one.p)), repeat=length - len(tokens)):
            path, chance = (*tokens, *rest), mass
            for before, symbol in itertools.pairwise(path[len(tokens) - 1 :]):
                chance *= float(one.p[before, symbol])
            law[path] = law.get(path, 0.0) + chance
    return law


def right(one: Laws, length: int) -> JointLaw:
    """The target's own."""
    return joint({((x,), 0): float(mass) for x, mass in enumerate(one.p[FIRST])}, one, length)


def error(found: Rounds, one: Laws, length: int = 3) -> float:
    """The largest difference between the law of what is emitted and the target's."""
    law, expected = joint(found, one, length), right(one, length)
    return max(abs(law.get(path, 0.0) - expected.get(path, 0.0)) for path in {*law, *expected})


def accepted(found: Rounds) -> float:
    """The mean number of drafted symbols that are kept."""
    return sum(count * mass for (_, count), mass in found.items())


def takes(rule: Verifier, branching: tuple[int, ...], kind: DraftKind) -> bool:
    if max(branching) == 1:
        return True
    refused = {"block": KINDS, "k_seq": ("without_replacement",), "spechub": ("sampled",)}
    return kind not in refused.get(rule.name, ())


# What is tested as by rejection; linear programs take their time, and are solved for the other kind.
SAME = (("k_seq", "point"), ("spechub", "point"), ("optimal", "point"), ("optimal", "sampled"))
CASES = [
    pytest.param(rule, branching, kind, id=f"{rule.name}-{'x'.join(map(str, branching))}-{kind}")
    for rule, branching, kind in itertools.product(RULES, (CHAIN, *TREES), KINDS)
    # Two independent children everywhere have too many outcomes; two, and one behind each, say as much.
    if takes(rule, branching, kind)
    and (branching, kind) != ((2, 2), "sampled")
    and (rule.name, branching) != ("optimal", (2, 2))
    and (branching == CHAIN or (rule.name, kind) not in SAME)
]


@pytest.mark.parametrize(("rule", "branching", "kind"), CASES)
def test_the_joint_law_is_the_targets(rule: Verifier, branching: tuple[int, ...], kind: DraftKind) -> None:
    """Three symbols, within 1e-9, where p and q rule symbols out and, on small trees, where they do not."""
    one = cut(laws(1))
    found = rounds(rule, one, branching, kind)
    assert error(found, one) < EXACT
    assert 0 < accepted(found) <= len(branching) + EXACT
    if branching == CHAIN and kind == "sampled":
        whole = laws(2)
        assert error(rounds(rule, whole, branching, kind), whole) < EXACT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_longer_chains_keep_the_law(rule: Verifier) -> None:
    """Three drafted symbols, four emitted, on an alphabet of two."""
    one = laws(1, 2)
    assert error(rounds(rule, one, (1, 1, 1), "sampled"), one, 4) < EXACT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_extremes_keep_the_law(rule: Verifier) -> None:
    """A draft law that is the target's own, one that never agrees with it, and one-hot laws."""
    p = laws(3).p
    rows = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    never = Laws(rows[[0, 0, 0]], rows[[1, 1, 1]])
    certain = Laws(torch.eye(3).double().roll(1, -1), p)
    for one in (Laws(p, p), never, certain, Laws(p, certain.p)):
        found = rounds(rule, one, CHAIN, "sampled")
        assert error(found, one) < EXACT
    assert accepted(rounds(rule, never, CHAIN, "sampled")) == 0
    if rule.name != "sample_and_match":
        assert accepted(rounds(rule, Laws(p, p), CHAIN, "sampled")) == pytest.approx(2)


def outside() -> Laws:
    """Five symbols of which the target allows two, and a drafter that mostly draws others."""
    p = torch.tensor([[0.0, 0.0, 0.6, 0.4, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.0, 0.2, 0.1, 0.2]], dtype=torch.float64)
    return Laws(p.expand(5, -1), q.expand(5, -1))


@pytest.mark.parametrize("kind", ["sampled", "without_replacement"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_draws_that_the_target_rules_out_count(rule: Verifier, kind: DraftKind) -> None:
    """Whatever part of the vocabulary a round has to look at: what was drawn depends on all of q."""
    branching = (2,) if takes(rule, (2,), kind) else (1,)
    one = outside()
    assert error(rounds(rule, one, branching, kind), one, 2) < EXACT


# ---- how much is accepted ----


def test_block_verification_accepts_no_less_than_the_token_rule() -> None:
    """On every instance, and on some more (Sun et al. 2024)."""
    gains = []
    for seed in range(2):
        gains.append(_gain(BlockVerification(), laws(seed, 3, 2.0), (1, 1), "sampled"))
        gains.append(_gain(BlockVerification(), laws(seed, 2, 2.0), (1, 1, 1), "sampled"))
    assert min(gains) > -1e-12
    assert max(gains) > 1e-3


@pytest.mark.parametrize("kind", ["sampled", "without_replacement"])
def test_traversal_accepts_no_less_than_recursive_rejection(kind: DraftKind) -> None:
    gains = [_gain(Traversal(), cut(laws(seed)), (2, 1), kind) for seed in range(3)]
    assert min(gains) > -1e-12
    assert max(gains) > 1e-3


def _gain(rule: Verifier, one: Laws, branching: tuple[int, ...], kind: DraftKind) -> float:
    exact = accepted(rounds(Rejection(), one, branching, kind))
    return accepted(rounds(rule, one, branching, kind)) - exact


@pytest.mark.parametrize("branching", [(1, 1), (1, 1, 1)])
def test_traversal_on_a_chain_is_block_verification(branching: tuple[int, ...]) -> None:
    """The very law of a round, lengths included."""
    for seed in range(2):
        one = laws(seed, 2)
        blocks, traversed = (
            rounds(rule, one, branching, "sampled") for rule in (BlockVerification(), Traversal())
        )
        assert blocks.keys() == traversed.keys()
        assert all(blocks[key] == pytest.approx(traversed[key], abs=1e-12) for key in blocks)


@pytest.mark.parametrize(
    "rule", [BlockVerification(), Traversal(), KSeq(), SpecHub(), Optimal()], ids=lambda r: r.name
)
def test_given_symbols_are_accepted_as_by_rejection(rule: Verifier) -> None:
    """p over the siblings is the most that any exact rule accepts, and all of them reach it."""
    for branching in (CHAIN,) if rule.name == "block" else (CHAIN, (2, 2)):
        one = laws(4)
        assert _gain(rule, one, branching, "point") == pytest.approx(0, abs=1e-12)


def most(p: Tensor, sets: dict[tuple[int, ...], float]) -> float:
    """1 + min over H of p(H) - Pr(all siblings in H): what no rule exceeds."""
    size = len(p)
    subsets = (set(H) for n in range(size + 1) for H in itertools.combinations(range(size), n))
    return 1 + min(float(p[list(H)].sum()) - sum(m for X, m in sets.items() if {*X} <= H) for H in subsets)


def sets_of(q: Tensor, kind: DraftKind) -> dict[tuple[int, ...], float]:
    """The law of two siblings, by enumeration."""
    pairs: dict[tuple[int, ...], float]
    pairs = enumerate_law(lambda noise: tuple(siblings(q, 2, kind, noise, 0, 0)))
    return pairs


@pytest.mark.parametrize("kind", ["sampled", "without_replacement"])
def test_what_two_siblings_give(kind: DraftKind) -> None:
    """The linear program reaches the bound; the closed forms lie between recursive rejection and it."""
    for seed in range(2):
        one = laws(seed, 3, 1.2)
        rates = {
            rule.name: accepted(rounds(rule, one, (2,), kind))
            for rule in (Rejection(), Optimal(), KSeq(), SpecHub())
            if takes(rule, (2,), kind)
        }
        assert rates["optimal"] == pytest.approx(most(one.p[FIRST], sets_of(one.q[FIRST], kind)), abs=1e-6)
        assert all(rate <= rates["optimal"] + 1e-9 for rate in rates.values())
        assert rates["rejection"] < rates["optimal"] - 1e-4


def test_spechub_reaches_the_optimum_of_its_own_pairs() -> None:
    """Pairs of any symbol and the hub: the closed form accepts what the bound says."""
    for seed in range(3):
        one = laws(seed, 3)
        p, q = one.p[FIRST], one.q[FIRST]
        a = int(q.argmax())
        pairs: JointLaw = {(x, a): float(q[x] / (1 - q[a])) for x in range(3) if x != a}

        def run(noise: Noise, p: Tensor = p, q: Tensor = q) -> bool:
            x = siblings(q, 2, "without_replacement", noise, 0, 0)
            draft = Draft(
                tokens=torch.tensor(x), parents=(-1, -1), q=q.expand(2, -1), kind="without_replacement"
            )
            at = _Counted(noise)
            SpecHub().verify(draft, Law(p.log().expand(3, -1), greedy=False), at, Standing(0))
            return at.accepted

        assert enumerate_law(run)[True] == pytest.approx(most(p, pairs), abs=1e-12)


class _Counted:
    """Noise that remembers whether the last test passed: also where the hub that is kept was not drafted."""

    def __init__(self, inner: Noise) -> None:
        self._inner, self.accepted = inner, False
        self.symbols, self.perturbed, self.choose = inner.symbols, inner.perturbed, inner.choose

    def accepts(self, p: Tensor, q: Tensor, positions: Any, key: int = 0) -> Tensor:
        found = self._inner.accepts(p, q, positions, key)
        self.accepted = bool(found[0])
        return found


def test_k_seq_solves_for_its_share() -> None:
    """rho = 1 for one draw, and where p = q; between 1 and k otherwise, with both sides equal."""
    for seed in range(5):
        one = laws(seed, 4)
        p, q = one.p[:1], one.q[:1]
        assert share(p, p, 3) == pytest.approx(1, abs=1e-4)
        for k in (2, 3, 5):
            rho = share(p, q, k)
            beta = float(torch.minimum(p / rho, q).sum())
            assert 1 <= rho <= k
            assert 1 - (1 - beta) ** k == pytest.approx(rho * beta, abs=1e-9)


# ---- whole generations: rounds after rounds draw from noise of their own ----


@lru_cache
def target() -> TableModel:
    return TableModel(4, seed=3, scale=1.0, support=2)


@lru_cache
def near(support: int) -> TableModel:
    table = TableModel(4, seed=3, scale=1.0).table
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(2), dtype=table.dtype)
    table = table + 0.5 * noise
    return TableModel(
        4, table=table.masked_fill(table < table.topk(support).values[:, -1:], -torch.inf), strict=False
    )


DRAFTERS: dict[str, Callable[[], Any]] = {
    "chain": lambda: DraftModel(near(2), 2),
    "lookup": lambda: PromptLookup(num_draft_tokens=2),
    "sampled_tree": lambda: TreeDrafter(near(2), (2,), "sampled"),
    "tree_without_replacement": lambda: TreeDrafter(near(2), (2, 1), "without_replacement"),
}
LOOPED = [
    ("block", "chain"),
    ("block", "lookup"),
    ("traversal", "tree_without_replacement"),
    ("sample_and_match", "lookup"),
    ("optimal", "sampled_tree"),
]


def by_name(name: str) -> Verifier:
    return next(rule for rule in RULES if rule.name == name)


@pytest.mark.parametrize(("name", "drafter"), LOOPED)
def test_whole_generations_have_the_law_of_the_target(name: str, drafter: str) -> None:
    """Four symbols through the real loop: several rounds, none of which sees a draw twice."""
    counts = [0, 0]

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row(
            (2, 1, 2), verifier=by_name(name), drafter=DRAFTERS[drafter](), max_new_tokens=4, noise=noise
        )
        found = play(target(), asked)[0]
        counts[0] += found.report.accepted
        counts[1] += found.report.drafted
        return tuple(found.tokens.tolist())

    law = enumerate_law(run)
    table = target().table.softmax(-1)
    expected: JointLaw = {(): 1.0}
    for _ in range(4):
        expected = {
            (*path, x): mass * float(table[path[-1] if path else 2, x])
            for path, mass in expected.items()
            for x in range(4)
        }
    assert max(abs(law.get(path, 0.0) - mass) for path, mass in expected.items()) < EXACT
    assert 0 < counts[0] < counts[1]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_greedy_is_greedy(rule: Verifier) -> None:
    """At temperature 0 every rule emits the target's argmax."""
    drafters = [DRAFTERS["chain"](), TreeDrafter(near(3), (2, 2), "point")]
    for drafter in drafters[: 1 if rule.name == "block" else 2]:
        asked = row((2,), verifier=rule, drafter=drafter, sampling=Sampling(temperature=0), max_new_tokens=12)
        found = play(target(), asked)[0]
        expected = [2]
        while len(expected) < 13:
            expected.append(int(target().table[expected[-1]].argmax()))
        assert found.tokens.tolist() == expected[1:]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_nothing_drafted(rule: Verifier) -> None:
    p = Law(torch.tensor([[0.0, 1.0, 0.0]]).log(), greedy=False)
    found = rule.verify(Draft.empty(), p, CounterNoise(0), Standing(4))
    assert (found.path, found.tokens, found.spent) == ((), (1,), ())


# ---- refusals ----


@pytest.mark.parametrize(
    ("name", "branching", "kind", "match"),
    [
        ("block", (2, 1), "sampled", "Use the verifier traversal"),
        ("block", (2, 1), "point", "Use the verifier traversal"),
        ("k_seq", (2,), "without_replacement", "made for independent siblings"),
        ("spechub", (2,), "sampled", "draws without replacement"),
    ],
)
def test_drafts_that_make_no_sense_are_refused(
    name: str, branching: Any, kind: DraftKind, match: str
) -> None:
    one, noise = laws(1), CounterNoise(0)
    with pytest.raises(UnsupportedError, match=match):
        verdict(by_name(name), one, drafted(one, branching, kind, noise), noise)


def test_large_linear_programs_are_refused() -> None:
    one, noise = laws(1), CounterNoise(0)
    with pytest.raises(UnsupportedError, match="3 sets, of 2 allowed"):
        verdict(Optimal(max_sets=2), one, drafted(one, (2,), "without_replacement", noise), noise)
    with pytest.raises(UsageError, match="max_sets >= 1"):
        Optimal(max_sets=0)


def test_without_scipy_the_reference_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    one, noise = laws(1), CounterNoise(0)
    with pytest.raises(UnsupportedError, match="pip install scipy"):
        verdict(Optimal(), one, drafted(one, (2,), "without_replacement", noise), noise)


# ---- planted faults: the machinery above sees each of them ----


def stale_q(one: Laws, branching: tuple[int, ...], kind: DraftKind, noise: Noise) -> Draft:
    """Every node is handed over with the q of the symbol before the last, the first with that of another."""
    draft = drafted(one, branching, kind, noise)
    assert draft.q is not None
    before = [draft.q[parent] if parent >= 0 else one.q[FIRST + 1] for parent in draft.parents]
    return replace(draft, q=torch.stack(before))


def argmax_with_softmax_q(one: Laws, branching: tuple[int, ...], kind: DraftKind, noise: Noise) -> Draft:
    """The most probable symbols, said to have been drawn."""
    best = drafted(one, branching, "point", noise)
    before = [best.ids[parent] if parent >= 0 else FIRST for parent in best.parents]
    return replace(best, q=one.q[before], kind=kind)


def dropping(one: Laws, branching: tuple[int, ...], kind: DraftKind, noise: Noise) -> Draft:
    """A chain ends before a symbol that came out improbable."""
    draft = drafted(one, branching, kind, noise)
    assert draft.q is not None
    q_x = draft.q.gather(-1, draft.tokens[:, None])[:, 0].tolist()
    size = next((node for node, q in enumerate(q_x) if q < 0.4), len(draft))
    return Draft.chain(draft.tokens[:size], draft.q[:size])


class Careless(EnumeratedNoise):
    """u in {0, 1/8, .., 7/8} and u <= p / q in the place of u < p / q."""

    def accepts(self, p: Tensor, q: Tensor, positions: Any, key: int = 0) -> Tensor:
        passed = ((p / q).clamp(max=1) * 8).floor().add(1).clamp(max=8)
        return super().accepts(passed, torch.full_like(passed, 8.0), positions, key)


FAULTS: dict[str, Make] = {"stale": stale_q, "argmax": argmax_with_softmax_q, "dropped": dropping}
USING_Q = [rule for rule in RULES if rule.name != "sample_and_match"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", USING_Q, ids=lambda rule: rule.name)
def test_a_planted_fault_is_seen(rule: Verifier, fault: str) -> None:
    """Each shifts the joint law by far more than the tests above allow."""
    one = laws(1)
    found = rounds(rule, one, CHAIN, "sampled", FAULTS[fault])
    assert error(found, one) > 1e-3


@pytest.mark.parametrize("kind", ["sampled", "without_replacement"])
@pytest.mark.parametrize("fault", ["stale", "argmax"])
def test_a_planted_fault_is_seen_on_trees(fault: str, kind: DraftKind) -> None:
    one = laws(1)
    rules = [rule for rule in USING_Q if takes(rule, (2,), kind)]
    assert len(rules) == 4
    for rule in rules:
        assert error(rounds(rule, one, (2,), kind, FAULTS[fault]), one) > 1e-3


@pytest.mark.parametrize("rule", USING_Q, ids=lambda rule: rule.name)
def test_a_test_that_passes_at_zero_is_seen(rule: Verifier) -> None:
    """Symbols that the target rules out come out."""
    one = Laws(cut(laws(1)).p, laws(1).q)
    noise, law = Careless(), dict[Any, float]()
    going = True
    while going:
        try:
            outcome = verdict(rule, one, drafted(one, CHAIN, "sampled", noise), noise)
        except AssertionError:  # nothing of p is left behind a part of weight 0: seen at once
            assert rule.name == "block"
            return
        law[outcome] = law.get(outcome, 0.0) + noise.weight
        going = noise.advance()
    assert error(law, one) > 1e-3
    outside = sum(mass for (tokens, _), mass in law.items() if float(one.p[FIRST, tokens[0]]) == 0)
    assert outside > 1e-3


def test_sample_and_match_does_not_look_at_q() -> None:
    """So a wrong q cannot harm it; a symbol that is left out because of its own probability neither."""
    one = laws(1)
    for fault in FAULTS.values():
        assert error(rounds(SampleAndMatch(), one, CHAIN, "sampled", fault), one) < EXACT
