"""Max-Gram: the longest match of the last symbols, also behind symbols that may be taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.references import require_at_least
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation

# Symbols that can be taken back without indexing the row anew.
_REMEMBERED = 1024
_Key = tuple[int, ...]


@dataclass(frozen=True)
class MaxGram:
    """Copy what followed the longest match: the last stage of a cascade, which costs nothing.

    Chen et al. (2023), "Cascade Speculative Drafting for Even Faster LLM Inference", section 4.2: the maximal
    match of the last symbols, n of them down to 1, in prompt and output; a match of one symbol is the bigram
    that the paper falls back to. The index follows symbols that are drafted ahead and taken back again, so
    that a draft model may be drafted for in the middle of its own draft.

    Raises:
        UsageError: an n-gram shorter than 1, or nothing to draft.

    >>> MaxGram().max_ngram
    8
    """

    name: ClassVar[str] = "max_gram"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv 2312.11462"
    trained: ClassVar[bool] = False
    max_ngram: int = 8
    num_draft_tokens: int = 10

    def __post_init__(self) -> None:
        require_at_least(self.name, self, max_ngram=1, num_draft_tokens=1)

    def begin(self, context: Context) -> DraftSession:
        """An index per row."""
        return _Rows({row: _Index(self.max_ngram, context.vocab_size) for row in context.prompts})


class _Rows:
    calls = 0

    def __init__(self, rows: dict[int, _Index]) -> None:
        self._rows = rows

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Copy, row by row."""
        return [self._rows[request.row].propose(request) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """The index is made from the history itself."""

    def retract(self, row: int, length: int) -> None:
        """Take the symbols behind ``length`` out of the index."""
        self._rows[row].retract(length)

    def end(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
        for row in rows:
            self._rows.pop(row, None)


@dataclass
class _Index:
    high: int
    vocab_size: int
    # n-gram -> where its latest occurrence was followed by something
    latest: dict[_Key, int] = field(default_factory=dict)
    done: int = 0
    # (place, n-gram, where it was followed before that)
    log: deque[tuple[int, _Key, int | None]] = field(default_factory=deque)

    def propose(self, request: Request) -> Draft:
        """Copy from behind the longest match; what runs into the end goes on into its own copy."""
        ids, first = request.history.ids, request.history.first
        self._extend(ids, first)
        for n in range(min(self.high, len(ids) - first), 0, -1):
            start = self.latest.get(tuple(ids[-n:]))
            if start is not None:
                return Draft.chain(self._copy(ids, start, request.budget.nodes))
        return Draft.empty()

    def _copy(self, ids: Sequence[int], start: int, count: int) -> list[int]:
        period = len(ids) - start
        copied = [ids[start + i % period] for i in range(count)]
        end = next((i for i, x in enumerate(copied) if x >= self.vocab_size), count)
        return copied[:end]

    def _extend(self, ids: Sequence[int], first: int) -> None:
        for place in range(max(self.done, first + 1), len(ids)):
            for n in range(1, min(self.high, place - first) + 1):
                key = tuple(ids[place - n : place])
                self.log.append((place, key, self.latest.get(key)))
                self.latest[key] = place
        self.done = len(ids)
        while len(self.log) > _REMEMBERED * self.high:
            self.log.popleft()

    def retract(self, length: int) -> None:
        """As if no symbol had come behind the first ``length``."""
        if self.done - length >= _REMEMBERED:
            self.latest, self.done = {}, 0
            self.log.clear()
            return
        while self.log and self.log[-1][0] >= length:
            _, key, before = self.log.pop()
            if before is None:
                del self.latest[key]
            else:
                self.latest[key] = before
        self.done = min(self.done, length)
