"""ADED: a corpus of tri-grams that follows the target, searched for drafts like a game tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.ranked import Ranked
from multispec.drafters.references import References, reference_ids, require_at_least
from multispec.drafters.window import each_stream
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.structures import PrefixTree

_Pair = tuple[int, int]


@dataclass(frozen=True)
class ADED:
    """Search the tri-grams of a corpus and of the text itself for the drafts worth most.

    Liu et al. (2024), "Adaptive Draft-Verification for Efficient Large Language Model Decoding", sections 3.1
    (tri-grams that approximate the target, and are renewed with what it emits) and 3.2 (the draft maker). A
    state s is the last two symbols, an action a the next one, P(s, a) its share of the tri-grams (of the
    bigrams where the pair is new). Each of ``simulations`` walks goes down from the text, each time to the a
    with the largest

        Q(s, a) + (c1 + log((sum_b N(s, b) + c2 + 1) / c2)) P(s, a) sqrt(sum_b N(s, b)) / (1 + N(s, a))

    N counts the visits and Q is the mean value of the walks through a. A walk of at most ``length`` symbols
    is worth the expected number of accepted ones below s, sum_d prod P, as a share of ``length``: this
    reading of the paper's reward is ours. The nodes of the walks, the most visited first, are the draft.
    Emitted symbols are counted ``weight`` times as much as those of ``references``. Parallel slots get the
    most visited path.

    Raises:
        UsageError: settings out of range, or references that are no ids.

    >>> ADED(references=[[5, 6, 7]]).simulations
    150
    """

    name: ClassVar[str] = "aded"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2407.12021"
    trained: ClassVar[bool] = False
    references: References = ()
    num_draft_tokens: int = 24
    simulations: int = 150
    length: int = 5
    width: int = 8
    weight: int = 4
    c1: float = 1.0
    c2: float = 64.0
    _grams: _Grams = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, simulations=1, length=1, width=1, weight=1)
        if not (math.isfinite(self.c1) and self.c1 >= 0 and math.isfinite(self.c2) and self.c2 > 0):
            raise UsageError(f"aded explores with c1 >= 0 and c2 > 0: got c1={self.c1}, c2={self.c2}.")
        texts = reference_ids(self.name, self.references)
        object.__setattr__(self, "references", texts)
        grams = _Grams(self.width)
        for text in texts:
            grams.add(text, 0, 1)
        object.__setattr__(self, "_grams", grams)

    def begin(self, context: Context) -> DraftSession:
        """Tri-grams of each row, on top of the corpus."""
        size, trees = context.vocab_size, context.trees
        return each_stream(context, lambda spec: _Search(self, self._grams, size, trees and spec.step == 1))


class _Grams:
    """Counts of what followed a pair, and a symbol; of the latter, which has many followers, the best.

    Those of a pair are counted in dictionaries of their own: there are many pairs, with few followers each.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.three: dict[_Pair, dict[int, int]] = {}
        self.two: dict[int, Ranked] = {}

    def add(self, ids: Sequence[int], first: int, weight: int) -> None:
        """Count the n-grams that end at ``first`` or behind it."""
        for place in range(max(first, 1), len(ids)):
            x, y = ids[place - 1], ids[place]
            known = self.two.get(x)
            if known is None:
                known = self.two[x] = Ranked(self.width)
            known.add(y, weight)
            if place > 1:
                three = self.three.setdefault((ids[place - 2], x), {})
                three[y] = three.get(y, 0) + weight


@dataclass
class _Node:
    """A state: what may follow with P, N and Q, and the states behind it."""

    actions: list[tuple[int, float]]
    visits: list[int] = field(init=False)
    values: list[float] = field(init=False)
    behind: dict[int, _Node] = field(default_factory=dict)
    walks: int = 0

    def __post_init__(self) -> None:
        self.visits, self.values = [0] * len(self.actions), [0.0] * len(self.actions)

    def best(self, c1: float, c2: float) -> int:
        """The action with the largest score; before any visit the likeliest."""
        total = self.walks
        explore = (c1 + math.log((total + c2 + 1) / c2)) * math.sqrt(max(total, 1))
        found, highest = 0, -math.inf
        for a, (visits, value) in enumerate(zip(self.visits, self.values, strict=True)):
            score = value + explore * self.actions[a][1] / (1 + visits)
            if score > highest:
                found, highest = a, score
        return found

    def add(self, a: int, value: float) -> None:
        """One more walk through an action."""
        self.walks += 1
        self.visits[a] += 1
        self.values[a] += (value - self.values[a]) / self.visits[a]


@dataclass
class _Search:
    asked: ADED
    corpus: _Grams
    vocab_size: int
    tree: bool
    done: int = 0

    def __post_init__(self) -> None:
        self.own = _Grams(self.asked.width)
        # What may follow a state in this round: many nodes of a search stand behind the same symbols.
        self.actions: dict[tuple[int, ...], list[tuple[int, float]]] = {}

    def propose(self, request: Request) -> Draft:
        """Take in what was emitted, walk, and pack the nodes visited most."""
        history, asked = request.history, self.asked
        ids = history.ids[history.first :]
        self.own.add(ids, self.done, asked.weight)
        self.done = len(ids)
        self.actions.clear()
        if not ids:
            return Draft.empty()
        root = self._node(tuple(ids[-2:]))
        for _ in range(asked.simulations):
            self._walk(root, tuple(ids[-2:]))
        return self._packed(root, request.budget.nodes)

    def _node(self, last: tuple[int, ...]) -> _Node:
        found = self.actions.get(last)
        if found is None:
            found = self.actions[last] = self._behind_pair(last) or self._behind_symbol(last[-1])
        return _Node(found)

    def _behind_pair(self, last: tuple[int, ...]) -> list[tuple[int, float]]:
        if len(last) < 2:
            return []
        pair = last[0], last[1]
        own, corpus = self.own.three.get(pair, {}), self.corpus.three.get(pair, {})
        counts = own if not corpus else {x: own.get(x, 0) + corpus.get(x, 0) for x in {**own, **corpus}}
        return self._shares(counts, sum(counts.values()))

    def _behind_symbol(self, x: int) -> list[tuple[int, float]]:
        """Of the best of either: what is best of both together is hardly ever another one."""
        found = [known for grams in (self.own, self.corpus) if (known := grams.two.get(x)) is not None]
        best = dict.fromkeys(y for known in found for y in known.best)
        counts = {y: sum(known.counts.get(y, 0) for known in found) for y in best}
        return self._shares(counts, sum(known.total for known in found))

    def _shares(self, counts: dict[int, int], total: int) -> list[tuple[int, float]]:
        best = sorted(counts, key=counts.__getitem__, reverse=True)[: self.asked.width]
        return [(x, counts[x] / total) for x in best if x < self.vocab_size]

    def _walk(self, node: _Node, last: tuple[int, ...]) -> None:
        """Down to a new state or to the end, and back up with what the walk is worth below each state."""
        trail: list[tuple[_Node, int]] = []
        while node.actions and len(trail) < self.asked.length:
            a = node.best(self.asked.c1, self.asked.c2)
            trail.append((node, a))
            last = (*last, node.actions[a][0])[-2:]
            new = a not in node.behind
            if new:
                node.behind[a] = self._node(last)
            node = node.behind[a]
            if new:
                break
        # What goes on behind the last state is as likely as its best action, symbol after symbol.
        p = node.actions[0][1] if node.actions else 0.0
        value = sum(p**d for d in range(1, self.asked.length - len(trail) + 1))
        for state, a in reversed(trail):
            value = state.actions[a][1] * (1 + value)
            state.add(a, value / self.asked.length)

    def _packed(self, root: _Node, nodes: int) -> Draft:
        tree = PrefixTree(nodes)
        open_: list[tuple[int, int, _Node, int]] = [(-n, -1, root, a) for a, n in enumerate(root.visits) if n]
        while open_ and len(tree) < nodes:
            best = min(range(len(open_)), key=lambda i: open_[i][0])
            _, parent, state, a = open_.pop(best)
            grown = tree.grow(parent, state.actions[a][0])
            node, behind = -1 if grown is None else grown, state.behind[a]
            if not self.tree:
                open_ = []
            open_ += [(-n, node, behind, b) for b, n in enumerate(behind.visits) if n]
        return tree.draft()

    def observe(self, observation: Observation) -> None:
        """What was emitted is counted from the history."""
