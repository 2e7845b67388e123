"""What drafters made of several drafters share: their sessions, asked and told one by one."""

from __future__ import annotations

from collections.abc import Sequence

from multispec.drafters.retracting import Retracting, unseen
from multispec.drafters.salted import Salted
from multispec.errors import DraftError, UsageError
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, Observation


def require_drafters(name: str, drafters: Sequence[Drafter]) -> None:
    """Hold a list of drafters to being one.

    Raises:
        UsageError: none, or what is no drafter.
    """
    wrong = [type(one).__name__ for one in drafters if isinstance(one, type) or not isinstance(one, Drafter)]
    if wrong or not drafters:
        raise UsageError(
            f"{name} is made of one drafter or more, objects with a method 'begin': got {len(drafters)}"
            f"{', among them ' + ', '.join(wrong) if wrong else ''}. Pass (PromptLookup(), MaxGram())."
        )


class Members:
    """The sessions of several drafters over the same rows.

    Each drafts no more than its own ``num_draft_tokens``, from noise of its own.
    """

    def __init__(self, drafters: Sequence[Drafter], context: Context) -> None:
        self.sizes = [drafter.num_draft_tokens for drafter in drafters]
        self.sessions: list[DraftSession] = [drafter.begin(context) for drafter in drafters]
        # Where each row stood when a member was asked for it in this round.
        self._asked: dict[int, dict[int, int]] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all members."""
        return sum(session.calls for session in self.sessions)

    def ask(self, member: int, requests: Sequence[Request]) -> list[Draft]:
        """The drafts of one member."""
        size = self.sizes[member]
        own = [
            request._replace(
                budget=request.budget._replace(nodes=min(size, request.budget.nodes)),
                # Salts below zero: those of a cascade are positions.
                noise=Salted(request.noise, -1 - member) if member else request.noise,
                pipeline=request.pipeline.fork(),
            )
            for request in requests
        ]
        for request in requests:
            self._asked.setdefault(request.row, {})[member] = len(request.history.ids)
        drafts = list(self.sessions[member].propose(own)) if own else []
        for request, draft in zip(own, drafts, strict=True):
            if len(draft) > request.budget.nodes:
                limit = request.budget.nodes
                raise DraftError(f"A draft of {len(draft)} nodes exceeds the budget of {limit}.")
        return drafts

    def forget(self, row: int) -> None:
        """Nobody has to go back in this row."""
        self._asked.pop(row, None)

    def tell(self, row: int, winner: int | None, observation: Observation) -> None:
        """The round to the member whose draft was verified; to the others, a round without a draft."""
        asked = self._asked.pop(row, {})
        for member, session in enumerate(self.sessions):
            if member == winner:
                session.observe(row, observation)
                continue
            if member in asked and isinstance(session, Retracting):
                session.retract(row, asked[member])
            session.observe(row, unseen(observation))

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        for row in rows:
            self._asked.pop(row, None)
        for session in self.sessions:
            session.end(rows)
