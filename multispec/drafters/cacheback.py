"""Cacheback: what followed lately is kept in two levels of least-recently-used tables, and grows a tree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.references import require_at_least
from multispec.drafters.window import each_stream
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.structures import PrefixTree

_Gram = tuple[int, ...]


@dataclass(frozen=True)
class Cacheback:
    """Grow a tree from what lately followed the last symbols, and then from what followed that.

    Ma, Gim and Zhong (2025), "Cacheback: Speculative Decoding With Nothing But Cache": a table of ``leaders``
    n-grams of ``leader`` symbols, each with its last ``width`` different followers of ``follower`` symbols;
    both forget what was used least recently. A tree is grown by looking up the last symbols, the latest
    follower first, and by looking up the end of each branch in turn, as far as the budget reaches. Leaders of
    fewer symbols are tried where longer ones are not known.

    With ``tree=False`` the latest follower alone is followed, as it is for parallel slots.

    Raises:
        UsageError: a size below 1.

    >>> Cacheback().num_draft_tokens
    24
    """

    name: ClassVar[str] = "cacheback"
    paper: ClassVar[str] = "Ma et al. 2025, arXiv 2511.21699"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 24
    leader: int = 2
    follower: int = 2
    width: int = 4
    leaders: int = 65_536
    tree: bool = True

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, leader=1, follower=1, width=1, leaders=1)

    def begin(self, context: Context) -> DraftSession:
        """A table per row."""
        return each_stream(
            context,
            lambda spec: _Cache(self, context.vocab_size, self.width if self.tree and spec.step == 1 else 1),
        )


@dataclass
class _Cache:
    asked: Cacheback
    vocab_size: int
    width: int
    # leader -> its followers; in both the latest stands last
    table: OrderedDict[_Gram, OrderedDict[_Gram, None]] = field(default_factory=OrderedDict)
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Take in what was committed, then grow."""
        ids, first = request.history.ids, request.history.first
        asked, room = self.asked, request.budget.nodes
        for end in range(max(self.done, first), len(ids)):
            start = end + 1 - asked.follower
            for n in range(1, asked.leader + 1):
                if start - n >= first:
                    self._add(tuple(ids[start - n : start]), tuple(ids[start : end + 1]))
        self.done = len(ids)
        tree = PrefixTree(room)
        frontier: list[tuple[int, _Gram]] = [(-1, tuple(ids[max(first, len(ids) - asked.leader) :]))]
        grown = {-1}
        for node, context in frontier:
            for gram in self._followers(context):
                last = tree.insert(gram, node)
                if last not in grown and len(tree) < room:
                    grown.add(last)
                    frontier.append((last, (*context, *gram)[-asked.leader :]))
            if len(tree) == room:
                break
        return tree.draft()

    def _add(self, leader: _Gram, gram: _Gram) -> None:
        followers = self.table.setdefault(leader, OrderedDict())
        self.table.move_to_end(leader)
        followers[gram] = None
        followers.move_to_end(gram)
        if len(followers) > self.asked.width:
            followers.popitem(last=False)
        if len(self.table) > self.asked.leaders:
            self.table.popitem(last=False)

    def _followers(self, context: Sequence[int]) -> Iterator[_Gram]:
        """What lately followed the longest known leader, the latest first; a look-up is a use."""
        for n in range(len(context), 0, -1):
            leader = tuple(context[len(context) - n :])
            if leader in self.table:
                self.table.move_to_end(leader)
                latest = list(reversed(self.table[leader]))[: self.width]
                yield from (self._drawable(gram) for gram in latest)
                return

    def _drawable(self, gram: _Gram) -> _Gram:
        """The symbols before the first that the target does not have."""
        if max(gram) < self.vocab_size:
            return gram
        end = next((i for i, x in enumerate(gram) if x >= self.vocab_size), len(gram))
        return gram[:end]

    def observe(self, observation: Observation) -> None:
        """The table reads the committed symbols themselves."""
