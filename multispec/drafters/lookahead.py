"""Lookahead decoding: a window of Jacobi guesses makes n-grams, and those that fit are verified with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from multispec.drafters.references import require_at_least
from multispec.drafters.window import each_stream
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import MAX_NODES, Context, DraftSession, Request
from multispec.stream import Draft, Observation, StreamSpec
from multispec.structures import PrefixTree


@dataclass(frozen=True)
class Lookahead:
    """Iterate a window of guesses, collect the n-grams it runs through, and verify those that may follow.

    Fu et al. (2024), "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", section 3
    and algorithm 2. The window holds N - 1 rows of W guesses: row 0 one chain behind the last symbol, and
    below its c-th guess the c-th guesses of the other rows, each of them one iteration older by position. The
    target's answer behind each of the last ones makes an n-gram of N symbols of that column, which goes into
    a pool by its first symbol (the G latest of each); then all rows move up. The pool's n-grams for the last
    symbol are verified beside the window.

    Seen from the last symbol, the window is a tree too: W guesses and W branches of N - 2. So both go into
    one draft and one pass, equal prefixes once, and a guess of the window that happens to be right is
    accepted as any other. ``drafted`` counts all of it. Rounds whose budget has no room for the window verify
    only.

    Raises:
        UsageError: a window, a pool or n-grams without symbols, or more nodes than a draft may have.
        UnsupportedError: parallel slots, which take chains.

    >>> Lookahead(window=7, ngram=5, guesses=7).num_draft_tokens
    56
    """

    name: ClassVar[str] = "lookahead"
    paper: ClassVar[str] = "Fu et al. 2024, arXiv 2402.02057"
    trained: ClassVar[bool] = False
    window: int = 5
    ngram: int = 4
    guesses: int = 5
    num_draft_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, window=1, ngram=2, guesses=1)
        nodes = (self.window + self.guesses) * (self.ngram - 1)
        if nodes > MAX_NODES:
            raise UsageError(
                f"lookahead drafts (window + guesses) (ngram - 1) = {nodes} nodes here, and a draft has at "
                f"most {MAX_NODES}. Lower one of them."
            )
        object.__setattr__(self, "num_draft_tokens", nodes)

    def begin(self, context: Context) -> DraftSession:
        """A window and a pool per row.

        Raises:
            UnsupportedError: parallel slots.
        """
        return each_stream(context, lambda spec: self._row(spec, context.vocab_size))

    def _row(self, spec: StreamSpec, vocab_size: int) -> _Window:
        if spec.step > 1:
            raise UnsupportedError(
                f"lookahead verifies a tree, and {spec.step} slots of this stream move together, which takes "
                "chains. Use jacobi, or prompt_lookup."
            )
        return _Window(self, vocab_size)


@dataclass
class _Window:
    asked: Lookahead
    vocab_size: int
    # N - 1 rows of W guesses
    rows: list[list[int]] = field(default_factory=list)
    # first symbol -> the N - 1 that followed it, the latest last
    pool: dict[int, OrderedDict[tuple[int, ...], None]] = field(default_factory=dict)
    # the last node of every column in the draft at hand
    ends: list[int] = field(default_factory=list)

    def propose(self, request: Request) -> Draft:
        """The n-grams that may follow, the latest first; and the window."""
        ids, first = request.history.ids, request.history.first
        self.ends = []
        if len(ids) == first:
            return Draft.empty()
        if not self.rows:
            self.rows = self._start([x for x in ids[first:] if x < self.vocab_size] or [0])
        tree = PrefixTree(request.budget.nodes)
        for gram in reversed(self.pool.get(ids[-1], OrderedDict())):
            tree.insert(gram)
        if len(tree) + self.asked.window * (self.asked.ngram - 1) <= tree.room:
            self.ends = self._lay(tree)
        return tree.draft()

    def _start(self, symbols: Sequence[int]) -> list[list[int]]:
        """Symbols of the prompt, over and over, in place of the authors' random ones."""
        width, count = self.asked.window, self.asked.ngram - 1
        return [[symbols[(r * width + c) % len(symbols)] for c in range(width)] for r in range(count)]

    def _lay(self, tree: PrefixTree) -> list[int]:
        ends: list[int] = []
        top = -1
        for column in zip(*self.rows, strict=True):
            top = tree.insert(column[:1], top)
            ends.append(tree.insert(column[1:], top))
        return ends

    def observe(self, observation: Observation) -> None:
        """Collect the n-gram of every column, and move the rows up."""
        if not self.ends:
            return
        answers: list[int] = observation.law.mode[torch.tensor(self.ends) + 1].tolist()
        for column, answer in zip(zip(*self.rows, strict=True), answers, strict=True):
            grams = self.pool.setdefault(column[0], OrderedDict())
            gram = (*column[1:], answer)
            grams[gram] = None
            grams.move_to_end(gram)
            if len(grams) > self.asked.guesses:
                grams.popitem(last=False)
        self.rows = [*self.rows[1:], answers]
        self.ends = []
