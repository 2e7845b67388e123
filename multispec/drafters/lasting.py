"""Rows that hand over what they learnt when they are done, for drafters that remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from multispec.drafters.rowwise import RowDrafter
from multispec.protocols import Request
from multispec.stream import Draft, Observation

OneRow = TypeVar("OneRow", bound=RowDrafter)


class LastingRows(Generic[OneRow]):
    """A draft session of one ``RowDrafter`` per row; each is passed to ``done`` when its row is.

    What is handed over reaches later sessions only: rows of one batch never learn from each other.
    """

    calls = 0

    def __init__(self, rows: Mapping[int, OneRow], done: Callable[[OneRow], None]) -> None:
        self._rows, self._done = dict(rows), done

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Ask each row's drafter."""
        return [self._rows[request.row].propose(request) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        """Tell that row's drafter."""
        self._rows[row].observe(observation)

    def end(self, rows: Sequence[int]) -> None:
        """Hand these rows over."""
        for number in rows:
            row = self._rows.pop(number, None)
            if row is not None:
                self._done(row)
