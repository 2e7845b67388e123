"""Counters and timings of a generation, by the definitions the field agrees on.

* acceptance rate = accepted / drafted (the bonus symbol counts in neither);
* mean acceptance length = symbols emitted per verification, the bonus included;
* step compression = symbols emitted per target call, as papers on images count it;
* the rate at position i is *unconditional*: of the drafts that reached position i, the share whose
  symbol i was accepted. Positions that were never drafted are not rejections.

Symbols past a stop are trimmed before anything is counted. Forced symbols (the grammar left no
choice) count as emitted and as forced, never as drafted or accepted.

Where K slots are parallel, a plain call emits a step of K symbols. Symbols are counted one by one there
too, but lengths are in steps: mean acceptance length and step compression are steps per verification
and per call (1 for plain decoding), and a position is a step, accepted when all its slots are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch.autograd import _profiler_enabled as profiling  # type: ignore[attr-defined]
from torch.profiler import record_function

Phase = Literal["prefill", "draft", "verify", "overhead"]


class Timer:
    """Adds the time of a block to a phase of a clock; a class, since it runs several times a round."""

    def __init__(self, clock: Clock, phase: str) -> None:
        self._clock, self._phase = clock, phase
        self._start = 0.0
        self._named: record_function | None = None

    def __enter__(self) -> None:
        # A profiler that is watching finds the phases of a round by these names.
        self._named = record_function(f"multispec: {self._phase}") if profiling() else None
        if self._named is not None:
            self._named.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = getattr(self._clock, self._phase) + time.perf_counter() - self._start
        setattr(self._clock, self._phase, spent)
        if self._named is not None:
            self._named.__exit__(None, None, None)


class Pace(NamedTuple):
    """What the last round of a batch took: all ``seconds``, those for drafts, nodes of the widest draft."""

    seconds: float = 0.0
    draft_seconds: float = 0.0
    widest: int = 0


NO_PACE = Pace()


@dataclass
class Clock:
    """Seconds per phase; what no phase claims is overhead."""

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    total: float = 0.0
    _lap: tuple[float, float] = field(default=(0.0, 0.0), init=False, repr=False)

    @property
    def overhead(self) -> float:
        """Own time: everything outside the models' forward passes and the drafting."""
        return max(self.total - self.prefill - self.draft - self.verify, 0.0)

    def measure(self, phase: Literal["prefill", "draft", "verify", "total"]) -> Timer:
        """``with clock.measure(phase):`` adds the time the block takes to ``phase``."""
        return Timer(self, phase)

    def lap(self, widest: int) -> Pace:
        """The time since the last call, prompts left out; ``widest`` is the largest draft of that round."""
        rounds, drafts = self.total - self.prefill, self.draft
        before, self._lap = self._lap, (rounds, drafts)
        return Pace(rounds - before[0], drafts - before[1], widest)

    def snapshot(self) -> Clock:
        """A copy that no longer runs."""
        return Clock(self.prefill, self.draft, self.verify, self.total)

    def since(self, start: Clock) -> Clock:
        """The time that went by since ``start`` was taken."""
        return Clock(
            self.prefill - start.prefill,
            self.draft - start.draft,
            self.verify - start.verify,
            self.total - start.total,
        )

    def to_dict(self) -> dict[str, float]:
        """Seconds by phase: prefill, draft, verify, overhead, total."""
        names = ("prefill", "draft", "verify", "overhead", "total")
        return {name: float(getattr(self, name)) for name in names}


@dataclass
class Report:
    """What one row cost and gained; prints as a table.

    ``seconds`` of a row in a batch are those of the whole batch while the row was in it; before that it
    ``waited`` so many seconds for its place. ``step`` are the
    symbols that a plain call emits: K for parallel slots, else 1. ``why`` tells what ``policy="auto"`` chose
    when, and what it expected of the other ways.
    """

    new_tokens: int = 0
    target_calls: int = 0
    draft_calls: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    forced: int = 0
    drafter_failures: int = 0
    variation_spent: float = 0.0
    step: int = 1
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    histogram: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    waited: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft symbols per drafted symbol; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Symbols (steps) emitted per verification, the bonus included; 0 before the first."""
        return self.new_tokens / self.step / self.rounds if self.rounds else 0.0

    @property
    def step_compression(self) -> float:
        """Symbols (steps) per target call, the prompt's own included: 1 for plain; 0 before the first."""
        return self.new_tokens / self.step / self.target_calls if self.target_calls else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """Unconditional acceptance rate of draft position 1, 2, ... among drafts that reached it."""
        pairs = zip(self.accepted_at, self.drafted_at, strict=True)
        return [accepted / drafted if drafted else 0.0 for accepted, drafted in pairs]

    @property
    def tokens_per_second(self) -> float:
        """Emitted symbols per second of wall time."""
        return self.new_tokens / self.clock.total if self.clock.total > 0 else 0.0

    def count_round(
        self,
        drafted: Sequence[int],
        accepted: Collection[int],
        emitted: int,
        spent: Sequence[float] = (),
        whole: Collection[int] | None = None,
    ) -> None:
        """Add one verification: depths drafted and accepted, symbols emitted, variation spent on each.

        With parallel slots a depth comes once for each symbol, and ``whole`` are those with all slots
        accepted.
        """
        self.rounds += 1
        self.new_tokens += emitted
        self.drafted += len(drafted)
        self.accepted += len(accepted)
        self.variation_spent += sum(spent)
        self.histogram[len(accepted)] = self.histogram.get(len(accepted), 0) + 1
        for depth in set(drafted):
            self._count_position(depth, depth in (accepted if whole is None else whole))

    def _count_position(self, depth: int, accepted: bool) -> None:
        missing = depth - len(self.drafted_at)
        self.drafted_at.extend([0] * missing)
        self.accepted_at.extend([0] * missing)
        self.drafted_at[depth - 1] += 1
        self.accepted_at[depth - 1] += accepted

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dicts, ready for JSON."""
        return {
            "new_tokens": self.new_tokens,
            "target_calls": self.target_calls,
            "draft_calls": self.draft_calls,
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "forced": self.forced,
            "drafter_failures": self.drafter_failures,
            "mean_acceptance_length": self.mean_acceptance_length,
            "step_compression": self.step_compression,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_by_position": self.acceptance_by_position,
            "histogram": {str(k): v for k, v in sorted(self.histogram.items())},
            "variation_spent": self.variation_spent,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.clock.to_dict(),
            "waited": self.waited,
            "notes": list(self.notes),
            "why": list(self.why),
        }

    def __str__(self) -> str:
        seconds = self.clock.to_dict()
        rows = [
            ("new tokens", f"{self.new_tokens}"),
            ("target calls", f"{self.target_calls}"),
            ("draft calls", f"{self.draft_calls}"),
            ("drafted / accepted", f"{self.drafted} / {self.accepted}"),
            ("acceptance rate", f"{self.acceptance_rate:.3f}"),
            ("mean acceptance length", f"{self.mean_acceptance_length:.2f}"),
            ("step compression", f"{self.step_compression:.2f}"),
            ("total variation spent", f"{self.variation_spent:.4g}"),
            ("tokens per second", f"{self.tokens_per_second:.1f}"),
            *((f"seconds, {name}", f"{value:.3f}") for name, value in seconds.items()),
            *([("seconds, waited", f"{self.waited:.3f}")] if self.waited else []),
            *(("note", note) for note in self.notes),
            *(("why", choice) for choice in self.why),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
