"""Token recycling: the target's own next-best symbols, kept from earlier passes, grow a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from multispec.drafters.lasting import LastingRows
from multispec.drafters.references import require_at_least
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation, Prompt, Slot, StreamSpec
from multispec.structures import PrefixTree, calibrated

# (slot of the successor, symbol before it) -> its likeliest successors, best first
Successors = Mapping[tuple[int, int], Sequence[int]]
# How often the symbol at each rank of a remembered row is the next one: falls off like the shares that the
# authors plot, and only its order of products matters.
_RANKS = (0.45, 0.15, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015)


@dataclass(frozen=True)
class TokenRecycling:
    """Grow a tree from the symbols that the target itself ranked highest behind each symbol, last time.

    Luo et al. (2024), "Turning Trash into Treasure: Accelerating Inference of Large Language Models with
    Token Recycling", section 3: row M[x] of the adjacency matrix holds the ``width`` best symbols of the
    target's latest logits behind x. A static tree is filled level by level, its child of rank r from
    M[symbol of the parent][r]; then all logits of the pass, accepted or not, renew M. Where a symbol stands
    several times in one pass, the accepted place has the last word.

    ``shape`` are the parents of the tree, siblings in the order of their rank, and its size is the number of
    draft tokens; the authors' has 80 nodes, and (-1, 0, 1) is for models that score chains only. Without one,
    the ``num_draft_tokens`` best paths by a product of shares per rank are taken. Rows of M are kept per
    slot, and for parallel slots they tell what followed in the same slot; those take chains of rank 0.

    With ``remember=True`` a session starts with the matrix of the rows that are done (the authors' warm
    start); else each row begins with an empty one, and equal calls draft equally.

    Raises:
        UsageError: nothing to draft, no successors, or a shape that is no tree.

    >>> TokenRecycling().num_draft_tokens
    24
    """

    name: ClassVar[str] = "token_recycling"
    paper: ClassVar[str] = "Luo et al. 2024, arXiv 2408.08696"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 24
    width: int = 8
    shape: tuple[int, ...] | None = None
    remember: bool = False
    # (symbols, slots) of a stream -> its matrix: another model's ids are no use to this one.
    _memory: dict[tuple[int, int], Successors] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, width=1)
        parents = self.shape
        if parents is not None and any(not -1 <= p < node for node, p in enumerate(parents)):
            raise UsageError(
                f"token_recycling needs a shape whose parents come before their children: got {parents}. "
                "multispec.structures makes shapes, such as calibrated(accuracies, nodes)."
            )
        if parents is not None:
            object.__setattr__(self, "num_draft_tokens", len(parents))
            require_at_least(self.name, self, num_draft_tokens=1)

    def begin(self, context: Context) -> DraftSession:
        """A matrix per row, on top of what is remembered."""
        plain = StreamSpec(slots=(Slot(size=context.vocab_size),))
        shape = self.shape if self.shape is not None else _shape(self.width, self.num_draft_tokens)
        ranks = _ranks(shape)
        rows: dict[int, _Matrix] = {}
        for number, prompt in context.prompts.items():
            spec = context.specs.get(number, plain)
            stream = context.vocab_size, len(spec.slots)
            before = self._memory.get(stream, {})
            rows[number] = _Matrix(spec, stream, shape, ranks, self.width, before)
            rows[number].begin(prompt)
        return LastingRows(rows, self._learn)

    def _learn(self, row: _Matrix) -> None:
        if self.remember:
            # A new mapping: sessions that still run keep the one they began with.
            known = self._memory.get(row.stream, {})
            self._memory[row.stream] = {**known, **row.own}


def _shape(width: int, nodes: int) -> tuple[int, ...]:
    ranks = [_RANKS[min(r, len(_RANKS) - 1)] / max(r - len(_RANKS) + 2, 1) for r in range(width)]
    return calibrated([ranks] * nodes, nodes)


def _ranks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The place of every node among its siblings."""
    seen: dict[int, int] = {}
    found: list[int] = []
    for parent in shape:
        found.append(seen.get(parent, 0))
        seen[parent] = found[-1] + 1
    return tuple(found)


@dataclass
class _Matrix:
    spec: StreamSpec
    stream: tuple[int, int]
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    width: int
    before: Successors
    own: dict[tuple[int, int], Sequence[int]] = field(default_factory=dict)
    # The committed symbols that the first rows of logits stand behind; none behind a foreign prompt.
    roots: list[int] = field(default_factory=list)

    def begin(self, prompt: Prompt) -> None:
        """Know what the first logits stand behind."""
        if self.spec.prompt_size is None:
            self.roots = prompt.ids[-self.spec.step :].tolist()

    def propose(self, request: Request) -> Draft:
        """Fill the tree from the matrix; a chain for parallel slots."""
        if len(self.roots) < self.spec.step:
            return Draft.empty()
        if self.spec.step > 1:
            return Draft.chain(self._chain(request))
        tree = PrefixTree(request.budget.nodes)
        # Nodes of the shape, as nodes of the tree: what M has no row for is left out, and all below it.
        nodes, rows = {-1: -1}, {-1: self._row(request.round_start, self.roots[-1])}
        depth = {-1: 0}
        for n, parent in enumerate(self.shape[: request.budget.nodes]):
            row, rank = rows.get(parent, ()), self.ranks[n]
            if rank < len(row) and (node := tree.grow(nodes[parent], row[rank])) is not None:
                nodes[n], depth[n] = node, depth[parent] + 1
                rows[n] = self._row(request.round_start + depth[n], row[rank])
        return tree.draft()

    def _row(self, position: int, x: int) -> Sequence[int]:
        """What followed ``x`` at such a position, best first."""
        key = position % len(self.spec.slots), x
        return self.own.get(key) or self.before.get(key, ())

    def _chain(self, request: Request) -> list[int]:
        line = list(self.roots)
        for place in range(request.budget.nodes):
            row = self._row(request.round_start + place, line[place])
            if not row:
                break
            line.append(row[0])
        return line[len(self.roots) :]

    def observe(self, observation: Observation) -> None:
        """Renew the row of every symbol that has been looked behind."""
        before = [*self.roots, *observation.draft.ids]
        self.roots = [*self.roots, *observation.emitted][-self.spec.step :]
        logits = observation.logits
        if len(before) != len(logits):
            return  # behind a foreign prompt: nobody knows what stood before the first symbols
        best = logits.topk(min(self.width, logits.shape[-1])).indices.tolist()
        slots, depth = len(self.spec.slots), self._depths(observation, len(before))
        path = [*range(self.spec.step), *(node + self.spec.step for node in observation.path)]
        for place in (*range(len(before)), *path):
            self.own[(observation.start + depth[place]) % slots, before[place]] = best[place]

    @staticmethod
    def _depths(observation: Observation, count: int) -> Sequence[int]:
        """How far behind the start of the round the symbol is that each row of logits speaks of."""
        if observation.draft.is_chain:
            return range(count)
        found = [0]
        for parent in observation.draft.parents:
            found.append(found[parent + 1] + 1)
        return found
