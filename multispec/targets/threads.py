"""How many threads a model runs best with on this machine, by measurement: small models rarely want all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from multispec.errors import UsageError
from multispec.protocols import Target
from multispec.stream import Draft, Prompt

_CONTEXT, _DRAFTED, _TURNS = 32, 7, 5
# A count has to be so much better than a smaller one to be worth more cores.
_WORTH = 0.97


def candidates(cores: int | None = None) -> list[int]:
    """Counts that are tried: powers of two, and all cores.

    >>> candidates(6)
    [1, 2, 4, 6]
    """
    most = cores or os.cpu_count() or 1
    return sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})


def set_threads(threads: int | str, target: Target) -> int:
    """Let torch use so many threads from now on, for all models of this program; "auto" finds the best.

    Raises:
        UsageError: neither "auto" nor a count of 1 or more.
    """
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads != "auto" and not (whole and int(threads) >= 1):
        raise UsageError(f'threads is "auto" or a whole number, 1 or more: got {threads!r}.')
    chosen = fastest(target) if threads == "auto" else int(threads)
    torch.set_num_threads(chosen)
    return chosen


def fastest(
    target: Target, counts: Sequence[int] | None = None, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The count with the least time for a plain symbol and a draft behind a short prompt.

    Counts take turns; a larger one has to be better by 3 %. A target that is not run on a processor, or that
    takes more than ids, keeps the count that is set.
    """
    before, tried = torch.get_num_threads(), list(counts or candidates())
    if target.device.type != "cpu" or len(tried) < 2:
        return before
    taken: dict[int, list[float]] = {count: [] for count in tried}
    try:
        run = _round(target, 2 * (_TURNS + 1) * len(tried))
        for turn in range(_TURNS + 1):
            for count in tried:
                torch.set_num_threads(count)
                start = clock()
                run()
                seconds = clock() - start
                if turn:  # the first one is slower for all
                    taken[count].append(seconds)
    except Exception:  # whatever a trial raises means: this cannot be tried
        return before
    finally:
        torch.set_num_threads(before)
    best = tried[0]
    for count in tried[1:]:
        if median(taken[count]) < _WORTH * median(taken[best]):
            best = count
    return best


@torch.inference_mode()
def _round(target: Target, symbols: int) -> Callable[[], None]:
    """A plain round and one with a draft behind a short prompt, for up to so many symbols in all."""
    size, step = target.spec.vocab_size, target.spec.step
    prompt = Prompt(ids=torch.arange(step * _CONTEXT) % size)
    session = target.begin([prompt], [step * (_CONTEXT + symbols)], step * _DRAFTED)
    session.prefill()
    roots, draft = [1 % size] * step, Draft.chain([n % size for n in range(step * _DRAFTED)])

    @torch.inference_mode()
    def run() -> None:
        for one in (Draft.empty(), draft):
            session.score([0], roots, [one])
            session.commit([0], [()])

    return run
