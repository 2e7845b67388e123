"""The shapes of drafts against brute force: all trees, all paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec import structures
from multispec.errors import UsageError
from multispec.structures import (
    Grown,
    PrefixTree,
    calibrated,
    ddtree,
    dyspec,
    eagle,
    eagle2,
    expansion,
    expected_length,
    expected_symbols,
    from_ranks,
    medusa,
    opt_tree,
    pack,
    sequoia,
    sequoia_sized,
)
from multispec.tree import depths, path_to
from tests.core.drafting import paths

Parents = tuple[int, ...]
SHARES = st.lists(st.integers(0, 20), min_size=1, max_size=3).map(lambda n: [x / 20 for x in sorted(n)[::-1]])


def trees(nodes: int) -> Iterator[Parents]:
    """Every ordered tree of so many nodes below the root, at least once."""
    return (parents for parents in product(*(range(-1, node) for node in range(nodes))))


def fits(parents: Parents, depth: int, width: int) -> bool:
    return max(depths(parents)) <= depth and all(parents.count(parent) <= width for parent in {*parents})


# ---- static shapes ----


def test_published_shapes() -> None:
    """Sizes, depths and widths as the papers draw them."""
    for parents, nodes, levels, wide in ((medusa(), 63, 4, 10), (eagle(), 25, 5, 4)):
        assert len(parents) == nodes and max(depths(parents)) == levels and parents.count(-1) == wide
        assert all(-1 <= parent < node for node, parent in enumerate(parents))
    assert [depths(eagle()).count(d) for d in range(1, 6)] == [4, 8, 8, 3, 2]
    assert [depths(medusa()).count(d) for d in range(1, 5)] == [10, 28, 23, 2]


def test_expansion_is_a_full_tree() -> None:
    assert expansion((2, 1, 2)) == (-1, -1, 0, 1, 2, 2, 3, 3)
    assert expansion(()) == ()


@given(st.lists(SHARES, min_size=1, max_size=3), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_calibrated_trees_are_the_best(accuracies: list[list[float]], nodes: int) -> None:
    """No tree of that size is longer in expectation; each front part is a best tree too."""
    found = calibrated(accuracies, nodes)
    for size in range(1, len(found) + 1):
        best = max(expected_length(parents, accuracies) for parents in trees(size))
        assert expected_length(found[:size], accuracies) == pytest.approx(best)


# ---- Sequoia ----


@given(SHARES, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_dynamic_programme_finds_the_best_tree(acceptance: list[float], nodes: int, depth: int) -> None:
    found = sequoia(acceptance, nodes, depth)
    possible = [p for p in trees(nodes) if fits(p, depth, len(acceptance))]
    if not possible:
        assert len(found) < nodes and fits(found, depth, len(acceptance))
        return
    best = max(expected_symbols(parents, acceptance) for parents in possible)
    assert len(found) == nodes and fits(found, depth, len(acceptance))
    assert expected_symbols(found, acceptance) == pytest.approx(best)


@pytest.mark.parametrize("draft_cost", [0.0, 0.1, 0.5, 3.0])
def test_the_size_that_pays_most(draft_cost: float) -> None:
    acceptance, costs = [0.7, 0.15], [1.0, 1.05, 1.1, 1.3, 1.8, 2.9]
    rates: dict[Parents, float] = {(): 1 / costs[0]}
    for nodes in range(1, 6):
        for parents in trees(nodes):
            if fits(parents, 3, 2):
                time = max(depths(parents)) * draft_cost + costs[nodes]
                rates[parents] = expected_symbols(parents, acceptance) / time
    found = sequoia_sized(acceptance, costs, draft_cost, depth=3)
    assert rates[found] == pytest.approx(max(rates.values()))
    assert (found == ()) == (draft_cost == 3.0)


# ---- dynamic trees ----


class Table:
    """q behind every path of three symbols, and how often it was asked."""

    def __init__(self, seed: int, depth: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.laws = {
            path: torch.randn(3, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
            for length in range(depth + 2)
            for path in product(range(3), repeat=length)
        }
        self.calls = 0

    def __call__(self, paths: Sequence[tuple[int, ...]]) -> torch.Tensor:
        self.calls += 1
        return torch.stack([self.laws[path] for path in paths])

    def worth(self, path: tuple[int, ...]) -> float:
        return float(torch.stack([self.laws[path[:d]][x] for d, x in enumerate(path)]).prod())

    def best(self, nodes: int, depth: int) -> list[float]:
        """What the best paths of at most so many symbols are worth."""
        everything = (path for n in range(1, depth + 1) for path in product(range(3), repeat=n))
        return sorted(map(self.worth, everything), reverse=True)[:nodes]


def checked(table: Table, found: Grown) -> list[float]:
    """A tree with the worth that it says, as a draft."""
    draft = found.draft().check(3)
    for node, value in enumerate(found.values):
        path = tuple(draft.ids[n] for n in path_to(draft.parents, node))
        assert value == pytest.approx(table.worth(path))
    assert len(paths(draft)) == len(draft)
    return list(found.values)


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_trees_are_the_best_that_their_rules_reach(seed: int) -> None:
    """Brute force over all paths of four symbols."""
    table = Table(seed)
    wide = eagle2(table, nodes=7, width=81, depth=4)
    assert checked(table, wide) == pytest.approx(table.best(7, 4)) and table.calls == 4
    assert checked(table, opt_tree(table, nodes=7, depth=4, threshold=0)) == pytest.approx(table.best(7, 4))
    assert checked(table, dyspec(table, nodes=4)) == pytest.approx(table.best(4, 4))


def test_beams_are_as_wide_as_they_are() -> None:
    """Two beams: what a third one would have held is never looked at."""
    table = Table(1)
    first = sorted(range(3), key=lambda x: -table.worth((x,)))[:2]
    second = sorted(((x, y) for x in first for y in range(3)), key=lambda path: -table.worth(path))
    found = eagle2(table, nodes=99, width=2, depth=2)
    kept = {path for x in first for path in sorted(second, key=lambda p: -table.worth(p)) if path[0] == x}
    got = {tuple(found.tokens[n] for n in path_to(found.parents, node)) for node in range(len(found.tokens))}
    assert {path for path in got if len(path) == 1} == {(x,) for x in first}
    assert {path for path in got if len(path) == 2} <= kept and len(got) == 6


def test_opt_tree_stops_where_a_level_adds_little() -> None:
    table = Table(2)
    expected = [sum(table.best(5, depth)) for depth in range(1, 5)]
    gains = [b - a for a, b in zip([0.0, *expected], expected, strict=False)]
    threshold = (gains[1] + gains[2]) / 2
    opt_tree(table, nodes=5, depth=4, threshold=threshold)
    assert table.calls == 3


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_marginals_give_the_best_products(seed: int, depth: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    marginals = torch.rand(depth, 3, generator=generator, dtype=torch.float64)
    everything = (path for n in range(1, depth + 1) for path in product(range(3), repeat=n))
    worth = sorted(float(torch.stack([marginals[d, x] for d, x in enumerate(p)]).prod()) for p in everything)
    found = ddtree(marginals, nodes=nodes)
    assert list(found.values) == pytest.approx(worth[::-1][:nodes])
    found.draft().check(3)


def test_symbols_without_mass_are_left_out() -> None:
    certain = torch.tensor([[0.0, 1.0, 0.0]] * 2).double()
    assert ddtree(certain, nodes=9).tokens == (1, 1)

    def always(paths: Sequence[tuple[int, ...]]) -> torch.Tensor:
        return certain[:1].expand(len(paths), -1)

    for found in (
        eagle2(always, nodes=9, width=2, depth=3),
        opt_tree(always, nodes=9, depth=3, threshold=0.5),
        dyspec(always, nodes=3),
    ):
        assert found.tokens == (1, 1, 1) and found.parents == (-1, 0, 1) and found.draft().is_chain
    assert len(Grown((), (), ()).draft()) == 0


# ---- packing ----


def test_beams_share_their_prefixes() -> None:
    draft = pack([[1, 2, 3], [1, 2, 4], [5], [1, 2, 3]], room=9)
    assert draft.ids == [1, 2, 3, 4, 5] and draft.parents == (-1, 0, 1, 1, -1)
    assert pack([[1, 2, 3], [4]], room=2).ids == [1, 2]
    assert len(pack([], room=5)) == 0
    tree = PrefixTree(2)
    assert tree.grow(-1, 7) == tree.grow(-1, 7) == 0
    assert (tree.insert([7, 8, 9]), tree.grow(1, 9), len(tree)) == (1, None, 2)


# ---- what cannot be ----


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: from_ranks([(1,)]), "behind its parent and its sibling"),
        (lambda: from_ranks([(0, 0)]), "behind its parent"),
        (lambda: from_ranks([(0,), (0,)]), "each node once"),
        (lambda: from_ranks([()]), "each node once"),
        (lambda: expansion((2, 0)), "widths >= 1"),
        (lambda: calibrated([[0.5]], 0), "nodes >= 1"),
        (lambda: calibrated([], 2), "0 depths"),
        (lambda: calibrated([[0.5], [0.2, 0.4]], 2), "at depth 2"),
        (lambda: calibrated([[1.5]], 2), r"lie in \[0, 1\]"),
        (lambda: sequoia([0.5], 3, 0), "depth >= 1"),
        (lambda: sequoia([], 3, 1), "one child or more"),
        (lambda: sequoia([float("nan")], 3, 1), "lie in"),
        (lambda: sequoia_sized([0.5], [], 0.1, 2), "measured times"),
        (lambda: sequoia_sized([0.5], [1.0, 0.0], 0.1, 2), "measured times"),
        (lambda: sequoia_sized([0.5], [1.0], -1.0, 2), "draft_cost >= 0"),
        (lambda: ddtree(torch.ones(1, 2), nodes=0), "nodes >= 1"),
        (lambda: eagle2(Table(0), width=0), "width >= 1"),
        (lambda: opt_tree(Table(0), depth=0), "depth >= 1"),
    ],
)
def test_shapes_that_cannot_be(make: Any, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        make()


def test_names() -> None:
    constants = [name for name in structures.__all__ if name.isupper()]
    assert structures.__all__ == constants + sorted(set(structures.__all__) - set(constants))
