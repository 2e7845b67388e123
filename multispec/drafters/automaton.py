"""A suffix automaton that grows symbol by symbol: all substrings of a text, in linear memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

# Ends every text of a collection: no stream holds it, so no match goes across.
SEPARATOR = -1


class SuffixAutomaton:
    """The smallest automaton of all substrings of a growing text: Blumer et al. (1985), online.

    State v stands for the substrings that end at the same places: the longest has ``length[v]`` symbols,
    ``first_end[v]`` is the first place where they end, ``link[v]`` the state of the longest suffix that ends
    in more places. State 0 is the empty string, ``last`` the whole text. Adding a symbol takes constant time
    on average.

    Most states lead to one other: that edge lies in two arrays, and only states that branch have a
    dictionary.

    >>> automaton = SuffixAutomaton([1, 2, 1, 2])
    >>> v = automaton.longest_repeat()          # 1 2, which ended at place 1 before
    >>> automaton.length[v], automaton.first_end[v]
    (2, 1)
    """

    def __init__(self, symbols: Iterable[int] = ()) -> None:
        self.text = array("q")
        self.length = array("q", [0])
        self.link = array("q", [-1])
        self.first_end = array("q", [-1])
        self.last = 0
        self._token = array("q", [SEPARATOR - 1])
        self._next = array("q", [-1])
        self._more: dict[int, dict[int, int]] = {}
        self.extend(symbols)

    def __len__(self) -> int:
        return len(self.text)

    def extend(self, symbols: Iterable[int]) -> None:
        """Add symbols behind the text."""
        for x in symbols:
            self.append(x)

    def append(self, x: int) -> int | None:
        """Add a symbol; returns the state that was split off for it, if one was."""
        length, link = self.length, self.link
        current = self._state(length[self.last] + 1, len(self.text))
        self.text.append(x)
        p, self.last = self.last, current
        while (q := self.step(p, x)) is None:
            self._lead(p, x, current)
            p = link[p]
            if p < 0:
                link[current] = 0
                return None
        if length[q] == length[p] + 1:
            link[current] = q
            return None
        return self._split(p, q, x, current)

    def _state(self, length: int, first_end: int) -> int:
        self.length.append(length)
        self.link.append(0)
        self.first_end.append(first_end)
        self._token.append(SEPARATOR - 1)
        self._next.append(-1)
        return len(self.length) - 1

    def _lead(self, v: int, x: int, to: int) -> None:
        if self._next[v] < 0 or self._token[v] == x:
            self._token[v], self._next[v] = x, to
        else:
            self._more.setdefault(v, {})[x] = to

    def _split(self, p: int, q: int, x: int, current: int) -> int:
        """The shorter strings of q now end in one place more than its longer ones."""
        twin = self._state(self.length[p] + 1, self.first_end[q])
        self._token[twin], self._next[twin] = self._token[q], self._next[q]
        if q in self._more:
            self._more[twin] = dict(self._more[q])
        self.link[twin] = self.link[q]
        self.link[q] = self.link[current] = twin
        while p >= 0 and self.step(p, x) == q:
            self._lead(p, x, twin)
            p = self.link[p]
        return twin

    def step(self, v: int, x: int) -> int | None:
        """The state behind ``v`` and symbol ``x``; None where that is no substring."""
        if self._token[v] == x:
            return self._next[v]
        more = self._more.get(v)
        return None if more is None else more.get(x)

    def edges(self, v: int) -> list[tuple[int, int]]:
        """(symbol, state) of everything that followed ``v``."""
        if self._next[v] < 0:
            return []
        return [(self._token[v], self._next[v]), *self._more.get(v, {}).items()]

    def branches(self, v: int) -> int:
        """How many symbols followed ``v``."""
        return (self._next[v] >= 0) + len(self._more.get(v, ()))

    def transfer(self, v: int, matched: int, x: int) -> tuple[int, int]:
        """From the longest suffix of a query that is a substring to that of the query and ``x``.

        SAM-Decoding, algorithm 1: while x does not follow, fall back along the links.
        """
        while (to := self.step(v, x)) is None:
            if v == 0:
                return 0, 0
            v = self.link[v]
            matched = self.length[v]
        return to, matched + 1

    def longest_repeat(self) -> int:
        """The state of the longest suffix of the text that also ends earlier; 0 where there is none."""
        return max(self.link[self.last], 0)


class CountedAutomaton:
    """A suffix automaton that knows how often each substring of at most ``depth`` symbols occurs.

    ``count[v]`` is the number of places where the strings of v end, for states whose shortest string has at
    most ``depth`` symbols (``known``). The links form the suffix tree of the reversed text: each new place is
    counted along its path from the root, no further than ``depth``.

    >>> counted = CountedAutomaton([1, 2, 1, 2, 3], depth=8)
    >>> counted.count[counted.automaton.step(0, 2)]
    2
    """

    def __init__(self, symbols: Iterable[int] = (), depth: int = 64) -> None:
        self.automaton = SuffixAutomaton()
        self.depth = depth
        self.count = array("q", [0])
        self._child: dict[tuple[int, int], int] = {}
        self.extend(symbols)

    def extend(self, symbols: Iterable[int]) -> None:
        """Add symbols behind the text, and count them."""
        for x in symbols:
            self._append(x)

    def _append(self, x: int) -> None:
        automaton = self.automaton
        twin = automaton.append(x)
        self.count.append(0)
        if twin is not None:
            q = automaton.first_end[twin], twin
            self.count.append(self._inherited(*q))
        current = automaton.last
        self._child[automaton.link[current], self._branch(current)] = current
        self._count(current)

    def _inherited(self, end: int, twin: int) -> int:
        """Hang the split state below its new twin; it ended wherever the twin did before."""
        automaton = self.automaton
        above = automaton.link[twin]
        key = above, automaton.text[end - automaton.length[above]]
        q = self._child[key]
        self._child[key] = twin
        self._child[twin, self._branch(q)] = q
        return self.count[q]

    def _branch(self, v: int) -> int:
        """The symbol, read backwards, by which ``v`` hangs below its link."""
        automaton = self.automaton
        return automaton.text[automaton.first_end[v] - automaton.length[automaton.link[v]]]

    def _count(self, current: int) -> None:
        length, text, child, count = self.automaton.length, self.automaton.text, self._child, self.count
        end, v = len(text) - 1, 0
        count[0] += 1
        while v != current and length[v] < self.depth:
            v = child[v, text[end - length[v]]]
            count[v] += 1

    def known_behind(self, v: int) -> bool:
        """Whether the counts of all that followed ``v`` are kept."""
        return v == 0 or self.automaton.length[self.automaton.link[v]] + 1 < self.depth

    def known(self, v: int) -> bool:
        """Whether ``count[v]`` is kept: its shortest string is no longer than ``depth``."""
        return v == 0 or self.automaton.length[self.automaton.link[v]] < self.depth
