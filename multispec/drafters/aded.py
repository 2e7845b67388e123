"""ADED: a corpus of tri-grams that follows the target, searched for drafts like a game tree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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
        grams = _Grams()
        for text in texts:
            grams.add(text, 0, 1)
        object.__setattr__(self, "_grams", grams)

    def begin(self, context: Context) -> DraftSession:
        """Tri-grams of each row, on top of the corpus."""
        size, trees = context.vocab_size, context.trees
        return each_stream(context, lambda spec: _Search(self, self._grams, size, trees and spec.step == 1))


class _Grams:
    """Counts of what followed a pair, and a symbol."""

    def __init__(self) -> None:
        self.three: dict[_Pair, Counter[int]] = {}
        self.two: dict[int, Counter[int]] = {}

    def add(self, ids: Sequence[int], first: int, weight: int) -> None:
        """Count the n-grams that end at ``first`` or behind it."""
        for place in range(max(first, 1), len(ids)):
            self.two.setdefault(ids[place - 1], Counter())[ids[place]] += weight
            if place > 1:
                pair = ids[place - 2], ids[place - 1]
                self.three.setdefault(pair, Counter())[ids[place]] += weight


@dataclass
class _Node:
    """A state: what may follow with P, N and Q, and the states behind it."""

    actions: list[tuple[int, float]]
    visits: list[int] = field(init=False)
    values: list[float] = field(init=False)
    behind: dict[int, _Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.visits, self.values = [0] * len(self.actions), [0.0] * len(self.actions)

    def best(self, c1: float, c2: float) -> int:
        """The action with the largest score; before any visit the likeliest."""
        total = sum(self.visits)
        explore = (c1 + math.log((total + c2 + 1) / c2)) * math.sqrt(max(total, 1))
        return max(
            range(len(self.actions)),
            key=lambda a: self.values[a] + explore * self.actions[a][1] / (1 + self.visits[a]),
        )

    def add(self, a: int, value: float) -> None:
        """One more walk through an action."""
        self.visits[a] += 1
        self.values[a] += (value - self.values[a]) / self.visits[a]


@dataclass
class _Search:
    asked: ADED
    corpus: _Grams
    vocab_size: int
    tree: bool
    own: _Grams = field(default_factory=_Grams)
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Take in what was emitted, walk, and pack the nodes visited most."""
        history, asked = request.history, self.asked
        ids = history.ids[history.first :]
        self.own.add(ids, self.done, asked.weight)
        self.done = len(ids)
        if not ids:
            return Draft.empty()
        root = self._node(tuple(ids[-2:]))
        for _ in range(asked.simulations):
            self._walk(root, tuple(ids[-2:]))
        return self._packed(root, request.budget.nodes)

    def _node(self, last: tuple[int, ...]) -> _Node:
        pair = last if len(last) == 2 else None
        found: Counter[int] = Counter()
        for grams in (self.own, self.corpus):
            found += grams.three.get((pair[0], pair[1]), Counter()) if pair else Counter()
        if not found:
            for grams in (self.own, self.corpus):
                found += grams.two.get(last[-1], Counter())
        total = sum(found.values())
        best = found.most_common(self.asked.width)
        return _Node([(x, n / total) for x, n in best if x < self.vocab_size])

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
        p = max((share for _, share in node.actions), default=0.0)
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
