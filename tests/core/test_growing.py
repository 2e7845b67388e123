"""Structures by name on draft models and n-gram models: every promise, and every node accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from multispec.drafters import DraftModel, NgramModel
from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from multispec.policies import Confidence
from multispec.protocols import Budget, Drafter
from multispec.sampling import CounterNoise, Noise, Sampling
from multispec.stream import Draft
from multispec.structures import (
    STRUCTURES,
    Beams,
    DySpecTree,
    Ground,
    RsdConstant,
    RsdStochastic,
    StaticTree,
    Structure,
    TokenGraph,
    expansion,
    structure_of,
)
from multispec.testing import SlotTableModel, TableModel, enumerate_law, play, row
from multispec.testing.laws import output_law, variation
from multispec.tree import children, depths
from multispec.verifiers import Rejection, Traversal
from tests.core.drafting import ask, begin, paths
from tests.core.test_hierarchies import PROMPT, SMALL, TARGET, Once, near


@pytest.mark.parametrize("name", STRUCTURES)
def test_seeds_say_the_same(name: str) -> None:
    """Ragged rows, coupled and greedy: the symbols of plain decoding, in fewer rounds."""
    drafter = DraftModel(near(2), 8, structure=name)
    for temperature in (1.0, 0.0):
        asked = [
            row(ids, sampling=Sampling(seed=n, temperature=temperature), max_new_tokens=8)
            for n, ids in enumerate([(1, 2), (0, 11, 5, 11)])
        ]
        found = play(TARGET, *(replace(one, drafter=drafter) for one in asked))
        assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in play(TARGET, *asked)]
        assert not any(one.report.notes for one in found)
        assert sum(one.report.accepted for one in found) > 0


# What draws, small enough that all of its draws can be listed; and two that guess.
DRAWN: dict[str, Structure] = {
    "full tree": RsdConstant((2, 1)),
    "stochastic beams": RsdStochastic(width=2, depth=2, levels=2),
    "node by node": DySpecTree(),
    "independent": StaticTree(expansion((2, 1)), "independent"),
    "chain beside": StaticTree((-1, -1, 0), "without_replacement"),
    "guessed": DySpecTree(sample=False),
    "graph": TokenGraph(width=2, depth=2, suffix=1),
}


@pytest.mark.parametrize("rule", [Rejection(), Traversal()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("name", DRAWN)
def test_rejection_keeps_the_law(name: str, rule: Any) -> None:
    """Every draw enumerated, three symbols: within 1e-9 of plain decoding."""
    model = near(2, SMALL)
    drafter = DraftModel(model, 3, structure=DRAWN[name])
    drafted = [0, 0]

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row(PROMPT, drafter=drafter, verifier=rule, policy=Once(3), noise=noise, stops=(three,))
        found = play(SMALL, asked)[0]
        assert not found.report.notes
        drafted[0] += found.report.drafted
        drafted[1] += found.report.accepted
        return tuple(found.tokens.tolist())

    assert variation(enumerate_law(run, horizon=3), plain_law()) < 1e-9
    assert 0 < drafted[1] < drafted[0]


def three(ids: Sequence[int], scores: torch.Tensor) -> bool:
    return len(ids) >= len(PROMPT) + 3


@cache
def plain_law() -> dict[tuple[int, ...], float]:
    return output_law(SMALL, prompt=PROMPT)


def test_an_n_gram_model_keeps_the_law() -> None:
    """The same drafts from counts, without a model."""
    drafter = NgramModel([[0, 1, 2, 1, 0, 3]], 4, 2, structure=RsdConstant((2, 1)))
    law = enumerated(drafter)
    assert variation(law, plain_law()) < 1e-9
    assert NgramModel([[0, 1]], 2, structure="eagle2").structure == structure_of("eagle2")


def enumerated(drafter: Drafter) -> dict[tuple[int, ...], float]:
    def run(noise: Noise) -> tuple[int, ...]:
        asked = row(
            PROMPT, drafter=drafter, verifier=Rejection(), policy=Once(3), noise=noise, stops=(three,)
        )
        return tuple(play(SMALL, asked)[0].tokens.tolist())

    return enumerate_law(run, horizon=3)


# ---- shapes ----

LAWS = TableModel(6, order=2, seed=5, scale=2.0)


def ground(nodes: int, seed: int | None = None, asked: list[int] | None = None) -> Ground:
    """Laws of a table behind two symbols; drawn from where there is a seed."""

    def expand(found: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if asked is not None:
            asked.append(len(found))
        return torch.stack([LAWS.after([1, 2, *path], 2).softmax(-1) for path in found])

    return Ground(expand, nodes, 3, None if seed is None else CounterNoise(seed))


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("name", STRUCTURES)
def test_trees_fit_the_budget(name: str, seed: int | None) -> None:
    """As many nodes as there is room for, no path twice where siblings differ, and q where they are drawn."""
    for nodes in (1, 5, 12):
        draft = structure_of(name).grow(ground(nodes, seed)).check(6)
        assert 0 < len(draft) <= nodes
        assert (draft.kind == "point") == (draft.q is None)
        if draft.kind != "sampled":
            paths(draft)
        if draft.q is not None:
            for node, parent in enumerate(draft.parents):
                siblings = children(draft.parents)[parent]
                assert torch.equal(draft.q[node], draft.q[siblings[0]])


def test_stochastic_beams_are_drawn_without_replacement() -> None:
    """The first has the law of the model, the second that of what is left."""
    law = ground(1).expand([()])[0]
    first, pairs, count = torch.zeros(6), torch.zeros(6, 6), 500
    for seed in range(count):
        draft = RsdStochastic(width=2, depth=1).grow(ground(2, seed))
        first[draft.ids[0]] += 1 / count
        pairs[draft.ids[0], draft.ids[1]] += 1 / count
    expected = law[:, None] * law[None] / (1 - law[:, None])
    expected.fill_diagonal_(0)
    assert float((first - law).abs().max()) < 0.07
    assert float((pairs - expected).abs().max()) < 0.07


def test_stochastic_beams_over_two_levels() -> None:
    """Pairs of whole sequences, as drawn one after the other from all sequences (Kool et al., section 3)."""
    expand = ground(1).expand
    level = expand([()])[0]
    below = expand([(x,) for x in range(6)])
    joint = (level[:, None] * below).flatten()
    count, seen = 500, torch.zeros(36)
    for seed in range(count):
        draft = RsdStochastic(width=2, depth=2).grow(ground(4, seed))
        for node in [node for node, depth in enumerate(depths(draft.parents)) if depth == 2]:
            seen[draft.ids[draft.parents[node]] * 6 + draft.ids[node]] += 1 / count
    # A sequence is among the first two with p + sum over the others o of o p / (1 - o).
    expected = torch.tensor(
        [
            float(p + sum(o * p / (1 - o) for j, o in enumerate(joint.tolist()) if j != i))
            for i, p in enumerate(joint.tolist())
        ]
    )
    assert float((seen - expected).abs().max()) < 0.07


def test_a_full_tree_has_its_widths() -> None:
    """And fewer where a law has fewer symbols."""
    assert RsdConstant((2, 2)).grow(ground(9, 1)).parents == (-1, -1, 0, 0, 1, 1)
    narrow = Ground(lambda found: torch.eye(6)[[2] * len(found)].double(), 9, 0, CounterNoise(0))
    assert RsdConstant((2, 2)).grow(narrow).ids == [2, 2]
    assert RsdStochastic(3, 2).grow(narrow).ids == [2, 2]
    assert DySpecTree().grow(narrow).ids == [2] * 9


def test_beams_are_those_of_a_search_over_all_sequences() -> None:
    """With beams as wide as the vocabulary to the second level."""
    expand = ground(1).expand
    joint = expand([()])[0][:, None] * expand([(x,) for x in range(6)])
    best = joint.flatten().topk(6).indices.tolist()
    found = paths(Beams(width=6, depth=2).grow(ground(99)))
    assert {path for path in found if len(path) == 2} == {(b // 6, b % 6) for b in best}


def test_a_graph_is_asked_once_per_state() -> None:
    """More nodes than a tree of as many passes has; the unfolded paths take the laws of their states."""
    asked: list[int] = []
    draft = TokenGraph(width=2, depth=6, suffix=1).grow(ground(40, asked=asked))
    assert len(draft) == 40
    # The start, and no more states than symbols.
    assert sum(asked) <= 1 + 6
    alone = TokenGraph(width=2, depth=3, suffix=4).grow(ground(40))
    assert len(alone) <= 2 + 4 + 4


def silent(found: Sequence[tuple[int, ...]]) -> torch.Tensor:
    return torch.zeros(len(found), 6, dtype=torch.float64)


@pytest.mark.parametrize("name", STRUCTURES)
def test_where_nothing_may_follow_nothing_is_drafted(name: str) -> None:
    """Laws without mass."""
    for noise in (None, CounterNoise(0)):
        assert len(structure_of(name).grow(Ground(silent, 5, 0, noise))) == 0


# ---- on drafters ----


def test_policies_end_trees() -> None:
    """Behind unsure laws, thin levels and unlikely paths."""
    drafter = DraftModel(near(2), 12, structure=RsdConstant((2, 2, 2)))
    sizes = {}
    limits: dict[str, Budget] = {
        "none": Budget(12),
        "confidence": Budget(12, confidence=1.0),
        "reach": Budget(12, reach=0.9),
        "mass": Budget(12, mass=1.1),
        "entropy": Budget(12, entropy=0.0),
    }
    for name, budget in limits.items():
        session = begin(drafter, [3, 4])
        sizes[name] = len(ask(session, [3, 4, 3], budget=budget, coupled=False))
    assert sizes["none"] > 6
    assert {sizes[name] for name in limits if name != "none"} == {2}
    plain = play(TARGET, row(max_new_tokens=9))[0]
    found = play(
        TARGET, row(drafter=drafter, policy=Confidence(threshold=0.6, max_draft_tokens=12), max_new_tokens=9)
    )[0]
    assert found.tokens.tolist() == plain.tokens.tolist()


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: DraftModel(TARGET, structure="egle"), UnknownNameError, "Did you mean 'eagle'"),
    (lambda: DraftModel(TARGET, structure=TARGET), UnknownNameError, "Unknown structure 'TableModel'"),  # type: ignore[arg-type]
    (lambda: StaticTree((0,)), UsageError, "parents that come before their children"),
    (lambda: StaticTree((-1,), "some"), UsageError, "'some'"),  # type: ignore[arg-type]
    (lambda: RsdConstant((0,)), UsageError, "widths >= 1"),
    (lambda: RsdStochastic(levels=0), UsageError, "levels >= 1"),
    (lambda: Beams(width=0), UsageError, "width >= 1"),
    (lambda: TokenGraph(suffix=0), UsageError, "suffix >= 1"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "kind", "said"), REFUSED)
def test_what_cannot_be_right_is_refused(
    make: Callable[[], object], kind: type[Exception], said: str
) -> None:
    """Before anything is drafted."""
    with pytest.raises(kind, match=said):
        make()


def test_targets_and_models_of_chains_are_refused() -> None:
    """With the reason."""
    grown = DraftModel(near(2), structure="eagle2")
    with pytest.raises(UnsupportedError, match="its target scores chains only"):
        play(TableModel(supports_tree=False), row(drafter=grown))
    chains = DraftModel(near(2, supports_tree=False), structure="eagle2")
    with pytest.raises(UnsupportedError, match="its draft model scores chains only"):
        play(TARGET, row(drafter=chains))
    with pytest.raises(UnsupportedError, match="its target scores chains only"):
        play(SlotTableModel(2, 3), row([1, 2], drafter=NgramModel([[0, 1]], 3, structure="eagle2")))
    assert Draft.empty().parents == ()
