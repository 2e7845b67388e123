"""Trees of any structure from any drafter's laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.drafters.model_rows import ModelRows
from multispec.drafters.references import takes_trees
from multispec.drafters.stopping import looks, sureness, thin, unsure
from multispec.errors import UnsupportedError
from multispec.processing import Places
from multispec.protocols import MAX_NODES, Context, DraftSession, Request, Target
from multispec.sampling import Law
from multispec.stream import Draft, Observation
from multispec.structures import Ground, PrefixTree, Structure

_Path = tuple[int, ...]


@runtime_checkable
class Logits(Protocol):
    """A drafter's raw logits ``[n, V]`` behind n paths of drafted symbols."""

    def __call__(self, paths: Sequence[_Path], /) -> Float[Tensor, "n V"]: ...


def grown(structure: Structure, request: Request, logits: Logits) -> Draft:
    """The draft of one row.

    Drawn nodes carry q, from noise of the drafter's own. Under a coupled verifier the laws that a structure
    looks at are those of log q + G with the target's own noise, so that its best child is what the target is
    likeliest to emit; where decoding is greedy, those of the scores.
    """
    expand = _Expanding(request, logits)
    guesses = request.coupled or request.pipeline.greedy
    noise = None if guesses else request.noise
    return structure.grow(Ground(expand, request.budget.nodes, request.round_start, noise))


class _Expanding:
    """Laws behind paths; none behind what the budget does not let go on."""

    def __init__(self, request: Request, logits: Logits) -> None:
        self._request, self._logits = request, logits
        self._looks = looks(request.budget)
        self._closed: set[_Path] = set()
        self._known: dict[_Path, Tensor] = {}
        self._worth: dict[_Path, float] = {(): 1.0}
        self._size = 0  # of the vocabulary, known from the first law on

    def __call__(self, paths: Sequence[_Path]) -> Float[Tensor, "n V"]:
        """q behind each path, zero where nothing is to follow."""
        if not self._looks:
            return self._q(self._law(paths), paths).nan_to_num(0.0)
        onward = [self._goes_on(path, paths) for path in paths]
        asked = [path for path, goes_on in zip(paths, onward, strict=True) if goes_on]
        if not asked:
            return torch.zeros(len(paths), self._size)
        law = self._law(asked)
        self._size = law.scores.shape[-1]
        ends = unsure(self._request.budget, law)
        self._closed |= {path for path, end in zip(asked, ends, strict=True) if end}
        self._known |= dict(zip(asked, sureness(law), strict=True))
        q = self._q(law, asked).nan_to_num(0.0)
        found = q.new_zeros(len(paths), self._size)
        found[torch.tensor(onward, device=q.device)] = q
        return found

    def _law(self, paths: Sequence[_Path]) -> Law:
        request = self._request
        return request.pipeline.law(self._logits(paths), Places(request.history, tuple(paths)))

    def _q(self, law: Law, paths: Sequence[_Path]) -> Tensor:
        request = self._request
        if law.greedy:
            return sureness(law)
        if not request.coupled:
            return law.probs.clone()
        positions = [request.round_start + len(path) for path in paths]
        return request.noise.perturbed(law, positions).softmax(-1)

    def _goes_on(self, path: _Path, level: Sequence[_Path]) -> bool:
        """Decided by what is in the tree already: the laws above, and the symbols of the path."""
        budget = self._request.budget
        if not path:
            return True
        alike = [self._reached(other) for other in level if len(other) == len(path)]
        gone = thin(budget, len(path), sum(alike)) or self._reached(path) < budget.reach
        return path[:-1] not in self._closed and not gone

    def _reached(self, path: _Path) -> float:
        """The product of q along a path."""
        if path not in self._worth:
            above = self._known[path[:-1]]
            self._worth[path] = self._reached(path[:-1]) * float(above[path[-1]])
        return self._worth[path]


def refuse_chains(name: str, context: Context) -> None:
    """Hold a target to scoring trees.

    Raises:
        UnsupportedError: it scores chains only.
    """
    if not context.trees or not all(takes_trees(context, row) for row in context.prompts):
        raise UnsupportedError(
            f"{name} with a structure drafts trees, and its target scores chains only (parallel slots, or a "
            "cache of its own). Leave the structure out."
        )


def grows_trees(
    name: str, target: Target, context: Context, structure: Structure, *, guidance: bool
) -> DraftSession:
    """A draft model over the rows of a batch, whose drafts grow by ``structure``.

    Raises:
        IncompatibleModelsError: the vocabularies do not match.
        UnsupportedError: a target, or a draft model, that scores chains only.
    """
    refuse_chains(name, context)
    can = target.capabilities
    if not can.supports_tree:
        raise UnsupportedError(
            f"{name} with a structure runs trees, and its draft model scores chains only ({can.why}). Leave "
            "the structure out."
        )
    return _Session(ModelRows(name, target, context, guidance=guidance), structure)


class _Session:
    """Trees of each row, one row after the other."""

    def __init__(self, rows: ModelRows, structure: Structure) -> None:
        self._rows, self._structure = rows, structure

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._rows.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """A tree for each row."""
        return [self._grown(request) if request.budget.nodes > 0 else Draft.empty() for request in requests]

    def _grown(self, request: Request) -> Draft:
        row, ids = request.row, request.history.ids

        def logits(paths: Sequence[_Path]) -> Tensor:
            tree = PrefixTree(room=MAX_NODES)
            places = [tree.insert(path) + 1 for path in paths]
            # The last committed symbol is run again: behind it the tree of the level before is gone.
            self._rows.keep(row, len(ids) - 1)
            found = self._rows.score({row: (ids, tree.draft())})[row]
            self._rows.commit({row: ()})
            return found[torch.tensor(places, device=found.device)]

        return grown(self._structure, request, logits)

    def observe(self, row: int, observation: Observation) -> None:
        """The cache holds committed symbols only."""

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._rows.drop(rows)
