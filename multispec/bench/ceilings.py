"""How near to the machine's limits we are: reading the weights once, and what a longer pass costs."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from multispec.branches import begin
from multispec.errors import UnsupportedError
from multispec.policies.costs import Running
from multispec.protocols import Target
from multispec.stream import Prompt

_REPEATS = 15
_NODES = 8


@dataclass(frozen=True)
class Ceilings:
    """What a pass takes and what it would take at least, in milliseconds.

    ``copy_rate`` are the bytes a second that a copy of as many bytes as the weights have reads and writes;
    ``limit_ms`` is the time to read the weights at that rate. Where the weights sit in the processor's
    cache, the copy does too. ``eight`` is the time of a pass over 8 symbols as a multiple of one over 1.
    """

    weight_bytes: int
    copy_rate: float
    limit_ms: float
    pass_ms: float
    eight: float

    @property
    def near(self) -> float:
        """The limit as a share of what a pass takes."""
        return self.limit_ms / self.pass_ms

    def to_dict(self) -> dict[str, Any]:
        """Every figure."""
        return asdict(self) | {"near": self.near}


@runtime_checkable
class HoldsModel(Protocol):
    """A target whose weights can be counted."""

    model: Any


def ceilings(target: Target, prompt: Prompt) -> Ceilings:
    """Measure a target's passes of one row, and the machine's copy rate at the size of its weights.

    Raises:
        UnsupportedError: a target that does not show its model.
    """
    if not isinstance(target, HoldsModel):
        raise UnsupportedError(f"{type(target).__name__} does not show the weights that a pass reads.")
    size = weight_bytes(target.model)
    rate = copy_rate(size)
    one, eight = passes(target, prompt)
    return Ceilings(size, rate, 1000 * size / rate, 1000 * one, eight / one)


def weight_bytes(model: Any) -> int:
    """What a pass reads: every parameter once, but no table that is only looked into."""
    tables = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    read = tables - ({id(head.weight)} if head is not None else set())
    unique = {id(one): one for one in model.parameters()}
    return sum(one.numel() * one.element_size() for key, one in unique.items() if key not in read)


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, of copies of ``size`` bytes; the median."""
    source = torch.ones(max(size // 4, 1 << 16))
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        target.copy_(source)
        found.append(moved / max(time.perf_counter() - start, 1e-9))
    return statistics.median(found)


def passes(target: Target, prompt: Prompt) -> tuple[float, float]:
    """Median seconds of a pass over 1 symbol and over 8, in turn."""
    room = len(prompt.ids) + 2 * (_REPEATS + 1) + _NODES
    with torch.inference_mode():
        running = Running(begin(target, [prompt], [room], _NODES), 1)
        for nodes in (0, _NODES - 1):  # the first passes are slower
            running.round(nodes)
        pairs = [(running.round(0), running.round(_NODES - 1)) for _ in range(_REPEATS)]
    return statistics.median(one for one, _ in pairs), statistics.median(eight for _, eight in pairs)
