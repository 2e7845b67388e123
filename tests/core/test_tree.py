"""Trees given by their parents: depths, paths, children and masks against a walk from node to node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multispec.tree import ancestor_mask, children, depths, is_chain, path_to


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, ...]:
    """Parents of up to 12 nodes, each before its children."""
    size = draw(st.integers(0, 12))
    return tuple(draw(st.integers(-1, node - 1)) for node in range(size))


def walk(parents: tuple[int, ...], node: int) -> list[int]:
    found = []
    while node != -1:
        found.append(node)
        node = parents[node]
    return found[::-1]


@given(trees())
def test_paths_and_depths_are_walks(parents: tuple[int, ...]) -> None:
    for node in range(len(parents)):
        assert list(path_to(parents, node)) == walk(parents, node)
        assert depths(parents)[node] == len(walk(parents, node))
    assert path_to(parents, -1) == ()


@given(trees())
def test_children_are_the_inverse_of_parents(parents: tuple[int, ...]) -> None:
    """Every node is the child of its parent, in draft order, and nothing else is listed."""
    found = children(parents)
    assert {n: p for p, nodes in found.items() for n in nodes} == dict(enumerate(parents))
    assert all(list(nodes) == sorted(nodes) for nodes in found.values())


@given(trees())
def test_the_mask_shows_ancestors_and_nothing_else(parents: tuple[int, ...]) -> None:
    mask = ancestor_mask(parents)
    assert mask.shape == (len(parents) + 1,) * 2
    for node in range(-1, len(parents)):
        visible = {0, *(ancestor + 1 for ancestor in walk(parents, node))}
        assert set(mask[node + 1].nonzero().flatten().tolist()) == visible


@given(trees())
def test_a_chain_is_a_tree_as_deep_as_it_is_large(parents: tuple[int, ...]) -> None:
    deepest = max(depths(parents), default=0)
    assert is_chain(parents) == (deepest == len(parents))
