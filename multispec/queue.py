"""Who runs when: prompts that wait, how many run at once, and the memory that their caches may take.

Rows come in between rounds, in the order in which they were asked for, as others leave. They join the
session that is under way where it can take them in; else they wait until it is empty, and begin another.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from multispec.branches import begin, join
from multispec.errors import UsageError
from multispec.protocols import MAX_NODES, CacheBytes, Scores, Target, TargetSession
from multispec.report import Clock
from multispec.row import Row
from multispec.stream import Prompt

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Limits:
    """The most ``rows`` at once, and bytes of ``memory`` for the caches of all of them; None is no limit."""

    rows: int | None = None
    memory: int | None = None

    @staticmethod
    def of(batch_size: Any, max_memory: Any) -> Limits:
        """From what a caller asks; memory in bytes, or as "2GiB".

        Raises:
            UsageError: a width below 1, or what is no amount of memory.

        >>> Limits.of(16, "2GiB")
        Limits(rows=16, memory=2147483648)
        """
        if batch_size is not None and (not _is_whole(batch_size) or int(batch_size) < 1):
            raise UsageError(
                f"batch_size is how many prompts run at once, 1 or more: got {batch_size!r}. None runs all."
            )
        rows = None if batch_size is None else int(batch_size)
        return Limits(rows, None if max_memory is None else _bytes(max_memory))


def _is_whole(asked: Any) -> bool:
    return isinstance(asked, Integral) and not isinstance(asked, bool)


def _bytes(asked: Any) -> int:
    if isinstance(asked, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", asked.lower())
        if found is not None and found[2] in _UNITS:
            asked = int(float(found[1]) * _UNITS[found[2]])
    if not _is_whole(asked) or int(asked) < 1:
        raise UsageError(
            "max_memory is a number of bytes for the caches, 1 or more, or a text such as '2GiB' or "
            f"'500MB': got {asked!r}."
        )
    return int(asked)


NO_LIMITS = Limits()


class Queue:
    """The rows of a generation: those that wait, and the session of those that run.

    Raises:
        UsageError: a row that does not fit into the memory by itself, or a target that knows no sizes.
    """

    def __init__(self, target: Target, rows: Sequence[Row], limits: Limits = NO_LIMITS) -> None:
        self.waiting = deque(rows)
        self._target, self._limits = target, limits
        self._guided = any(row.settings.prompt.guided for row in rows)
        self._session: TargetSession | None = None
        self._bytes: dict[int, int] = {}
        if limits.memory is not None:
            self._bytes = {row.number: cache_bytes(target, row) for row in rows}
            self._refuse(limits.memory)

    def _refuse(self, memory: int) -> None:
        for number, size in self._bytes.items():
            if size > memory:
                raise UsageError(
                    f"The caches of row {number} take {size:,} bytes by themselves, and max_memory is "
                    f"{memory:,}. Ask for fewer max_new_tokens, shorten the prompt, or allow more memory."
                )

    @property
    def session(self) -> TargetSession:
        """Of the rows that run; there is none before the first have come in."""
        if self._session is None:
            raise UsageError("The session of a queue begins with its first rows: admit them before.")
        return self._session

    def next(self, live: Sequence[Row]) -> list[Row]:
        """The rows at the head of the line that have room beside those that run."""
        found: list[Row] = []
        for row in self.waiting:
            if not self._fits([*live, *found, row]):
                break
            found.append(row)
        return found

    def _fits(self, rows: Sequence[Row]) -> bool:
        most, memory = self._limits.rows, self._limits.memory
        if most is not None and len(rows) > most:
            return False
        # Rows share one block of memory, in which each has as much room as the largest.
        return memory is None or len(rows) * max(self._bytes[row.number] for row in rows) <= memory

    def admit(self, rows: Sequence[Row], live: Sequence[Row], clock: Clock) -> dict[int, Tensor]:
        """Run the prompts of these rows: what follows each. Empty where they have to wait for the others."""
        entered = clock.snapshot()
        found = self._run(rows, live)
        if found is None:
            return {}
        for row in rows:
            self.waiting.popleft()
            row.entered = entered
            row.report.waited = entered.total
            row.report.target_calls += 1
        return {row.number: logits for row, logits in zip(rows, found.logits, strict=True)}

    def _run(self, rows: Sequence[Row], live: Sequence[Row]) -> Scores | None:
        numbers = [row.number for row in rows]
        prompts = [row.settings.prompt for row in rows]
        capacity = [capacity_of(row) for row in rows]
        if self._session is not None:
            found = join(self._session, numbers, prompts, capacity)
            if found is not None or live:
                return found
        self._session = begin(self._target, prompts, capacity, MAX_NODES, numbers, self._guided)
        return self._session.prefill()


def capacity_of(row: Row) -> int:
    """Symbols that a row may grow to, its prompt included."""
    return len(row.history) + row.settings.max_new_tokens


def cache_bytes(target: Target, row: Row) -> int:
    """What a row takes in the caches of a target and of its drafter, both branches of guidance together.

    Raises:
        UsageError: a target that does not know.
    """
    if not isinstance(target, CacheBytes):
        raise UsageError(
            f"max_memory needs a target that knows what a row takes, by a method cache_bytes: "
            f"{type(target).__name__} has none. Limit the rows with batch_size."
        )
    drafter = row.settings.drafter
    models = [target, *([drafter] if isinstance(drafter, CacheBytes) else [])]
    prompt, capacity = row.settings.prompt, capacity_of(row)
    return sum(_branches(model, prompt, capacity) for model in models)


def _branches(model: CacheBytes, prompt: Prompt, capacity: int) -> int:
    found = model.cache_bytes(prompt, capacity)
    other = prompt.unconditional if prompt.guided else None
    if other is not None:
        found += model.cache_bytes(other, capacity - len(prompt.ids) + len(other.ids))
    return found
