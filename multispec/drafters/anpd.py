"""ANPD: n-grams of several lengths, counted while generating, predict symbol after symbol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.references import require_at_least
from multispec.drafters.rowwise import EachRow
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class ANPD:
    """Draft what most often followed the last symbols in prompt and output, one symbol after the other.

    Ou et al. (2024), "Lossless Acceleration of Large Language Model via Adaptive N-gram Parallel Decoding",
    section 3: the counts of a multi-level n-gram module are adapted with every symbol that is committed. The
    next symbol is argmax C(w x) behind the longest context w of at most ``max_ngram`` - 1 symbols that has
    been seen (levels N down to ``min_ngram``), and is taken as committed for the one after it (K =
    ``num_draft_tokens``). Of equal counts the one that came first to it stays.

    Raises:
        UsageError: nothing to draft, or n-grams without a context.

    >>> ANPD().max_ngram
    5
    """

    name: ClassVar[str] = "anpd"
    paper: ClassVar[str] = "Ou et al. 2024, arXiv 2404.08698"
    trained: ClassVar[bool] = False
    max_ngram: int = 5
    num_draft_tokens: int = 6
    min_ngram: int = 2

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, min_ngram=2, max_ngram=self.min_ngram)

    def begin(self, context: Context) -> DraftSession:
        """Counts per row."""
        return EachRow(context, lambda _: _Levels(self.min_ngram, self.max_ngram, context.vocab_size))


@dataclass
class _Levels:
    low: int
    high: int
    vocab_size: int
    # C(w x) by a number made of w and x, and argmax over x by one made of w.
    counts: dict[int, int] = field(default_factory=dict)
    best: dict[int, int] = field(default_factory=dict)
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Adapt the counts, then predict symbol after symbol."""
        ids, first = request.history.ids, request.history.first
        for place in range(max(self.done, first), len(ids)):
            self._adapt(ids[max(first, place - self.high + 1) : place], ids[place])
        self.done = len(ids)
        line = ids[max(first, len(ids) - self.high + 1) :]
        known = len(line)
        while len(line) - known < request.budget.nodes:
            contexts = [*self._contexts(line[max(len(line) - self.high + 1, 0) :])]
            x = next((self.best[w] for w in reversed(contexts) if w in self.best), None)
            if x is None or x >= self.vocab_size:
                break
            line.append(x)
        return Draft.chain(line[known:])

    def _contexts(self, before: Sequence[int]) -> Iterator[int]:
        """The last symbols as one number each, the shortest context first; read backwards."""
        code = 1
        for length, x in enumerate(reversed(before), 1):
            code = code << 32 | x
            if length >= self.low - 1:
                yield code

    def _adapt(self, before: Sequence[int], x: int) -> None:
        for w in self._contexts(before):
            count = self.counts[w << 32 | x] = self.counts.get(w << 32 | x, 0) + 1
            leader = self.best.get(w)
            if leader is None or count > self.counts[w << 32 | leader]:
                self.best[w] = x

    def observe(self, observation: Observation) -> None:
        """The counts are taken from the committed symbols themselves."""
