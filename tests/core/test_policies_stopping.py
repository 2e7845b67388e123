"""Drafts that end early: by laws, by paths, by the mass of a beam; exact, and seen to be biased if wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from multispec.drafters import DraftModel, NgramModel
from multispec.drafters.stopping import Stopping, unsure, unsure_among
from multispec.errors import UnsupportedError, UsageError
from multispec.history import History
from multispec.policies import SVIP, Confidence, DynamicDepth, FixedLength, PathConfidence
from multispec.processing import Pipeline
from multispec.protocols import Budget, Past, Policy, Request
from multispec.sampling import CounterNoise, Law, Purpose, Sampling
from multispec.stream import Draft
from multispec.structures import Eagle2Tree, eagle2
from multispec.testing import ScriptedDrafter, TableModel, play, row
from multispec.verifiers import Rejection
from tests.core.drafting import begin
from tests.traps.tools import by_hand, distance, law

EXACT = 1e-9
Q = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.8, 0.2]]).clamp(min=1e-30)


def sure(greedy: bool = False) -> Law:
    return Law(Q.log(), greedy=greedy)


# ---- the limits themselves ----


@pytest.mark.parametrize("greedy", [False, True])
def test_which_laws_are_unsure(greedy: bool) -> None:
    """Also of greedy laws, whose p is one-hot whatever the model thinks."""
    laws = sure(greedy)
    assert unsure(Budget(nodes=1), laws) == [False, False, False]
    assert unsure(Budget(nodes=1, confidence=0.7), laws) == [False, True, False]
    assert unsure(Budget(nodes=1, entropy=0.6), laws) == [False, True, False]
    assert unsure(Budget(nodes=1, entropy=0.4), laws) == [False, True, True]
    assert [unsure_among(Budget(nodes=1, entropy=1.0), n) for n in (1, 2, 3)] == [False, False, True]
    assert [unsure_among(Budget(nodes=1, confidence=0.5), n) for n in (1, 2, 3)] == [False, False, True]


def ends(budget: Budget, *drawn: tuple[int, int]) -> list[bool]:
    """Whether a chain ends behind each symbol: (number of the law, symbol)."""
    stopping = Stopping(budget)
    return [stopping.behind(sure().at(n), x) for n, x in drawn]


def test_paths_end_behind_what_makes_them_unlikely() -> None:
    assert ends(Budget(nodes=9, reach=0.45), (2, 0), (2, 0), (1, 0)) == [False, False, True]
    assert ends(Budget(nodes=9, reach=0.45), (2, 1)) == [True]
    assert ends(Budget(nodes=2), (1, 0), (1, 0)) == [False, True]
    mass = Budget(nodes=9, mass=0.45, depths=(2, 4))
    assert ends(mass, (2, 1), (0, 0), (0, 0)) == [False, True, False]
    assert ends(Budget(nodes=9, mass=0.45), (2, 1)) == [True]


# ---- chains in the loop ----


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_svip_stops_behind_the_uncertain_symbol(temperature: float) -> None:
    """The symbol whose law is uncertain is still drafted: dropping it would bias the output."""
    target = TableModel(seed=2, scale=4.0)
    H = torch.special.entr(target.table.softmax(-1)).sum(-1)
    certain = (H.sqrt() <= 0.9).tolist()
    drafter = DraftModel(TableModel(seed=2, scale=4.0, strict=False), 5)
    settings: dict[str, Any] = {"sampling": Sampling(temperature=temperature), "max_new_tokens": 60}
    found = play(target, row(drafter=drafter, policy=SVIP(h=0.9, max_draft_tokens=6), **settings))[0]
    assert found.report.notes == []
    for call in target.sessions[0].calls[:-4]:
        stops = [not certain[symbol] for symbol in [call.roots[0], *call.drafts[0].ids][:-1]]
        assert not any(stops[:-1])
        assert stops[-1] or len(stops) == 6


@pytest.mark.parametrize("threshold", [0.5, 0.05])
def test_path_confidence_stops_where_the_path_has_become_unlikely(threshold: float) -> None:
    """The product of q along each draft is above the threshold but for its last symbol."""
    target = TableModel(seed=2)
    q = target.table.softmax(-1)
    drafter = DraftModel(TableModel(seed=2, strict=False), 5)
    policy = PathConfidence(threshold=threshold, max_draft_tokens=6)
    play(target, row(drafter=drafter, policy=policy, verifier=Rejection(), max_new_tokens=60))
    sizes = set[int]()
    for call in target.sessions[0].calls[:-6]:
        path = [call.roots[0], *call.drafts[0].ids]
        products = list(
            itertools.accumulate((float(q[a, b]) for a, b in itertools.pairwise(path)), lambda x, y: x * y)
        )
        assert all(product >= threshold for product in products[:-1])
        assert products[-1] < threshold or len(products) == 6
        sizes.add(len(products))
    assert len(sizes) > 1


def test_an_ngram_model_stops_there_too() -> None:
    """Half of all symbols are 0: a path of them loses half with each."""
    drafter = NgramModel([[0, 1, 0, 2] * 30], 3, order=1, sample=False, num_draft_tokens=9)
    session = begin(drafter, [0], vocab_size=3)

    def drafted(**limits: Any) -> int:
        pipeline = Pipeline(Sampling(temperature=0), 3)
        budget = Budget(nodes=9, **limits)
        return len(session.propose([Request(0, History([2, 0]), budget, CounterNoise(0), pipeline, True)])[0])

    assert drafted() == 9
    assert [drafted(reach=reach) for reach in (0.6, 0.3, 0.1)] == [1, 2, 4]
    assert [drafted(mass=0.3, depths=depths) for depths in ((), (1, 3), (20,))] == [2, 3, 9]
    assert [drafted(entropy=limit) for limit in (0.9, 1.2)] == [1, 9]


# ---- the law, and rules that lose it ----


def planted(drops: str) -> Callable[[Request], Draft]:
    """A drafter that stops where q(x) < 0.4: behind x (right), before x, or by what comes behind x."""
    model = TableModel(3, seed=2, strict=False)
    table = model.table.softmax(-1)

    def propose(request: Request) -> Draft:
        tokens, q, last = list[int](), list[Tensor](), request.history.ids[-1]
        for depth in range(request.budget.nodes):
            one = table[last][None]
            key = request.round_start
            last = int(request.noise.choose(one, [key + depth], Purpose.DRAFT, key))
            weak = float(one[0, last]) < 0.4
            following = float(table[last].max()) < 0.6
            if (drops == "unlikely" and weak) or (drops == "next unsure" and following):
                break
            tokens.append(last)
            q.append(one)
            if drops == "nothing" and (weak or following):
                break
        return Draft.chain(tokens, torch.cat(q)) if tokens else Draft.empty()

    return propose


@pytest.mark.parametrize(
    ("drops", "biased"), [("nothing", False), ("unlikely", True), ("next unsure", True)], ids=str
)
@pytest.mark.usefixtures("unchecked")
def test_symbols_are_kept_and_then_looked_at(drops: str, biased: bool) -> None:
    """Stopping behind a symbol for what it is keeps the law; dropping it for that does not."""
    target = TableModel(3, seed=1)
    policy = FixedLength(num_draft_tokens=2)
    found = law(target, 3, drafter=ScriptedDrafter(planted(drops)), policy=policy)
    off = distance(found, by_hand(target, 3))
    assert off > 1e-3 if biased else off < EXACT


@pytest.mark.parametrize(
    "policy",
    [PathConfidence(threshold=0.4), DynamicDepth(threshold=-0.7, depths=(1,)), SVIP(h=0.8)],
    ids=lambda policy: policy.name,
)
@pytest.mark.usefixtures("unchecked")
def test_policies_that_look_at_the_draft_keep_the_law(policy: Policy) -> None:
    """Full laws of three symbols, so drafts of either length come after each first symbol."""
    target, drafter = TableModel(3, seed=1), DraftModel(TableModel(3, seed=2, strict=False))
    assert distance(law(target, 3, drafter=drafter, policy=policy), by_hand(target, 3)) < EXACT


# ---- trees ----


def tree_model(**changes: Any) -> TableModel:
    return TableModel(seed=7, scale=2.0, strict=False, **changes)


def eagle_draft(model: TableModel, *, width: int = 10, depth: int = 6, **changes: Any) -> DraftModel:
    """A draft model that grows the tree of EAGLE-2."""
    return DraftModel(model, structure=Eagle2Tree(width=width, depth=depth), **changes)


def grown(budget: Budget, *, width: int = 3, depth: int = 5, calls: list[int] | None = None) -> Draft:
    """A tree behind symbol 4."""
    session = begin(eagle_draft(tree_model(), width=width, depth=depth), [1, 2])
    before = session.calls
    pipeline = Pipeline(Sampling(), 12)
    draft = session.propose([Request(0, History([1, 2, 4]), budget, CounterNoise(0), pipeline, False)])[0]
    if calls is not None:
        calls.append(session.calls - before)
    return draft


def laws_behind(paths: Sequence[tuple[int, ...]]) -> Tensor:
    table = tree_model().table.softmax(-1)
    return torch.stack([table[path[-1] if path else 4] for path in paths])


def laws_behind_strong(paths: Sequence[tuple[int, ...]]) -> Tensor:
    """Nothing behind a path worth less than 0.1."""
    laws = laws_behind(paths)
    for place, path in enumerate(paths):
        values = [laws_behind([path[:n]])[0, x] for n, x in enumerate(path)]
        laws[place] *= math.prod(map(float, values)) >= 0.1
    return laws


@pytest.mark.parametrize(("width", "depth", "nodes"), [(3, 5, 12), (2, 3, 60), (1, 4, 9)])
def test_the_tree_is_that_of_eagle2(width: int, depth: int, nodes: int) -> None:
    """The same symbols and parents as from the table, a pass for each level."""
    calls = list[int]()
    draft = grown(Budget(nodes=nodes), width=width, depth=depth, calls=calls)
    found = eagle2(laws_behind, nodes=nodes, width=width, depth=depth)
    assert (tuple(draft.ids), draft.parents, draft.kind) == (found.tokens, found.parents, "point")
    assert calls == [depth]


def masses(width: int, depth: int) -> list[float]:
    """The sum of the products of q over the beam of each level."""
    beam: dict[tuple[int, ...], float] = {(): 1.0}
    found = list[float]()
    for _ in range(depth):
        table = laws_behind(list(beam))
        below = {
            (*path, x): value * float(table[n, x])
            for n, (path, value) in enumerate(beam.items())
            for x in range(12)
        }
        beam = dict(sorted(below.items(), key=lambda one: -one[1])[:width])
        found.append(sum(beam.values()))
    return found


@pytest.mark.parametrize("depths", [(), (2, 4), (3,)])
def test_dynamic_depth_stops_where_the_beam_has_lost_its_mass(depths: tuple[int, ...]) -> None:
    """By logsumexp of the log probabilities of the beam, looked at the depths named."""
    H = [math.log(mass) for mass in masses(3, 6)]
    assert H == sorted(H, reverse=True)
    threshold = (H[1] + H[2]) / 2
    policy, calls = DynamicDepth(threshold=threshold, depths=depths), list[int]()
    grown(policy.budget(Past(), 60), depth=6, calls=calls)
    expected = next(d for d in range(1, 7) if H[d - 1] < threshold and (not depths or d in depths))
    assert calls == [expected]


def test_beams_end_behind_weak_nodes() -> None:
    """No node below the threshold has children; nodes behind an unsure law have none either."""
    draft = grown(PathConfidence(threshold=0.1).budget(Past(), 60))
    found = eagle2(laws_behind_strong, nodes=60, width=3, depth=5)
    assert tuple(draft.ids) == found.tokens
    inner = {found.values[parent] for parent in found.parents if parent >= 0}
    assert min(inner) >= 0.1 > min(found.values)
    assert len(grown(Confidence(threshold=1.0).budget(Past(), 60))) == 3


@pytest.mark.parametrize("policy", [FixedLength(), DynamicDepth(), PathConfidence()], ids=lambda p: p.name)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trees_of_a_model_leave_the_tokens_alone(policy: Policy, temperature: float) -> None:
    """Rows of a batch, each as decoded plainly; most symbols come from drafts."""
    target = TableModel(seed=7, scale=2.0)
    samplings = [Sampling(seed=n, temperature=temperature) for n in range(2)]
    plain = [play(target, row(sampling=s, max_new_tokens=20))[0].tokens.tolist() for s in samplings]
    drafter = eagle_draft(tree_model(), width=3, depth=3, num_draft_tokens=12)
    rows = [row(sampling=s, drafter=drafter, policy=policy, max_new_tokens=20) for s in samplings]
    found = play(target, *rows)
    assert [one.tokens.tolist() for one in found] == plain
    assert all(one.report.notes == [] and one.report.mean_acceptance_length > 2 for one in found)


@pytest.mark.usefixtures("unchecked")
def test_trees_of_a_model_keep_the_law() -> None:
    """Point masses: children are the best symbols of q."""
    target = TableModel(3, seed=1)
    drafter = eagle_draft(TableModel(3, seed=2, strict=False), width=2, depth=2, num_draft_tokens=5)
    found = law(target, 3, drafter=drafter, policy=DynamicDepth(threshold=-0.3, depths=()))
    assert distance(found, by_hand(target, 3)) < EXACT


def test_trees_are_refused_where_they_cannot_be_scored() -> None:
    """Told before generation, with what works instead; on either side."""
    with pytest.raises(UnsupportedError, match="its target scores chains only.*Leave the structure out"):
        play(TableModel(supports_tree=False), row(drafter=eagle_draft(tree_model())))
    with pytest.raises(UnsupportedError, match="its draft model scores chains only .this fake scores chains"):
        play(TableModel(), row(drafter=eagle_draft(tree_model(supports_tree=False))))
    with pytest.raises(UsageError, match="width"):
        eagle_draft(tree_model(), width=0)
