"""A tree of drafted symbols while it grows: equal prefixes are one path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from multispec.stream import Draft


class PrefixTree:
    """Symbols and parents of at most ``room`` nodes, ready to become a draft.

    Beams, matches and n-grams that begin alike share their first nodes: the packing of ReDrafter (Zhang et
    al. 2024, "Recurrent Drafter", section 3.3) and of REST's trie.

    >>> tree = PrefixTree(room=9)
    >>> tree.insert([5, 6]), tree.insert([5, 7, 8])
    (1, 3)
    >>> tree.tokens, tree.parents
    ([5, 6, 7, 8], [-1, 0, 0, 2])
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._known: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def grow(self, parent: int, token: int) -> int | None:
        """The child of ``parent`` with that symbol, new or known; None where a new one has no room."""
        node = self._known.get((parent, token))
        if node is None and len(self.tokens) < self.room:
            node = self._known[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def insert(self, path: Iterable[int], parent: int = -1) -> int:
        """Walk down along ``path``, growing as far as there is room; the last node reached."""
        for token in path:
            node = self.grow(parent, token)
            if node is None:
                break
            parent = node
        return parent

    def draft(self) -> Draft:
        """A draft of point masses."""
        if not self.tokens:
            return Draft.empty()
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return Draft(tokens=tokens, parents=tuple(self.parents))


def pack(beams: Sequence[Sequence[int]], room: int) -> Draft:
    """The prefix tree of some sequences, the first ones first, as far as ``room`` nodes reach.

    >>> pack([[5, 6], [5, 7]], room=9).parents
    (-1, 0, 0)
    """
    tree = PrefixTree(room)
    for beam in beams:
        tree.insert(beam)
    return tree.draft()
