"""SAM-Decoding: the longest suffix that occurred before goes on as it did then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.automaton import SEPARATOR, SuffixAutomaton
from multispec.drafters.references import References, reference_ids, require_at_least
from multispec.drafters.rowwise import EachRow
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class SuffixAutomatonDrafter:
    """Copy what followed the longest suffix that occurred before, however long it is.

    Hu et al. (2024), "SAM Decoding: Speculative Decoding via Suffix Automaton", sections 3.1 and 3.2: the
    automaton of prompt and output grows with each symbol; the state of the longest repeated suffix names its
    first occurrence (min_endpos), and what stands behind it is drafted. ``references`` are texts in the same
    ids, held in one automaton for all rows and followed symbol by symbol; the draft is theirs where the match
    there is longer by more than ``bias`` (l_bias). Matches below ``min_match`` symbols (l_threshold) draft
    nothing. A round costs a few steps, however long the text; memory is linear.

    The authors draft 40 symbols behind matches of 5 and more, and leave the rest to another drafter. As in
    ``prompt_lookup``, a copy that runs into the end of the text goes on into itself.

    Raises:
        UsageError: nothing to draft, no match to look for, or references that are no ids.

    >>> SuffixAutomatonDrafter(references=[[5, 6, 7]]).num_draft_tokens
    16
    """

    name: ClassVar[str] = "suffix_automaton"
    paper: ClassVar[str] = "Hu et al. 2024, arXiv 2411.10666"
    trained: ClassVar[bool] = False
    references: References = ()
    num_draft_tokens: int = 16
    min_match: int = 1
    bias: int = 5
    _static: SuffixAutomaton | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, min_match=1, bias=0)
        texts = reference_ids(self.name, self.references)
        object.__setattr__(self, "references", texts)
        if texts:
            object.__setattr__(self, "_static", joined(texts))

    def begin(self, context: Context) -> DraftSession:
        """An automaton per row, and a place in that of the references."""
        return EachRow(context, lambda _: _Match(self.min_match, self.bias, context.vocab_size, self._static))


def joined(texts: References) -> SuffixAutomaton:
    """The automaton of some texts; no match goes from one into the next."""
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.extend(text)
        automaton.append(SEPARATOR)
    return automaton


@dataclass
class _Match:
    least: int
    bias: int
    vocab_size: int
    static: SuffixAutomaton | None
    dynamic: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    # The longest suffix of the text that is in the references: its state and its length.
    state: int = 0
    matched: int = 0
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Take in what was committed, then copy from behind the longer match."""
        ids, first = request.history.ids, request.history.first
        for x in ids[max(self.done, first) :]:
            self.dynamic.append(x)
            if self.static is not None:
                self.state, self.matched = self.static.transfer(self.state, self.matched, x)
        self.done = len(ids)
        found = self.dynamic.longest_repeat()
        length, source = self.dynamic.length[found], self.dynamic
        if self.static is not None and self.matched > length + self.bias:
            found, length, source = self.state, self.matched, self.static
        if length < self.least:
            return Draft.empty()
        return Draft.chain(self._copy(source.text, source.first_end[found] + 1, request.budget.nodes))

    def _copy(self, text: Sequence[int], start: int, count: int) -> list[int]:
        copied: list[int] = []
        while len(copied) < count:
            source = start + len(copied)
            token = text[source] if source < len(text) else copied[source - len(text)]
            if not 0 <= token < self.vocab_size:
                break
            copied.append(token)
        return copied

    def observe(self, observation: Observation) -> None:
        """The automata read the committed symbols themselves."""
