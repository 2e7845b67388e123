"""Counts that always know their largest ones, for contexts that are seen thousands of times."""

from __future__ import annotations


class Ranked:
    """How often each symbol came, with the ``keep`` most frequent in order; of equals the first to get there.

    Adding takes a constant number of steps, however many symbols there are.

    >>> counts = Ranked(keep=2)
    >>> for x in (5, 7, 7, 6):
    ...     counts.add(x)
    >>> counts.best, counts.counts[7], counts.total
    ([7, 5], 2, 4)
    """

    __slots__ = ("best", "counts", "keep", "total")

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.counts: dict[int, int] = {}
        self.best: list[int] = []
        self.total = 0

    def add(self, x: int, weight: int = 1) -> None:
        """One more x, or ``weight`` of them."""
        counts, best = self.counts, self.best
        count = counts[x] = counts.get(x, 0) + weight
        self.total += weight
        if x in best:
            place = best.index(x)
        elif len(best) < self.keep:
            place = len(best)
            best.append(x)
        elif counts[best[-1]] < count:
            place = len(best) - 1
            best[-1] = x
        else:
            return
        while place and counts[best[place - 1]] < count:
            best[place - 1], best[place] = x, best[place - 1]
            place -= 1
