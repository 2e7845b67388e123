"""Counts that know their largest ones, against a sort of all of them."""

from __future__ import annotations

import random
from collections import Counter

from multispec.drafters.ranked import Ranked


def test_the_best_are_those_of_a_sort() -> None:
    """After every addition the counts of the best are the largest there are, in order."""
    rng, counts, plain = random.Random(3), Ranked(keep=4), Counter[int]()
    for _ in range(600):
        x, weight = min(rng.randrange(40), rng.randrange(40)), rng.randrange(1, 4)
        counts.add(x, weight)
        plain[x] += weight
        best = [plain[one] for one in counts.best]
        assert best == sorted(plain.values(), reverse=True)[:4]
        assert len({*counts.best}) == len(counts.best)
    assert counts.counts == plain and counts.total == plain.total()


def test_of_equals_the_first_to_get_there_stays() -> None:
    """A symbol moves up when it is ahead, not when it draws level."""
    counts = Ranked(keep=2)
    for x in (5, 6, 7, 6, 5):
        counts.add(x)
    assert counts.best == [6, 5]
