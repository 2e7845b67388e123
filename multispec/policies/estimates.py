"""What is learned on the way, and fades: a line through measured times, and acceptance by position."""

from __future__ import annotations

from typing import NamedTuple

# A measurement counts at most so many times what was expected, and at least the inverse: clocks jump.
_OUTLIER = 4.0
# The slope is believed as much as observations that lie this far apart tell.
_RIDGE = 4.0


class Line(NamedTuple):
    """Seconds as ``level + slope * (x - center)``, of observations whose weights fade.

    >>> line = Line.begun(share=0.1).seen(0, 1.0, 0.9).seen(8, 1.8, 0.9).seen(4, 1.4, 0.9)
    >>> round(line.at(2), 1)
    1.2
    """

    share: float
    weight: float = 0.0
    center: float = 0.0
    level: float = 0.0
    slope: float = 0.0
    spread: float = 0.0
    joint: float = 0.0

    @staticmethod
    def begun(share: float) -> Line:
        """Nothing seen; the first time is taken to grow by ``share`` of that at 0 for every x."""
        return Line(share)

    @property
    def known(self) -> bool:
        """Whether anything was seen."""
        return self.weight > 0

    def at(self, x: float) -> float:
        """Expected seconds; above 0."""
        return max(self.level + self.slope * (x - self.center), 1e-9)

    def doubted(self, most: float) -> Line:
        """The same line at the weight of ``most`` observations at most: what comes next counts for more."""
        part = min(most / self.weight, 1.0) if self.known else 1.0
        return self._replace(weight=part * self.weight, spread=part * self.spread, joint=part * self.joint)

    def seen(self, x: float, seconds: float, keep: float) -> Line:
        """One observation more, the older ones at ``keep`` times their weight."""
        if not seconds > 0:
            return self  # a clock that was set back
        if not self.known:
            return Line(self.share, 1.0, x, seconds, self.share * seconds / (1 + self.share * x))
        expected = self.at(x)
        y = min(max(seconds, expected / _OUTLIER), expected * _OUTLIER)
        weight = keep * self.weight + 1
        off, above = x - self.center, y - self.level
        center, level = self.center + off / weight, self.level + above / weight
        spread = keep * self.spread + off * (x - center)
        joint = keep * self.joint + off * (y - level)
        # Where all observations lie at one x, the slope known before stays in proportion to the level.
        slope = (joint + _RIDGE * self.slope * level / self.level) / (spread + _RIDGE)
        return Line(self.share, weight, center, level, max(slope, 0.0), spread, joint)


class Acceptance(NamedTuple):
    """How often position j of a draft was looked at and accepted; the last place stands for all behind.

    >>> rates = Acceptance.begun(0.5, 3).counted(4, 4, 1.0).counted(4, 0, 1.0)
    >>> [round(rate, 2) for rate in rates.rates]
    [0.5, 0.75, 0.83]
    """

    seen: tuple[float, ...]
    kept: tuple[float, ...]

    @staticmethod
    def begun(acceptance: float, places: int) -> Acceptance:
        """What is believed before anything is known, at the weight of one draft."""
        return Acceptance((1.0,) * places, (acceptance,) * places)

    @property
    def rates(self) -> tuple[float, ...]:
        """The chance that position j is accepted where those before it were."""
        return tuple(k / n for n, k in zip(self.seen, self.kept, strict=True))

    def doubted(self, most: float) -> Acceptance:
        """The same rates at the weight of ``most`` drafts at most."""
        parts = [min(most / n, 1.0) for n in self.seen]
        seen = tuple(part * n for part, n in zip(parts, self.seen, strict=True))
        return Acceptance(seen, tuple(part * k for part, k in zip(parts, self.kept, strict=True)))

    def counted(self, asked: int, kept: int, keep: float) -> Acceptance:
        """One draft more: of ``asked`` symbols the first ``kept`` were accepted; no draft is none."""
        last = len(self.seen) - 1
        seen, good = [keep * n for n in self.seen], [keep * n for n in self.kept]
        for place in range(min(asked, kept + 1)):
            seen[min(place, last)] += 1
            good[min(place, last)] += place < kept
        # Fading leaves the belief: at least the weight of one draft, at the rates that it had.
        for place, n in enumerate(seen):
            if n < 1:
                seen[place], good[place] = 1.0, good[place] / n
        return Acceptance(tuple(seen), tuple(good))
