"""A draft model grows the tree of EAGLE-2, as deep as a policy lets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from multispec.drafters.model_rows import ModelRows
from multispec.drafters.references import require_at_least
from multispec.drafters.stopping import sureness, thin, unsure
from multispec.errors import UnsupportedError
from multispec.processing import Places
from multispec.protocols import MAX_NODES, Context, DraftSession, Request, Target
from multispec.sampling import Law
from multispec.stream import Draft, Observation
from multispec.structures import PrefixTree, eagle2
from multispec.targets import target_for
from multispec.targets.loading import load_model


@dataclass(frozen=True)
class DraftTree:
    """Beams of ``width`` for ``depth`` levels; of all candidates the ``num_draft_tokens`` worth most.

    The tree of Li et al. (2024, EAGLE-2, sections 4.1 and 4.2), grown by any draft model: a pass for each
    level. A node is worth the product of q along its path; under a ``coupled`` verifier the q of log q + G,
    with the target's own noise, so that the best child is the likeliest to be the target's symbol. Policies
    may end it early: ``dynamic_depth`` for all beams at once (Brown et al. 2024), ``path_confidence`` beam by
    beam, and those that look at a law for the beams behind an unsure one. ``model`` and ``guidance`` are
    those of ``draft_model``.

    Raises:
        UsageError: no nodes, width or depth.
        ModelLoadError: the model cannot be read.
    """

    name: ClassVar[str] = "draft_tree"
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2406.16858; Brown et al. 2024, arXiv 2409.00142"
    trained: ClassVar[bool] = True
    model: Any
    num_draft_tokens: int = 60
    width: int = 10
    depth: int = 6
    guidance: bool = True
    _target: Target = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, width=1, depth=1)
        owned = isinstance(self.model, (str, Path))
        model = load_model(self.model) if owned else self.model
        object.__setattr__(self, "_target", target_for(model, owned=owned))

    def begin(self, context: Context) -> DraftSession:
        """Run the prompts through the draft model.

        Raises:
            IncompatibleModelsError: the vocabularies do not match.
            UnsupportedError: a model that scores chains only, on either side, or parallel slots.
        """
        if not (context.trees and self._target.capabilities.supports_tree):
            side = "draft model" if context.trees else "target"
            why = f" ({self._target.capabilities.why})" if context.trees else ""
            raise UnsupportedError(
                f"draft_tree drafts trees, and its {side} scores chains only{why}. Use draft_model, which "
                "drafts chains."
            )
        rows = ModelRows(self.name, self._target, context, guidance=self.guidance)
        return DraftTreeSession(rows, self.width, self.depth)


class DraftTreeSession:
    """The draft model over the rows of a batch, whose trees grow one row after the other."""

    def __init__(self, rows: ModelRows, width: int, depth: int) -> None:
        self._rows, self._width, self._depth = rows, width, depth

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._rows.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """A tree of point masses for each row."""
        return [self._grown(request) if request.budget.nodes > 0 else Draft.empty() for request in requests]

    def _grown(self, request: Request) -> Draft:
        growing = _Growing(self._rows, request)
        found = eagle2(
            growing.expand,
            nodes=request.budget.nodes,
            width=min(self._width, request.budget.nodes),
            depth=self._depth,
            further=growing.further,
        )
        return found.draft()

    def observe(self, row: int, observation: Observation) -> None:
        """The cache holds committed symbols only."""

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._rows.drop(rows)


class _Growing:
    """A tree while it grows: what the model says behind its paths, and which of them go on."""

    def __init__(self, rows: ModelRows, request: Request) -> None:
        self._rows, self._request = rows, request
        self._unsure: set[tuple[int, ...]] = set()

    def expand(self, paths: Sequence[tuple[int, ...]]) -> Float[Tensor, "n V"]:
        """q behind each path, from a pass over all of them."""
        tree = PrefixTree(room=MAX_NODES)
        places = [tree.insert(path) + 1 for path in paths]
        law = self._law(self._logits(tree.draft())[places], paths)
        ends = unsure(self._request.budget, law)
        self._unsure |= {path for path, end in zip(paths, ends, strict=True) if end}
        return self._q(law, paths).nan_to_num(0.0)

    def _logits(self, draft: Draft) -> Tensor:
        row, ids = self._request.row, self._request.history.ids
        # Each level runs the last committed symbol again: behind it the tree of the level before is gone.
        self._rows.keep(row, len(ids) - 1)
        logits = self._rows.score({row: (ids, draft)})[row]
        self._rows.commit({row: ()})
        return logits

    def _law(self, logits: Tensor, paths: Sequence[tuple[int, ...]]) -> Law:
        return self._request.pipeline.law(logits, Places(self._request.history, tuple(paths)))

    def _q(self, law: Law, paths: Sequence[tuple[int, ...]]) -> Tensor:
        request = self._request
        if law.greedy or not request.coupled:
            return sureness(law)
        positions = [request.round_start + len(path) for path in paths]
        return request.noise.perturbed(law, positions).softmax(-1)

    def further(self, paths: Sequence[tuple[int, ...]], values: Sequence[float]) -> list[bool]:
        """Those that the budget lets go on."""
        budget = self._request.budget
        if paths and thin(budget, len(paths[0]), sum(values)):
            return [False] * len(paths)
        pairs = zip(paths, values, strict=True)
        return [path[:-1] not in self._unsure and value >= budget.reach for path, value in pairs]
