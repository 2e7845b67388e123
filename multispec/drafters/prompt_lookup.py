"""Prompt lookup: what followed the last time these symbols occurred will follow again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.rowwise import EachRow
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class PromptLookup:
    """Copy what followed the longest, then latest, match of the last symbols.

    Up to ``num_draft_tokens`` are copied from behind a match of the last n symbols, n from ``max_ngram``
    down to ``min_ngram``, over prompt and output (Saxena 2023, "Prompt Lookup Decoding"; the reference
    copy of LLMA, Yang et al. 2023, with the text itself as reference). The n-grams are indexed as they
    arrive: a round costs a few dictionary look-ups, however long the text. A match that runs into the end
    of the text goes on into its own copy, which drafts periods of any length.

    Raises:
        UsageError: an n-gram shorter than 1, or nothing to draft.
    """

    name: ClassVar[str] = "prompt_lookup"
    paper: ClassVar[str] = "Saxena 2023, prompt lookup decoding"
    trained: ClassVar[bool] = False
    max_ngram: int = 3
    num_draft_tokens: int = 10
    min_ngram: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram or self.num_draft_tokens < 1:
            raise UsageError(
                f"prompt_lookup needs 1 <= min_ngram <= max_ngram and num_draft_tokens >= 1: got {self}."
            )

    def begin(self, context: Context) -> DraftSession:
        """An index per row."""
        return EachRow(context, lambda _: _Index(self.min_ngram, self.max_ngram, context.vocab_size))


@dataclass
class _Index:
    low: int
    high: int
    vocab_size: int
    # n-gram -> where its latest occurrence was followed by something
    latest: dict[tuple[int, ...], int] = field(default_factory=dict)
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Copy from the longest, then latest, match."""
        ids = request.history.ids
        self._extend(ids, request.history.first)
        first = request.history.first
        for n in range(min(self.high, len(ids) - first), self.low - 1, -1):
            start = self.latest.get(tuple(ids[-n:]))
            if start is not None:
                return Draft.chain(self._copy(ids, start, request.budget.nodes))
        return Draft.empty()

    def _extend(self, ids: list[int], first: int) -> None:
        for end in range(max(self.done, first + 1), len(ids)):
            for n in range(self.low, min(self.high, end - first) + 1):
                self.latest[tuple(ids[end - n : end])] = end
        self.done = len(ids)

    def _copy(self, ids: list[int], start: int, count: int) -> list[int]:
        copied: list[int] = []
        while len(copied) < count:
            source = start + len(copied)
            token = ids[source] if source < len(ids) else copied[source - len(ids)]
            if token >= self.vocab_size:
                break
            copied.append(token)
        return copied

    def observe(self, observation: Observation) -> None:
        """The index reads the committed symbols themselves."""
