"""SuffixDecoding: a tree of what most often followed the last symbols, here and in earlier outputs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from multispec.drafters.automaton import SEPARATOR, CountedAutomaton
from multispec.drafters.lasting import LastingRows
from multispec.drafters.references import References, reference_ids, require_at_least, takes_trees
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation

# A context with more different successors says little about the next one, and costs the most to read.
_WIDEST = 512


@dataclass(frozen=True)
class SuffixDecoding:
    """Grow the tree that suffix counts expect most of, as large as the match is long.

    Oliaro et al. (2024), "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
    sections 3 and 4. For a suffix of the text of p symbols, D(N) = prod C(N') / sum of C over the siblings
    of N', along the path to N, estimates how likely continuation N is; nodes are added greedily by D, no
    more than MAX_SPEC = ``factor`` p + ``offset``, none below ``min_share``; score = sum of D. The suffix
    with the best score drafts, out of the text itself and out of a collection for all rows: ``references``,
    and with ``remember=True`` the outputs of rows that are done, up to ``capacity`` symbols (the oldest go
    first).

    Counts come from suffix automata in place of suffix trees: exact for strings of up to ``depth`` symbols,
    in memory linear in the text. With ``tree=False`` only the likeliest path is drafted, for models that
    score chains; parallel slots always get that.

    Raises:
        UsageError: settings out of range, or references that are no ids.

    >>> SuffixDecoding(references=[[5, 6, 7]]).factor
    1.0
    """

    name: ClassVar[str] = "suffix_decoding"
    paper: ClassVar[str] = "Oliaro et al. 2024, arXiv 2411.04975"
    trained: ClassVar[bool] = False
    references: References = ()
    num_draft_tokens: int = 24
    factor: float = 1.0
    offset: float = 0.0
    min_share: float = 0.1
    depth: int = 64
    remember: bool = False
    capacity: int = 1_000_000
    tree: bool = True
    _global: _Collection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, depth=2, capacity=1)
        if not (0 < self.min_share <= 1 and self.factor >= 0 and self.factor + self.offset >= 1):
            raise UsageError(
                "suffix_decoding needs 0 < min_share <= 1, factor >= 0 and factor + offset >= 1, so that a "
                f"match of one symbol drafts one: got {self.min_share}, {self.factor}, {self.offset}."
            )
        texts = reference_ids(self.name, self.references)
        object.__setattr__(self, "references", texts)
        object.__setattr__(self, "_global", _Collection(self.depth, self.capacity, list(texts)))

    def begin(self, context: Context) -> DraftSession:
        """An automaton per row, and the collection as it is now."""
        collected = self._global.open()
        rows = {
            row: _Suffixes(self, context.vocab_size, self.tree and takes_trees(context, row), collected)
            for row in context.prompts
        }
        return LastingRows(rows, self._learn)

    def _learn(self, row: _Suffixes) -> None:
        if self.remember and row.request is not None:
            self._global.waiting.append(tuple(row.request.history.generated))


@dataclass
class _Collection:
    """Texts for all rows. New ones wait for the next session: those at work see what they began with."""

    depth: int
    capacity: int
    waiting: list[tuple[int, ...]]
    texts: list[tuple[int, ...]] = field(default_factory=list)
    size: int = 0
    counted: CountedAutomaton | None = None

    def open(self) -> CountedAutomaton | None:
        """Take in what waits; None where there is nothing."""
        if self.waiting:
            new, self.waiting = self.waiting, []
            self.texts += new
            self.size += sum(map(len, new))
            if self.size > self.capacity:
                new = self._shrink()
                self.counted = None
            self.counted = self.counted or CountedAutomaton(depth=self.depth)
            for text in new:
                self.counted.extend((*text, SEPARATOR))
        return self.counted

    def _shrink(self) -> list[tuple[int, ...]]:
        """The latest texts that fill half of the capacity: so each text is taken in twice at most."""
        kept: list[tuple[int, ...]] = []
        self.size = 0
        while self.texts and (not kept or 2 * (self.size + len(self.texts[-1])) <= self.capacity):
            kept.append(self.texts.pop())
            self.size += len(kept[-1])
        self.texts = kept[::-1]
        return self.texts


@dataclass
class _Suffixes:
    asked: SuffixDecoding
    vocab_size: int
    tree: bool
    collected: CountedAutomaton | None
    request: Request | None = None
    done: int = 0

    def __post_init__(self) -> None:
        self.own = CountedAutomaton(depth=self.asked.depth)

    def propose(self, request: Request) -> Draft:
        """Take in what was committed, then try the suffixes, here and in the collection."""
        self.request = request
        ids, first = request.history.ids, request.history.first
        self.own.extend(ids[max(self.done, first) :])
        self.done = len(ids)
        tail = ids[max(first, len(ids) - self.asked.depth) :]
        best = _Speculation(self, self.own, 0, 0)
        for counted in (self.own, self.collected):
            if counted is not None:
                best = self._try(counted, tail, request.budget.nodes, best)
        return best.draft()

    def _try(
        self, counted: CountedAutomaton, tail: list[int], nodes: int, best: _Speculation
    ) -> _Speculation:
        """The best speculation, those of one collection included."""
        for v, p in _suffixes(counted, tail, counted is self.own):
            room = min(int(self.asked.factor * p + self.asked.offset), nodes)
            # No tree is worth more than its nodes, so shorter matches cannot win any more.
            if room <= best.score:
                break
            if counted.automaton.branches(v) <= _WIDEST:
                best = max(best, _Speculation(self, counted, v, room), key=lambda one: one.score)
        return best

    def observe(self, observation: Observation) -> None:
        """The counts are taken from the committed symbols themselves."""


def _suffixes(counted: CountedAutomaton, tail: list[int], own: bool) -> Iterator[tuple[int, int]]:
    """States of the suffixes of ``tail`` that occur, with the length of the longest: longest first.

    ``own`` says that ``tail`` ends the very text that was counted.
    """
    automaton, v, matched = counted.automaton, 0, 0
    repeated = automaton.longest_repeat()
    if own and automaton.length[repeated] <= len(tail):
        v, matched = repeated, automaton.length[repeated]
    else:
        # A text of one period repeats itself through as many states as it has symbols: begin further up.
        for x in tail:
            v, matched = automaton.transfer(v, matched, x)
    while v > 0:
        # What ends nowhere but at the end of the text was followed by nothing.
        if automaton.first_end[v] + 1 < len(automaton):
            yield v, matched
        v = automaton.link[v]
        matched = automaton.length[v]


class _Speculation:
    """The tree that is grown behind a state of at most ``room`` nodes, and its score."""

    def __init__(self, row: _Suffixes, counted: CountedAutomaton, v: int, room: int) -> None:
        self._row, self._counted = row, counted
        self.tokens, self.parents, self.score = list[int](), list[int](), 0.0
        # (minus D, order of arrival, parent, symbol, state)
        self._heap: list[tuple[float, int, int, int, int]] = []
        self._offered = 0
        if room:
            self._offer(-1, v, 1.0)
        while self._heap and len(self.tokens) < room:
            share, _, parent, symbol, to = heapq.heappop(self._heap)
            self.tokens.append(symbol)
            self.parents.append(parent)
            self.score -= share
            if not row.tree:
                self._heap = []
            if len(self.tokens) < room:
                self._offer(len(self.tokens) - 1, to, -share)

    def _offer(self, node: int, v: int, above: float) -> None:
        """What followed: children by their share of the counts of all siblings."""
        counted, size = self._counted, self._row.vocab_size
        count = counted.count
        edges = counted.automaton.edges(v)
        if len(edges) > 1 or (edges and not 0 <= edges[0][0] < size):
            edges = [(x, to) for x, to in edges if 0 <= x < size]
        if not counted.known_behind(v):
            edges = [(x, to) for x, to in edges if counted.known(to)]
        if len(edges) == 1:
            # Most continuations have no rival: their share is that of what they continue.
            self._offered += 1
            heapq.heappush(self._heap, (-above, self._offered, node, *edges[0]))
            return
        total = sum([count[to] for _, to in edges])
        least = self._row.asked.min_share * total / above
        for x, to in edges:
            if count[to] >= least:
                self._offered += 1
                heapq.heappush(self._heap, (-above * count[to] / total, self._offered, node, x, to))

    def draft(self) -> Draft:
        """As a draft of point masses."""
        if not self.tokens:
            return Draft.empty()
        return Draft(tokens=torch.tensor(self.tokens), parents=tuple(self.parents))
