"""Fallback: the first drafter that has something to say drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.several import Members, require_drafters
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class Fallback:
    """Ask one drafter after the other, row by row, until one drafts.

    The hierarchy of Cho et al. (2025), "Lossless Acceleration of Large Language Models with Hierarchical
    Drafting based on Temporal Locality", section 3: sources in the order of how good and how cheap they are,
    such as ``Fallback((PromptLookup(), Rest(store), DraftModel(model)))``. Each drafts no more than its own
    ``num_draft_tokens``; whoever did not draft sees a round without a draft.

    Raises:
        UsageError: no drafters.

    >>> from multispec.drafters import PromptLookup
    >>> Fallback((PromptLookup(max_ngram=5), PromptLookup(max_ngram=1))).num_draft_tokens
    10
    """

    name: ClassVar[str] = "fallback"
    paper: ClassVar[str] = "Cho et al. 2025, arXiv 2502.05609"
    trained: ClassVar[bool] = False
    drafters: Sequence[Drafter]

    def __post_init__(self) -> None:
        require_drafters(self.name, self.drafters)

    @property
    def num_draft_tokens(self) -> int:
        """The most that one of them drafts."""
        return max(drafter.num_draft_tokens for drafter in self.drafters)

    def begin(self, context: Context) -> DraftSession:
        """A session of each."""
        return _Session(Members(self.drafters, context))


class _Session:
    def __init__(self, members: Members) -> None:
        self._members = members
        self._winner: dict[int, int] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all members."""
        return self._members.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Those that are still without a draft ask the next member."""
        drafts: dict[int, Draft] = {}
        for member in range(len(self._members.sessions)):
            left = [request for request in requests if request.row not in drafts]
            for request, draft in zip(left, self._members.ask(member, left), strict=True):
                if len(draft):
                    drafts[request.row] = draft
                    self._winner[request.row] = member
        return [drafts.get(request.row, Draft.empty()) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """The round, to who drafted for it."""
        self._members.tell(row, self._winner.pop(row, None), observation)

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        self._members.end(rows)
