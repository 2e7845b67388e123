"""A draft model over the rows of a batch: ids in, logits on the target's vocabulary out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.branches import begin
from multispec.drafters.fitting import fit, go_back, shown
from multispec.errors import IncompatibleModelsError, UnsupportedError
from multispec.protocols import MAX_NODES, Context, Target, TargetSession
from multispec.stream import Draft
from multispec.tree import chain_parents

# Families pad one tokenizer's vocabulary to different multiples.
_PADDING = 512
# So many symbols are run at once when the model has fallen behind.
_CHUNK = 128


class ModelRows:
    """Runs a model behind given ids, with drafts of its own behind them; knows what its caches hold.

    Symbols that only the target has are shown to the model as its last one.

    Raises:
        IncompatibleModelsError: the vocabularies do not match.
        UnsupportedError: slots that are parallel, on either side.
    """

    def __init__(self, name: str, target: Target, context: Context, *, guidance: bool = True) -> None:
        _check(name, target, context)
        self._context = context
        self._rows = {row: place for place, row in enumerate(context.prompts)}
        self._largest = target.spec.vocab_size - 1
        shared = target.spec.prompt_size is None
        prompts = [shown(prompt, self._largest, shared, guidance) for prompt in context.prompts.values()]
        # A draft may run past a row's end by what the target has not verified yet.
        room = [context.capacity[row] + MAX_NODES for row in context.prompts]
        self._session: TargetSession = begin(target, prompts, room, MAX_NODES + _CHUNK)
        self._session.prefill()
        self._ahead: dict[int, int] = {}
        self.calls = 1

    def score(self, asked: Mapping[int, tuple[Sequence[int], Draft]]) -> dict[int, Float[Tensor, "D1 V"]]:
        """Logits behind the ids of each row, and behind every node of its draft, in one pass.

        What has not been run of the ids yet is run with it; ``commit`` has to follow.
        """
        behind = self._caught_up(asked)
        self._ahead = {row: len(part) - 1 for row, part in behind.items()}
        found = self._run(behind, {row: draft for row, (_, draft) in asked.items()})
        return {row: self._fit(logits[self._ahead[row] :]) for row, logits in found.items()}

    def commit(self, paths: Mapping[int, Sequence[int]]) -> None:
        """Keep the ids and, of what was scored last, the nodes of each path."""
        kept = {
            row: (*range(self._ahead[row]), *(node + self._ahead[row] for node in path))
            for row, path in paths.items()
        }
        self._session.commit([self._rows[row] for row in kept], list(kept.values()))

    def keep(self, row: int, length: int) -> None:
        """Forget everything behind the first ``length`` symbols of a row.

        Raises:
            UnsupportedError: a state that cannot go back so far.
        """
        go_back(self._session, self._rows[row], length)

    def mark(self, rows: Sequence[int]) -> None:
        """Remember where these rows stand, for states that cannot be cropped."""
        for row in rows:
            self._session.checkpoint(self._rows[row])

    def drop(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._session.drop([self._rows[row] for row in rows])

    def _caught_up(self, asked: Mapping[int, tuple[Sequence[int], Draft]]) -> dict[int, Sequence[int]]:
        behind = {row: ids[self._session.length(self._rows[row]) :] for row, (ids, _) in asked.items()}
        while late := {row: part[:_CHUNK] for row, part in behind.items() if len(part) > _CHUNK}:
            self._run(late, {})
            paths = [tuple(range(len(part) - 1)) for part in late.values()]
            self._session.commit([self._rows[row] for row in late], paths)
            behind |= {row: behind[row][_CHUNK:] for row in late}
        return behind

    def _run(self, parts: Mapping[int, Sequence[int]], drafts: Mapping[int, Draft]) -> dict[int, Tensor]:
        known = [[min(x, self._largest) for x in part] for part in parts.values()]
        behind = [drafts.get(row, Draft.empty()) for row in parts]
        whole = [self._joined(part[1:], draft) for part, draft in zip(known, behind, strict=True)]
        places = [self._rows[row] for row in parts]
        scores = self._session.score(places, [part[0] for part in known], whole)
        self.calls += 1
        return dict(zip(parts, scores.logits, strict=True))

    def _joined(self, line: Sequence[int], draft: Draft) -> Draft:
        """The draft behind a line of symbols."""
        first = len(line)
        parents = (*chain_parents(first), *(parent + first for parent in draft.parents))
        tokens = torch.tensor([*line, *(min(x, self._largest) for x in draft.ids)], dtype=torch.long)
        return Draft(tokens=tokens, parents=parents)

    def _fit(self, logits: Tensor) -> Tensor:
        return fit(logits.to(self._context.device), self._context.vocab_size)


def _check(name: str, target: Target, context: Context) -> None:
    widest = max([target.spec.step, *(spec.step for spec in context.specs.values())])
    if widest > 1:
        raise UnsupportedError(
            f"{name} walks symbol by symbol, and {widest} slots of this stream move together. Use jacobi, "
            "row_copy or prompt_lookup."
        )
    if abs(target.spec.vocab_size - context.vocab_size) > _PADDING:
        raise IncompatibleModelsError(
            f"{name} and its target must share a vocabulary: the draft model has {target.spec.vocab_size} "
            f"symbols, the target {context.vocab_size}. Use a draft of the same family, or reencoded or "
            "shared_vocabulary with both tokenizers."
        )
