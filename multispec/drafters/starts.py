"""How the new tail of a window is filled: guesses for places that no pass of the target has seen yet.

============ ============================================================================== =============
``uniform``   really uniform over the symbols allowed there                                  q is uniform
``random``    an id drawn by chance and then taken for given (the release of SJD)            point mass
``copy_left`` the symbol before it; of the same codebook, where a frame has several          point mass
``copy_above`` the symbol one row up (``StreamSpec.row_length``), else one frame back        point mass
``repeat_last`` the last committed symbol, everywhere                                        point mass
============ ============================================================================== =============

Where there is nothing to copy, or it is not allowed, copying is ``uniform`` too. What the grammar
forces is drafted as what it is. A point mass in a draft of kind ``sampled`` is a one-hot row of q:
min(1, p / q) is then p(x), and norm((p - q)+) is p without x, which is the rule for point masses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.drafters.stopping import unsure_among
from multispec.errors import UnknownNameError
from multispec.history import Prefix
from multispec.protocols import Request
from multispec.sampling import Law, Purpose
from multispec.stream import Allowed, Forced, StreamSpec

Start = Literal["uniform", "random", "copy_left", "copy_above", "repeat_last"]
# A symbol from each row of a law, at the given positions.
Draw = Callable[[Law, Sequence[int]], Tensor]


def own_key(request: Request, order: int = 0) -> int:
    """A key for draws of this round: rounds begin at different positions, so no draw is made twice.

    ``order`` below 4096 tells several draws at one position apart.
    """
    return request.round_start * 4096 + order


def permitted(spec: StreamSpec, prefix: Prefix) -> Sequence[int]:
    """The symbols that slot and grammar leave at the place behind ``prefix``; one, where it is forced."""
    left = None if spec.grammar is None else spec.grammar(prefix)
    if isinstance(left, Forced):
        return (left.symbol,)
    if isinstance(left, Allowed):
        return left.symbols
    slot = spec.slots[len(prefix) % len(spec.slots)]
    return range(slot.offset, slot.offset + slot.size)


@dataclass
class Filled:
    """A filled tail: ``tokens``, and the ``law`` that those at ``drawn`` were drawn from."""

    tokens: list[int]
    drawn: list[int] = field(default_factory=list)
    law: Law | None = None

    def q(self, vocab_size: int, device: torch.device) -> Float[Tensor, "D V"]:
        """The law each symbol was drawn from; one-hot for those that were not."""
        ids = torch.tensor(self.tokens, dtype=torch.long, device=device)
        q = torch.zeros(len(ids), vocab_size, dtype=torch.float64, device=device)
        q.scatter_(-1, ids[:, None], 1.0)
        if self.law is not None:
            q[self.drawn] = self.law.probs
        return q


@dataclass
class Tail:
    """Fills places of one stream by one of the ways above.

    Raises:
        UnknownNameError: no such way.
    """

    start: Start
    spec: StreamSpec
    vocab_size: int
    device: torch.device
    _known: dict[Sequence[int], Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_start(self.start)

    def room(self, request: Request) -> int:
        """The nodes of the budget that come before the stream's own end."""
        length, nodes = self.spec.fixed_length, request.budget.nodes
        return nodes if length is None else max(min(nodes, length - request.round_start - 1), 0)

    def options(self, prefix: Prefix, committed: int) -> Sequence[int]:
        """What the place behind ``prefix`` may be filled with: one symbol, or those to draw from."""
        allowed = permitted(self.spec, prefix)
        if len(allowed) == 1:
            return allowed
        found = (prefix[place] for place in self._sources(len(prefix), committed) if place >= 0)
        copied = next((symbol for symbol in found if symbol in allowed), None)
        return allowed if copied is None else (copied,)

    def _sources(self, place: int, committed: int) -> tuple[int, ...]:
        frame = len(self.spec.slots)
        row = self.spec.row_length or frame
        if self.start == "copy_left":
            return (place - frame, place - row)
        if self.start == "copy_above":
            return (place - row, place - frame)
        if self.start == "repeat_last":
            return (place - frame * ((place - committed) // frame + 1),)
        return ()

    def fill(self, request: Request, drafted: Sequence[int], count: int, draw: Draw) -> Filled:
        """``count`` symbols behind ``drafted``; fewer where the budget asks to stop at an unsure law."""
        symbols, open_ = list(drafted), dict[int, Sequence[int]]()
        prefix, first = Prefix(request.history, symbols), len(drafted)
        for place in range(count):
            options = self.options(prefix, request.round_start)
            # Not drawn yet: what looks at it, a grammar or a copy, sees a stand-in.
            symbols.append(options[0])
            if len(options) > 1:
                open_[place] = options
                if self.start != "random" and unsure_among(request.budget, len(options)):
                    break
        return self._drawn(request, Filled(symbols[first:]), open_, request.round_start + first, draw)

    def _drawn(
        self, request: Request, found: Filled, open_: dict[int, Sequence[int]], first: int, draw: Draw
    ) -> Filled:
        if not open_:
            return found
        law = Law(torch.stack([self._scores(options) for options in open_.values()]), greedy=False)
        positions = [first + place for place in open_]
        if self.start == "random":
            x = request.noise.choose(law.probs, positions, Purpose.DRAFT, own_key(request))
        else:
            x = draw(law, positions)
            found.drawn, found.law = list(open_), law
        for place, symbol in zip(open_, x.tolist(), strict=True):
            found.tokens[place] = symbol
        return found

    def _scores(self, options: Sequence[int]) -> Tensor:
        if options not in self._known:
            scores = torch.full((self.vocab_size,), -torch.inf, device=self.device)
            scores[torch.tensor(options, device=self.device)] = 0.0
            self._known[options] = scores
        return self._known[options]


def check_start(start: str) -> None:
    """Know the way to fill a tail.

    Raises:
        UnknownNameError: no such way.
    """
    if start not in get_args(Start):
        raise UnknownNameError("start", start, get_args(Start))
