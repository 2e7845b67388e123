"""What passes of a model cost on this machine: measured once, in less than two seconds, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from multispec.branches import begin
from multispec.errors import MultispecError, UsageError
from multispec.neighbours import cache_folder
from multispec.policies.costs import CostTable, Running
from multispec.protocols import Target
from multispec.stream import Prompt

_LENGTHS = (0, 4, 8, 16, 32)
_ROWS = (1, 4)
_REPEATS = 3


class KeptCosts:
    """Cost tables of one target: from memory, else from the cache folder, else measured on a prompt.

    ``name`` tells models apart that look alike: a folder or hub id, and how it is held.

    A table of another machine, number of threads, version or model has another name, and one that cannot be
    read is made anew. Where nothing can be measured (parallel slots) there is no table.
    """

    def __init__(self, target: Target, name: str, *, seconds: float = 1.5) -> None:
        self._target, self._seconds = target, seconds
        self._key = _key(target, name)
        self._known: CostTable | None = None

    @property
    def file(self) -> Path:
        """Where the table lies."""
        return cache_folder() / f"costs-{hashlib.sha256(self._key.encode()).hexdigest()[:32]}.json"

    def __call__(self, prompt: Prompt) -> CostTable | None:
        """The table of this target; measured on copies of ``prompt`` where there is none yet."""
        if self._known is None and self._target.spec.step == 1:
            self._known = self._read() or self._measured(prompt)
        return self._known

    def _read(self) -> CostTable | None:
        try:
            found = json.loads(self.file.read_text())
            if found["key"] != self._key:
                return None
            return CostTable(tuple(found["rows"]), tuple(tuple(row) for row in found["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, UsageError):
            return None

    def _measured(self, prompt: Prompt) -> CostTable | None:
        try:
            table = sketched(self._target, prompt, self._seconds)
        except MultispecError:
            return None  # what cannot be run will say so where it is asked for
        kept = {"key": self._key, "rows": table.rows, "seconds": table.seconds}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(kept))
            part.replace(self.file)
        except OSError:
            pass  # a machine without a cache folder measures again
        return table


def sketched(
    target: Target, prompt: Prompt, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> CostTable:
    """Round times of 1 and 4 rows with 0, 4, 8, 16 and 32 symbols, in proportion between them.

    What does not fit into ``seconds`` is taken to cost in proportion to what was measured.
    """
    end = clock() + seconds
    with torch.inference_mode():
        measured = [_row(target, prompt, rows, lambda: clock() < end) for rows in _ROWS]
    first = _whole(measured[0], [1.0 + 0.02 * n for n in _LENGTHS])
    others = [_whole(row, first) for row in measured[1:] if row]
    kept = (first, *others)
    return CostTable(_ROWS[: len(kept)], tuple(_between(row) for row in kept))


def _row(target: Target, prompt: Prompt, rows: int, goes_on: Callable[[], bool]) -> list[float]:
    """The least time for each length, as far as time allows; one is measured of the first row at least."""
    if rows > 1 and not goes_on():
        return []
    room = len(prompt.ids) + (_REPEATS + 1) * (len(_LENGTHS) + 1) + max(_LENGTHS)
    if target.context_length is not None:
        room = min(room, target.context_length)
    running = Running(begin(target, [prompt] * rows, [room] * rows, max(_LENGTHS)), rows)
    running.round(0)  # the first round after the prompt is slower than any other
    found: list[float] = []
    for nodes in _LENGTHS:
        if found and not goes_on():
            break
        found.append(min(running.round(nodes) for _ in range(_REPEATS)))
    return found


def _whole(found: Sequence[float], shape: Sequence[float]) -> list[float]:
    """Times that were not measured grow as ``shape`` does; none is less than that of a shorter draft."""
    last = len(found) - 1
    rest = [found[last] * one / shape[last] for one in shape[last + 1 :]]
    times = [*found, *rest]
    return [max(times[: place + 1]) for place in range(len(times))]


def _between(times: Sequence[float]) -> tuple[float, ...]:
    """A time for every length up to the last."""
    found = [times[0]]
    for low, high, before, after in zip(_LENGTHS, _LENGTHS[1:], times, times[1:], strict=False):
        found += [before + (after - before) * n / (high - low) for n in range(1, high - low + 1)]
    return tuple(found)


def _key(target: Target, name: str) -> str:
    spec = target.spec
    return json.dumps(
        {
            "model": [name, type(target).__name__, target.capabilities.way, target.capabilities.weights],
            "shape": [spec.vocab_size, target.context_length],
            "device": _device(target.device),
            "threads": torch.get_num_threads(),
            "machine": [platform.node(), platform.machine(), platform.processor()],
            "versions": [version("multispec"), str(torch.__version__)],
        },
        sort_keys=True,
    )


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
