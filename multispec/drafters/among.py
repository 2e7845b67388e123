"""One of several drafters, in every round the one that the policy names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.retracting import unseen
from multispec.errors import UsageError
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class Among:
    """Ask the drafter whose number the budget holds: bandits choose it with ``ucb`` or ``exp3``.

    Hou et al. (2025), "BanditSpec", section 3, whose arms are drafters as well as lengths. All of them follow
    the text, so that each can draft in any round; the one that is asked learns what became of its draft, the
    others what was emitted.

    Raises:
        UsageError: no drafters.
    """

    name: ClassVar[str] = "among"
    paper: ClassVar[str] = "Hou et al. 2025, arXiv 2505.15141"
    trained: ClassVar[bool] = False
    drafters: Sequence[Drafter]

    def __post_init__(self) -> None:
        if not self.drafters:
            raise UsageError("among chooses among drafters: got none. Name one or more.")

    @property
    def num_draft_tokens(self) -> int:
        """The most that one of them drafts when nobody says otherwise."""
        return max(drafter.num_draft_tokens for drafter in self.drafters)

    def begin(self, context: Context) -> DraftSession:
        """A session of each."""
        return AmongSession([drafter.begin(context) for drafter in self.drafters])


class AmongSession:
    """The sessions of several drafters over the same rows."""

    def __init__(self, sessions: Sequence[DraftSession]) -> None:
        self._sessions = sessions
        self._asked: dict[int, int] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all of them."""
        return sum(session.calls for session in self._sessions)

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Each row's draft by the drafter that its budget names.

        Raises:
            UsageError: a number that no drafter has.
        """
        found: dict[int, Draft] = {}
        for number in sorted({request.budget.drafter for request in requests}):
            if not 0 <= number < len(self._sessions):
                raise UsageError(
                    f"among has {len(self._sessions)} drafters: got number {number} from the policy. Give "
                    "the policy as many draft_costs as there are drafters."
                )
            mine = [request for request in requests if request.budget.drafter == number]
            drafts = self._sessions[number].propose(mine)
            found |= {request.row: draft for request, draft in zip(mine, drafts, strict=True)}
            self._asked |= {request.row: number for request in mine}
        return [found[request.row] for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """What became of the draft, to the one that made it; what was emitted, to all."""
        asked = self._asked.pop(row, None)
        hidden = observation if asked is None else unseen(observation)
        for number, session in enumerate(self._sessions):
            session.observe(row, observation if number == asked else hidden)

    def end(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
        for session in self._sessions:
            session.end(rows)
