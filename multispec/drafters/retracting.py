"""Drafters inside drafters: what was drafted ahead may be taken back, which not every session can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from multispec.history import History
from multispec.protocols import DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.tree import children


@runtime_checkable
class Retracting(Protocol):
    """A draft session that follows symbols which are drafted ahead and may be taken back.

    It may be asked behind symbols that are not committed yet. ``retract`` says that only the first
    ``length`` symbols of a row stand; behind them comes at least one more before it is asked again.
    """

    def propose(self, requests: Sequence[Request]) -> Sequence[Draft]:
        """One draft per request."""
        ...

    def observe(self, row: int, observation: Observation) -> None:
        """What became of a row's draft."""
        ...

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        ...

    def retract(self, row: int, length: int) -> None:
        """Forget everything behind the first ``length`` symbols of a row, its prompt included."""
        ...

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        ...


class Steady:
    """A session whose drafts follow from the history alone: there is nothing to take back."""

    def __init__(self, session: DraftSession) -> None:
        self._session = session

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._session.calls

    def propose(self, requests: Sequence[Request]) -> Sequence[Draft]:
        """One draft per request."""
        return self._session.propose(requests)

    def observe(self, row: int, observation: Observation) -> None:
        """What became of a row's draft."""
        self._session.observe(row, observation)

    def retract(self, row: int, length: int) -> None:
        """Nothing."""

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        self._session.end(rows)


def ahead(history: History, drafted: Sequence[int]) -> History:
    """A history that goes on with drafted symbols as if they were committed."""
    start = history.prompt_length
    found = History(history.ids[:start], history.padding, foreign_prompt=history.first > 0)
    found.extend([*history.ids[start:], *drafted])
    return found


def in_line(draft: Draft) -> Draft:
    """The draft itself where it is a chain, else its first children: a chain drawn from the same q."""
    if draft.is_chain:
        return draft
    below, node, line = children(draft.parents), -1, list[int]()
    while node in below:
        node = below[node][0]
        line.append(node)
    return Draft.chain([draft.ids[n] for n in line], None if draft.q is None else draft.q[line])


def unseen(observation: Observation) -> Observation:
    """A round as it looks to a drafter whose draft was not verified: a round without a draft."""
    step = max(len(observation.law) - len(observation.draft), 1)
    law = observation.law
    return observation._replace(
        draft=Draft.empty(),
        path=(),
        logits=observation.logits[:step],
        law=type(law)(law.scores[:step], greedy=law.greedy),
        hidden=None if observation.hidden is None else observation.hidden[:step],
    )


def agreeing(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading symbols agree.

    >>> agreeing([5, 6, 7], [5, 6])
    2
    """
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
