"""The real loop over rows, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from multispec.loop import rounds
from multispec.policies import FixedLength
from multispec.report import Clock
from multispec.row import Row, RowSettings
from multispec.sampling import Sampling
from multispec.stream import Generation, Prompt
from multispec.testing.models import FakeModel, require
from multispec.verifiers import Coupled


def row(prompt: Sequence[int] = (1,), **changes: Any) -> RowSettings:
    """Settings of one row: coupled, temperature 1, four symbols per draft, eight in all, unless changed."""
    settings: dict[str, Any] = {
        "sampling": Sampling(),
        "verifier": Coupled(),
        "policy": FixedLength(),
        "max_new_tokens": 8,
    }
    return RowSettings(prompt=Prompt(ids=torch.tensor(prompt)), **(settings | changes))


def play(target: Any, *settings: RowSettings) -> list[Generation]:
    """Generate these rows together through the real loop.

    Raises:
        AssertionError: a fake target's cache was left holding anything but what was emitted.
    """
    rows = [Row(number, asked, target.spec) for number, asked in enumerate(settings)]
    clock = Clock()
    for _ in rounds(target, rows, clock):
        pass
    if isinstance(target, FakeModel):
        for one in rows:
            kept, ids = target.sessions[-1].kept.get(one.number), one.history.ids[: -one.step]
            require(kept == ids, f"row {one.number} emitted {ids} and held {kept}")
    return [one.result(clock, lambda _: None) for one in rows]
