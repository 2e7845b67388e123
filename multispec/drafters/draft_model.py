"""A smaller model drafts, one symbol after the other, in a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.branches import begin, join
from multispec.drafters.fitting import fit as fit
from multispec.drafters.fitting import go_back, shown
from multispec.drafters.stopping import Stopping
from multispec.drafters.structured import grows_trees
from multispec.errors import IncompatibleModelsError, UnsupportedError, UsageError
from multispec.processing import Places
from multispec.protocols import MAX_NODES, CacheBytes, Context, DraftSession, Request, Target, TargetSession
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, Observation, Prompt
from multispec.structures import Structure, structure_of
from multispec.targets import target_for
from multispec.targets.loading import load_model

# Families pad one tokenizer's vocabulary to different multiples; more than that is another
# tokenizer.
_PADDING = 512
# Symbols that are run at once at least, where the draft has fallen behind.
_CHUNK = 32


@dataclass(frozen=True)
class DraftModel:
    """Draft ``num_draft_tokens`` symbols with a smaller model, one after the other.

    Leviathan et al. (2023), section 2; Chen et al. (2023), algorithm 2.

    ``model`` is a transformers model, a folder or a hub id. It is driven directly, symbol by
    symbol, with the processors, settings and noise of the row it drafts for; it may sit on another
    device. Vocabularies that differ by padding only are fine. With ``guidance=False`` it runs the
    conditional branch only, at half the cost, and guesses less well where rows are guided.

    With a ``structure``, a name such as "rsd_s" or an object of ``multispec.structures``, it drafts trees
    that grow by it, row by row: a pass for each time that the structure asks.

    Raises:
        UsageError: nothing to draft.
        UnknownNameError: no such structure.
        ModelLoadError: the model cannot be read.
    """

    name: ClassVar[str] = "draft_model"
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192"
    trained: ClassVar[bool] = True
    model: Any
    num_draft_tokens: int = 5
    guidance: bool = True
    structure: str | Structure | None = None
    _target: Target = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_draft_tokens < 1:
            raise UsageError(f"num_draft_tokens must be >= 1: got {self.num_draft_tokens}.")
        owned = isinstance(self.model, (str, Path))
        model = load_model(self.model) if owned else self.model
        object.__setattr__(self, "_target", target_for(model, owned=owned))
        if self.structure is not None:
            object.__setattr__(self, "structure", structure_of(self.structure))

    def begin(self, context: Context) -> DraftSession:
        """Run the prompts through the draft model.

        Raises:
            IncompatibleModelsError: the vocabularies do not match.
            UnsupportedError: slots that are parallel, on either side; a structure where trees are not scored.
        """
        self._refuse_steps(context)
        own, theirs = self._target.spec.vocab_size, context.vocab_size
        if abs(own - theirs) > _PADDING:
            raise IncompatibleModelsError(
                f"Draft and target must share a vocabulary: the draft has {own} symbols, the target "
                f"{theirs}. "
                "Use a draft of the same family, or a drafter that needs no vocabulary (prompt_lookup)."
            )
        if self.structure is not None:
            grown = structure_of(self.structure)
            return grows_trees(self.name, self._target, context, grown, guidance=self.guidance)
        return DraftModelSession(self._target, context, self.num_draft_tokens, self.guidance)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes of the draft model's cache for a row that may grow to so many symbols.

        Raises:
            UsageError: a draft model that does not know.
        """
        if not isinstance(self._target, CacheBytes):
            raise UsageError(
                f"max_memory counts the draft model's cache too, and {type(self._target).__name__} has no "
                "method cache_bytes. Limit the rows with batch_size."
            )
        # A tree may need room behind what a chain needs.
        return self._target.cache_bytes(prompt, capacity + MAX_NODES)

    def _refuse_steps(self, context: Context) -> None:
        widest = max([self._target.spec.step, *(spec.step for spec in context.specs.values())])
        if widest > 1:
            raise UnsupportedError(
                f"draft_model walks symbol by symbol, and {widest} slots of this stream move together: a "
                "draft model for parallel slots is not there yet. Use jacobi, row_copy or prompt_lookup."
            )


@dataclass
class _Walk:
    """One row while it is being drafted for."""

    request: Request
    place: int
    start: int
    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        self.stopping = Stopping(self.request.budget)


class DraftModelSession:
    """The draft model over the rows of a batch."""

    def __init__(self, target: Target, context: Context, nodes: int, guidance: bool = True) -> None:
        self._context, self._guidance = context, guidance
        self._rows = {row: place for place, row in enumerate(context.prompts)}
        self._next = len(self._rows)
        self._chunk = max(nodes, _CHUNK)
        # Symbols that only the target has are any symbol to the draft: whatever it then says is advice.
        self._largest = target.spec.vocab_size - 1
        self._shared = target.spec.prompt_size is None
        self._session: TargetSession = begin(target, *self._begun(context), self._chunk)
        self._session.prefill()
        self.calls = 1

    def _begun(self, context: Context) -> tuple[list[Prompt], list[int]]:
        """Prompts as the draft model reads them, and the room they need."""
        rows = context.prompts.items()
        prompts = [shown(prompt, self._largest, self._shared, self._guidance) for _, prompt in rows]
        # A draft may run past the row's capacity by what the target has not verified yet.
        return prompts, [context.capacity[row] + self._chunk for row, _ in rows]

    def join(self, context: Context, /) -> bool:
        """Run the prompts of new rows behind the others; False where the model cannot take them in."""
        places = range(self._next, self._next + len(context.prompts))
        if join(self._session, places, *self._begun(context)) is None:
            return False
        self._rows |= dict(zip(context.prompts, places, strict=True))
        self._next = places.stop
        self.calls += 1
        return True

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Catch up with what was committed, then draft all rows in lockstep."""
        if len(requests) == 1 and requests[0].budget.nodes > 0:
            return [self._alone(requests[0])]
        asked = [request for request in requests if request.budget.nodes > 0]
        walks = {r.row: _Walk(r, self._rows[r.row], r.round_start) for r in asked}
        live = list(walks.values())
        for row, logits in self._catch_up(asked).items():
            self._draw(walks[row], logits)
        while live := [walk for walk in live if not walk.done]:
            self._step(live)
        empty = Draft.empty()
        return [_draft(walks[r.row]) if r.row in walks else empty for r in requests]

    def _alone(self, request: Request) -> Draft:
        """Draft for one row, with nobody to wait for."""
        place = self._rows[request.row]
        walk = _Walk(request, place, request.round_start)
        behind = request.history.ids[self._session.length(place) :]
        while len(behind) > self._chunk:
            self._run([request.row], [behind[: self._chunk]])
            behind = behind[self._chunk :]
        known = [min(token, self._largest) for token in behind]
        self.calls += self._session.walk(place, known, partial(self._chosen, walk))
        return _draft(walk)

    def _chosen(self, walk: _Walk, logits: Tensor) -> int | None:
        """The next symbol to run, or None where the draft is done."""
        self._draw(walk, self._fit(logits))
        return None if walk.done else walk.tokens[-1]

    def _catch_up(self, requests: Sequence[Request]) -> dict[int, Tensor]:
        logits: dict[int, Tensor] = {}
        behind = {r.row: r.history.ids[self._session.length(self._rows[r.row]) :] for r in requests}
        while behind:
            rows = list(behind)
            parts = [behind[row][: self._chunk] for row in rows]
            logits |= self._run(rows, parts)
            behind = {row: behind[row][self._chunk :] for row in rows if len(behind[row]) > self._chunk}
        for request in requests:
            self._session.checkpoint(self._rows[request.row])
        return logits

    def _run(self, rows: Sequence[int], parts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """Commit these symbols to the draft's cache; the logits after each row's last."""
        places = [self._rows[row] for row in rows]
        parts = [[min(token, self._largest) for token in part] for part in parts]
        drafts = [Draft.chain(part[1:]) if len(part) > 1 else Draft.empty() for part in parts]
        scores = self._session.score(places, [part[0] for part in parts], drafts)
        self._session.commit(places, [tuple(range(len(draft))) for draft in drafts])
        self.calls += 1
        return {row: self._fit(logits[-1:]) for row, logits in zip(rows, scores.logits, strict=True)}

    def _step(self, walks: Sequence[_Walk]) -> None:
        places = [walk.place for walk in walks]
        found = self._session.extend(places, [walk.tokens[-1] for walk in walks])
        self.calls += 1
        for walk, logits in zip(walks, found, strict=True):
            self._draw(walk, self._fit(logits))

    def _fit(self, logits: Tensor) -> Tensor:
        context = self._context
        if logits.device == context.device and logits.shape[-1] == context.vocab_size:
            return logits
        return fit(logits.to(context.device), context.vocab_size)

    def _draw(self, walk: _Walk, logits: Tensor) -> None:
        request, count = walk.request, len(walk.tokens)
        law = request.pipeline.law(logits, Places(request.history, (tuple(walk.tokens),)))
        if request.coupled:
            walk.tokens.append(int(request.noise.symbols(law, (walk.start + count,))))
        else:
            walk.tokens.append(_own_draw(law, request, walk.start + count))
            walk.q.append(law.probs)
        # The unsure symbol is kept: dropping a drawn symbol would bias the output.
        walk.done = walk.stopping.behind(law, walk.tokens[-1])

    def observe(self, row: int, observation: Observation) -> None:
        """Roll the draft's cache back to what was committed."""
        drafted = observation.draft.ids[:-1]
        # The last symbol is run next, also where it happens to be the one that was drafted there.
        wrong = len(drafted) - _common(drafted, observation.emitted[:-1])
        if wrong:
            place = self._rows[row]
            self._session.rewind(place, self._session.length(place) - wrong)

    def retract(self, row: int, length: int) -> None:
        """Forget what was drafted behind the first ``length`` symbols of a row.

        Raises:
            UnsupportedError: a state that cannot go back so far.
        """
        go_back(self._session, self._rows[row], length)

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._session.drop([self._rows.pop(row) for row in rows])


def _own_draw(law: Law, request: Request, position: int) -> int:
    """A draw from noise that the verifier does not use."""
    return int(request.noise.choose(law.probs, [position], Purpose.DRAFT, request.round_start))


def _draft(walk: _Walk) -> Draft:
    return Draft.chain(walk.tokens, torch.cat(walk.q) if walk.q else None)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading symbols agree."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
