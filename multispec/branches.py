"""Both branches of guidance as one session: drafted, scored, committed and rolled back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from multispec.protocols import Scores, Target, TargetSession, walk
from multispec.stream import Draft, Prompt
from multispec.tree import depths


def begin(target: Target, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
    """A session of ``target`` over ``prompts``, guided where a prompt asks for it."""
    if not any(prompt.guided for prompt in prompts):
        return target.begin(prompts, capacity, nodes)
    return GuidedSession(target, prompts, capacity, nodes)


class GuidedSession:
    """Rows with an unconditional twin each, behind the rows that the loop knows; logits are mixed.

    A pass runs both branches side by side, so guidance doubles the rows and not the passes.
    """

    def __init__(
        self, target: Target, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int
    ) -> None:
        self._prompts = list(prompts)
        self._twins: dict[int, int] = {}
        branches, room = list(prompts), list(capacity)
        for row, prompt in enumerate(prompts):
            if prompt.guided and prompt.unconditional is not None:
                self._twins[row] = len(branches)
                branches.append(prompt.unconditional)
                room.append(capacity[row] - len(prompt.ids) + len(prompt.unconditional.ids))
        self.inner = target.begin(branches, room, nodes)
        self._step = target.spec.step

    def prefill(self) -> Scores:
        """Run the prompts of both branches: mixed logits of each row."""
        found = self.inner.prefill()
        rows = range(len(self._prompts))
        first = range(self._step)
        logits = [self._mixed(row, found.logits[row], self._other(row, found.logits), first) for row in rows]
        return _of_rows(found, logits)

    def _other(self, row: int, logits: Sequence[Tensor]) -> Tensor | None:
        return logits[self._twins[row]] if row in self._twins else None

    def _mixed(self, row: int, logits: Tensor, other: Tensor | None, positions: Sequence[int]) -> Tensor:
        guidance = self._prompts[row].guidance
        if other is None or guidance is None:
            return logits
        return guidance.mix(logits, other, positions)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run both branches over the same roots and drafts."""
        first = [self.inner.length(row) - len(self._prompts[row].ids) + self._step for row in rows]
        twins = [place for place, row in enumerate(rows) if row in self._twins]
        found = self.inner.score(
            [*rows, *(self._twins[rows[place]] for place in twins)],
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
        twins = [self._twins[row] for row, _ in pairs]
        self.inner.commit([*rows, *twins], [*paths, *(path for _, path in pairs)])

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
        for branch in self._branches(row):
            self.inner.checkpoint(branch)

    def rewind(self, row: int, length: int) -> int:
        """Take the same number of symbols from both branches."""
        back = self.inner.length(row) - length
        if row in self._twins:
            twin = self._twins[row]
            self.inner.rewind(twin, self.inner.length(twin) - back)
        return self.inner.rewind(row, length)

    def length(self, row: int) -> int:
        """Symbols of the conditional branch."""
        return self.inner.length(row)

    def drop(self, rows: Sequence[int]) -> None:
        """Free both branches."""
        self.inner.drop([branch for row in rows for branch in self._branches(row)])

    def _branches(self, row: int) -> list[int]:
        return [row, self._twins[row]] if row in self._twins else [row]

    def twin(self, row: int) -> int | None:
        """The row of ``inner`` that holds the unconditional branch of a row."""
        return self._twins.get(row)


def _of_rows(found: Scores, logits: Sequence[Tensor]) -> Scores:
    """What belongs to the rows that the loop knows."""
    count = len(logits)
    return Scores(logits, found.hidden and found.hidden[:count], found.calls[:count])
