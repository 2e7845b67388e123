"""Both branches of guidance as one session: drafted, scored, committed and rolled back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from multispec.protocols import Joinable, Scores, Target, TargetSession, walk
from multispec.stream import Draft, Prompt
from multispec.tree import depths


def begin(
    target: Target,
    prompts: Sequence[Prompt],
    capacity: Sequence[int],
    nodes: int,
    rows: Sequence[int] | None = None,
    guided: bool = False,
) -> TargetSession:
    """A session of ``target`` over ``prompts``, guided where a prompt asks for it.

    Rows are named by their place, or by the numbers ``rows``. ``guided`` says that guided rows may join.
    """
    names = list(range(len(prompts))) if rows is None else list(rows)
    if names == list(range(len(prompts))) and not guided and not any(prompt.guided for prompt in prompts):
        return target.begin(prompts, capacity, nodes)
    return GuidedSession(target, prompts, capacity, nodes, names)


def join(
    session: TargetSession, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int]
) -> Scores | None:
    """Run the prompts of new rows in a session that is under way; None where it cannot take them in."""
    guided = any(prompt.guided for prompt in prompts)
    if not isinstance(session, Joinable) or (guided and not isinstance(session, GuidedSession)):
        return None
    return session.join(rows, prompts, capacity)


class GuidedSession:
    """Rows under numbers of their own, with an unconditional twin each where guided; logits are mixed.

    A pass runs both branches side by side, so guidance doubles the rows and not the passes.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        capacity: Sequence[int],
        nodes: int,
        rows: Sequence[int] | None = None,
    ) -> None:
        self._step = target.spec.step
        self._prompts: dict[int, Prompt] = {}
        # The rows of ``inner`` that hold the branches of a row.
        self._places: dict[int, int] = {}
        self._twins: dict[int, int] = {}
        self._next = 0
        branches, room = self._named(range(len(prompts)) if rows is None else rows, prompts, capacity)
        self.inner = target.begin(branches, room, nodes)

    def _named(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int]
    ) -> tuple[list[Prompt], list[int]]:
        """Numbers for the branches of new rows; prompts and room of all these branches, in their order."""
        self._prompts |= dict(zip(rows, prompts, strict=True))
        self._places |= {row: self._next + place for place, row in enumerate(rows)}
        self._next += len(rows)
        branches, room = list(prompts), list(capacity)
        for row, prompt, most in zip(rows, prompts, capacity, strict=True):
            if prompt.guided and prompt.unconditional is not None:
                self._twins[row], self._next = self._next, self._next + 1
                branches.append(prompt.unconditional)
                room.append(most - len(prompt.ids) + len(prompt.unconditional.ids))
        return branches, room

    def prefill(self) -> Scores:
        """Run the prompts of both branches: mixed logits of each row."""
        return self._first(list(self._prompts), self.inner.prefill())

    def join(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /
    ) -> Scores | None:
        """Run the prompts of both branches of new rows."""
        if not isinstance(self.inner, Joinable):
            return None
        start = self._next
        branches, room = self._named(rows, prompts, capacity)
        found = self.inner.join(range(start, self._next), branches, room)
        if found is None:
            self._forget(rows)
            return None
        return self._first(rows, found)

    def _first(self, rows: Sequence[int], found: Scores) -> Scores:
        """What follows the prompts of these rows: their logits come first, then those of their twins."""
        twins = [row for row in rows if row in self._twins]
        others = dict(zip(twins, found.logits[len(rows) :], strict=True))
        logits = [
            self._mixed(row, found.logits[n], others.get(row), range(self._step))
            for n, row in enumerate(rows)
        ]
        return _of_rows(found, logits)

    def _mixed(self, row: int, logits: Tensor, other: Tensor | None, positions: Sequence[int]) -> Tensor:
        guidance = self._prompts[row].guidance
        if other is None or guidance is None:
            return logits
        return guidance.mix(logits, other, positions)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run both branches over the same roots and drafts."""
        first = [self.length(row) - len(self._prompts[row].ids) + self._step for row in rows]
        twins = [place for place, row in enumerate(rows) if row in self._twins]
        found = self.inner.score(
            [*(self._places[row] for row in rows), *(self._twins[rows[place]] for place in twins)],
            [*roots, *(root for place in twins for root in self._root(roots, place))],
            [*drafts, *(drafts[place] for place in twins)],
        )
        others = dict(zip(twins, found.logits[len(rows) :], strict=True))
        logits = [
            self._mixed(row, found.logits[n], others.get(n), self._positions(first[n], drafts[n]))
            for n, row in enumerate(rows)
        ]
        return _of_rows(found, logits)

    def _root(self, roots: Sequence[int], place: int) -> Sequence[int]:
        return roots[place * self._step : (place + 1) * self._step]

    def _positions(self, first: int, draft: Draft) -> Sequence[int]:
        if self._step > 1:
            return range(first, first + len(draft) + self._step)
        return [first + depth for depth in (0, *depths(draft.parents))]

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the same symbols in both branches."""
        pairs = [(row, path) for row, path in zip(rows, paths, strict=True) if row in self._twins]
        branches = [*(self._places[row] for row in rows), *(self._twins[row] for row, _ in pairs)]
        self.inner.commit(branches, [*paths, *(path for _, path in pairs)])

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run and commit one symbol per row."""
        found = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return found.logits

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit symbol after symbol."""
        return walk(self, row, tokens, choose)

    def checkpoint(self, row: int) -> None:
        """Remember where both branches stand."""
        for branch in self.branches(row):
            self.inner.checkpoint(branch)

    def rewind(self, row: int, length: int) -> int:
        """Take the same number of symbols from both branches."""
        back = self.length(row) - length
        if row in self._twins:
            twin = self._twins[row]
            self.inner.rewind(twin, self.inner.length(twin) - back)
        return self.inner.rewind(self._places[row], length)

    def length(self, row: int) -> int:
        """Symbols of the conditional branch."""
        return self.inner.length(self._places[row])

    def drop(self, rows: Sequence[int]) -> None:
        """Free both branches."""
        self.inner.drop([branch for row in rows for branch in self.branches(row)])
        self._forget(rows)

    def _forget(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self._prompts[row], self._places[row]
            self._twins.pop(row, None)

    def branches(self, row: int) -> list[int]:
        """The rows of ``inner`` that hold a row, and its unconditional branch where it is guided."""
        twins = [self._twins[row]] if row in self._twins else []
        return [self._places[row], *twins]


def _of_rows(found: Scores, logits: Sequence[Tensor]) -> Scores:
    """What belongs to the rows that the loop knows."""
    count = len(logits)
    return Scores(logits, found.hidden and found.hidden[:count], found.calls[:count])
