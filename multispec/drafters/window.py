"""The window that Jacobi drafters slide over a stream: renewed from each pass, filled at its tail.

A pass over a window of drafted symbols gives the target's law behind every one of them. Those behind
the first rejection were computed on a prefix that is partly wrong by now; they are still the best
laws to draft from, and any law is good enough for a draft as long as q says which one it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.drafters.rowwise import EachRow, RowDrafter
from multispec.drafters.starts import Tail, check_start
from multispec.drafters.stopping import looks, unsure
from multispec.errors import UsageError
from multispec.protocols import Budget, Context, DraftSession, Request
from multispec.sampling import Law
from multispec.stream import Draft, Observation, Slot, StreamSpec
from multispec.tree import children


@dataclass(frozen=True)
class Known:
    """What is known of n coming positions: the law there, and what was drafted there last time.

    ``whole`` are laws of the last pass, ``rows`` those of these positions. The first ``m`` of them
    held the symbols ``x``, drawn from the rows of ``q [m, V]``. ``ended`` says that the draft goes no
    further: the last law is an unsure one.
    """

    positions: Sequence[int]
    whole: Law
    rows: slice | Tensor = field(default_factory=lambda: slice(None))
    x: Sequence[int] = ()
    q: Tensor | None = None
    ended: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def law(self) -> Law:
        """The laws of these positions."""
        return Law(self.whole.scores[self.rows], greedy=self.whole.greedy)

    @property
    def p(self) -> Float[Tensor, "n V"]:
        """Their probabilities, which a verifier of laws has computed already."""
        return self.whole.probs[self.rows]


@runtime_checkable
class Redraw(Protocol):
    """Draws a symbol from each of the laws, with noise that no verifier uses.

    Given everything at lower positions, the symbol at a position has to have the law ``known.p``
    there, whatever noise it shares with what was drafted at that position before.
    """

    def __call__(self, request: Request, known: Known, /) -> Int[Tensor, " n"]: ...


def guesses(request: Request) -> bool:
    """True where a draft is a guess of the target's own symbol, so that no q is asked for."""
    return request.coupled or request.pipeline.greedy


def draw(request: Request, known: Known, redraw: Redraw) -> Int[Tensor, " n"]:
    """A symbol per position: the shared noise where the verifier is coupled, else ``redraw``."""
    if guesses(request):
        return request.noise.symbols(known.law, known.positions)
    return redraw(request, known)


def upcoming(draft: Draft, path: tuple[int, ...], step: int = 1) -> list[int]:
    """The nodes below the last accepted one, first child by first child, one for each depth.

    The law after the first speaks of the next round's first position, and so on. Where the line ends,
    that of the root goes on: one of its nodes has the same depth. With parallel slots a round emits and
    foresees a ``step`` where else it is one symbol: the nodes of the last step are not drafted yet.
    """
    if draft.is_chain:
        return list(range(len(path) + step - 1, len(draft) + step - 1))
    below = children(draft.parents)
    line = _line(below, path[-1] if path else -1)
    return line + _line(below, -1)[len(path) + len(line) :]


def _line(below: dict[int, tuple[int, ...]], node: int) -> list[int]:
    line: list[int] = []
    while node in below:
        node = below[node][0]
        line.append(node)
    return line


def _rows(nodes: Sequence[int], shift: int) -> slice | Tensor:
    """Rows of these nodes, as a view where they are neighbours."""
    first, count = nodes[0] + shift, len(nodes)
    if nodes[-1] - nodes[0] == count - 1:
        return slice(first, first + count)
    return torch.tensor(nodes) + shift


def coming(seen: Observation | None, request: Request, count: int) -> Known | None:
    """What the last pass says of the next ``count`` positions at most; None where it says nothing."""
    if seen is None:
        return None
    line = upcoming(seen.draft, seen.path, len(seen.law) - len(seen.draft))
    nodes = _sound(seen.law, line[:count])
    if not nodes:
        return None
    nodes, ended = _sure(seen.law, nodes, request.budget)
    held = [node for node in line[1 : len(nodes) + 1] if node < len(seen.draft)]
    q = seen.draft.q[_rows(held, 0)] if seen.draft.q is not None and held else None
    start = request.round_start
    positions = range(start, start + len(nodes))
    return Known(positions, seen.law, _rows(nodes, 1), [seen.draft.ids[node] for node in held], q, ended)


def _sound(law: Law, nodes: list[int]) -> list[int]:
    """The nodes before the first one behind which nothing can be drawn."""
    invalid = law.invalid_places() if nodes else []
    return next((nodes[:i] for i, node in enumerate(nodes) if node + 1 in invalid), nodes)


def _sure(law: Law, nodes: list[int], budget: Budget) -> tuple[list[int], bool]:
    """The nodes up to the first unsure law, and whether there is one: a property of laws, not of draws."""
    if not looks(budget):
        return nodes, False
    ends = unsure(budget, Law(law.scores[_rows(nodes, 1)], greedy=law.greedy))
    length = ends.index(True) + 1 if True in ends else 0
    return (nodes[:length], True) if length else (nodes, False)


@dataclass
class Front:
    """The symbols of a window, and the laws ``q [D, V]`` they were drawn from unless they are guesses."""

    tokens: list[int]
    q: Tensor | None


def renewed(request: Request, known: Known | None, count: int, redraw: Redraw, tail: Tail) -> Front:
    """``count`` symbols: drawn anew where a law is known, filled behind that."""
    tokens: list[int] = [] if known is None else draw(request, known, redraw).tolist()
    ended = known is not None and known.ended
    rest = tail.fill(
        request,
        tokens,
        0 if ended else count - len(tokens),
        lambda law, positions: draw(request, Known(positions, law), redraw),
    )
    if guesses(request):
        return Front(tokens + rest.tokens, None)
    q = [] if known is None else [known.p]
    if rest.tokens:
        q.append(rest.q(tail.vocab_size, tail.device))
    return Front(tokens + rest.tokens, torch.cat(q) if q else None)


@dataclass
class Window:
    """The window of one row: a chain that is renewed in every round."""

    redraw: Redraw
    tail: Tail
    seen: Observation | None = None

    def propose(self, request: Request) -> Draft:
        """Draw anew from the laws of the last pass, and fill the tail."""
        count = self.tail.room(request)
        if not count:
            return Draft.empty()
        front = renewed(request, coming(self.seen, request, count), count, self.redraw, self.tail)
        return Draft.chain(front.tokens, front.q)

    def observe(self, observation: Observation) -> None:
        """Keep the laws of this pass, and what they were computed on."""
        self.seen = observation


def each_stream(context: Context, make: Callable[[StreamSpec], RowDrafter]) -> DraftSession:
    """A session of one drafter per row, made from what that row's stream holds."""
    plain = StreamSpec(slots=(Slot(size=context.vocab_size),))
    prompts = {
        row: replace(prompt, spec=context.specs.get(row, prompt.spec or plain))
        for row, prompt in context.prompts.items()
    }
    return EachRow(replace(context, prompts=prompts), lambda prompt: make(prompt.spec or plain))


def check_window(name: str, num_draft_tokens: int, start: str) -> None:
    """Settings that all windows share.

    Raises:
        UsageError: nothing to draft, or no such way to fill the tail.
    """
    if num_draft_tokens < 1:
        raise UsageError(
            f"{name} needs a window of at least one symbol: got num_draft_tokens={num_draft_tokens}. "
            "Windows of 8 to 128 pay on pictures; drafter=None decodes plainly."
        )
    check_start(start)
