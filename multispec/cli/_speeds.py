"""What ways of running the embedded text model cost on this machine, as ratios taken in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

WIDTHS = (1, 4, 8)
_CONTEXT, _TURNS = 64, 15


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A way against another: medians of ratios of seconds for passes of 1, 4 and 8 symbols."""

    name: str
    against: str
    ratios: tuple[float, ...]


# Each way: its name, what ``load`` is told, and the way that it is compared with.
_WAYS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ('fast="off"', {"fast": "off"}, ""),
    ("fused, weights as they are", {}, 'fast="off"'),
    ('fast="auto"', {"fast": "auto"}, 'fast="off"'),
    ('fast="bfloat16"', {"fast": "bfloat16"}, 'fast="off"'),
    ('fast="int8"', {"fast": "int8"}, 'fast="off"'),
    ("deterministic", {"fast": "auto", "deterministic": True}, 'fast="auto"'),
    ('dtype="bfloat16"', {"dtype": "bfloat16"}, 'fast="off"'),
    ("deterministic in bfloat16", {"dtype": "bfloat16", "deterministic": True}, 'dtype="bfloat16"'),
)


def speeds(turns: int = _TURNS) -> Iterator[Speed]:
    """Take turns with all ways, and give the ratio of each; those that this machine lacks are left out."""
    import torch

    from multispec.errors import UnsupportedError
    from multispec.loading import assets, load
    from multispec.targets.loading import load_model

    made: dict[str, Any] = {}
    for name, settings, _ in _WAYS:
        try:
            if name.startswith("fused"):
                made[name] = load(model=load_model(assets() / "text" / "target"))
            else:
                made[name] = load("text", **settings)
        except UnsupportedError:
            continue
    with torch.inference_mode():
        passes = {name: _passes(generator.target) for name, generator in made.items()}
        taken = [_turn(passes) for _ in range(turns + 1)][1:]
    for name, _, against in _WAYS:
        if name in made and against in made:
            ratios = tuple(
                median(turn[name][n] / turn[against][n] for turn in taken) for n in range(len(WIDTHS))
            )
            yield Speed(name=name, against=against, ratios=ratios)


def _passes(target: Any) -> list[Callable[[], object]]:
    """A pass of each width behind the same prompt; nothing is kept of it."""
    import torch

    from multispec.stream import Draft, Prompt

    size = target.spec.vocab_size
    prompt = Prompt(ids=torch.arange(3, 3 + _CONTEXT) % size)
    session = target.begin([prompt], [_CONTEXT + 2 * max(WIDTHS)], max(WIDTHS))
    session.prefill()
    drafts = [Draft.chain([(7 * n + 5) % size for n in range(width - 1)]) for width in WIDTHS]

    def run(draft: Draft) -> Callable[[], object]:
        return lambda: session.score([0], [5 % size], [draft])

    return [run(draft) for draft in drafts]


def _turn(passes: dict[str, list[Callable[[], object]]]) -> dict[str, list[float]]:
    return {name: [_seconds(run) for run in runs] for name, runs in passes.items()}


def _seconds(run: Callable[[], object]) -> float:
    """Of this thread where it is the only one, since others may share its core; else of the clock."""
    import torch

    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return max(clock() - start, 1e-9)
