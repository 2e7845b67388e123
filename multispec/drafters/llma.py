"""LLMA: where the last symbols occur in a reference text, go on as the reference does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.lasting import LastingRows
from multispec.drafters.references import References, reference_ids, require_at_least
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation

# n-gram -> (text, place) of what followed it first
_Index = dict[tuple[int, ...], tuple[tuple[int, ...], int]]


@dataclass(frozen=True)
class LLMA:
    """Copy up to ``num_draft_tokens`` symbols from the reference that holds the last n symbols.

    Yang et al. (2023), "Inference with Reference: Lossless Acceleration of Large Language Models", section 2:
    the last n symbols (match length, from ``max_ngram`` down to ``min_ngram``) are looked for in the
    references, and what follows them is the draft (copy length), up to the end of that text. Of several
    places the first counts. ``references`` are retrieved documents or earlier answers, in the target's ids;
    with ``remember=True`` the outputs of rows that are done join them for later sessions. A text that is its
    own reference is ``prompt_lookup``.

    Raises:
        UsageError: settings out of range, references that are no ids, or none and nothing to remember.

    >>> LLMA(references=[[5, 6, 7, 8]]).max_ngram
    3
    """

    name: ClassVar[str] = "llma"
    paper: ClassVar[str] = "Yang et al. 2023, arXiv 2304.04487"
    trained: ClassVar[bool] = False
    references: References = ()
    num_draft_tokens: int = 16
    max_ngram: int = 3
    min_ngram: int = 1
    remember: bool = False
    _index: _Index = field(init=False, repr=False, compare=False, default_factory=dict)
    _waiting: list[tuple[int, ...]] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, min_ngram=1, max_ngram=self.min_ngram)
        texts = reference_ids(self.name, self.references)
        if not texts and not self.remember:
            raise UsageError(
                "llma copies from references: got none. Pass references=[ids, ...], or remember=True to "
                "copy from earlier outputs; prompt_lookup copies from the text itself."
            )
        object.__setattr__(self, "references", texts)
        self._add(texts)

    def _add(self, texts: Iterable[tuple[int, ...]]) -> None:
        for text in texts:
            for end in range(1, len(text)):
                for n in range(self.min_ngram, min(self.max_ngram, end) + 1):
                    self._index.setdefault(text[end - n : end], (text, end))

    def begin(self, context: Context) -> DraftSession:
        """The references as they are now."""
        self._add(self._waiting)
        self._waiting.clear()
        return LastingRows(
            {row: _Copy(self, self._index, context.vocab_size) for row in context.prompts}, self._learn
        )

    def _learn(self, row: _Copy) -> None:
        if self.remember and row.request is not None:
            self._waiting.append(tuple(row.request.history.generated))


@dataclass
class _Copy:
    asked: LLMA
    index: _Index
    vocab_size: int
    request: Request | None = None

    def propose(self, request: Request) -> Draft:
        """Copy from the longest match."""
        self.request = request
        ids, first = request.history.ids, request.history.first
        for n in range(min(self.asked.max_ngram, len(ids) - first), self.asked.min_ngram - 1, -1):
            found = self.index.get(tuple(ids[len(ids) - n :]))
            if found is not None:
                text, start = found
                copied = text[start : start + request.budget.nodes]
                end = next((i for i, x in enumerate(copied) if x >= self.vocab_size), len(copied))
                return Draft.chain(copied[:end])
        return Draft.empty()

    def observe(self, observation: Observation) -> None:
        """The references do not change."""
