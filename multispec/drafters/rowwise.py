"""Drafters that look at one row at a time: write ``propose`` and let ``EachRow`` do the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from multispec.protocols import Context, Request
from multispec.stream import Draft, Observation, Prompt


@runtime_checkable
class RowDrafter(Protocol):
    """A drafter of one row.

    >>> class Again:                          # drafts the last symbol once more
    ...     def propose(self, request):
    ...         return Draft.chain(request.history.ids[-1:])
    ...     def observe(self, observation):
    ...         pass
    """

    def propose(self, request: Request, /) -> Draft:
        """At most ``request.budget.nodes`` nodes."""
        ...

    def observe(self, observation: Observation, /) -> None:
        """What became of it."""
        ...


class EachRow:
    """A draft session made of one ``RowDrafter`` per row."""

    calls = 0

    def __init__(self, context: Context, make: Callable[[Prompt], RowDrafter]) -> None:
        self._rows = {row: make(prompt) for row, prompt in context.prompts.items()}

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Ask each row's drafter."""
        return [self._rows[request.row].propose(request) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """Tell that row's drafter."""
        self._rows[row].observe(observation)

    def end(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
        for row in rows:
            self._rows.pop(row, None)
