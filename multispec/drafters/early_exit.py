"""The target drafts with its first layers and its own head, and the verifying pass goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.drafters.self_draft import Itself, SelfDraftSession
from multispec.drafters.skip_layers import check_length
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.targets.fused import FusedForward
from multispec.targets.masks import Attention, Pass
from multispec.targets.views import Sublayers


@dataclass(frozen=True)
class EarlyExit:
    """Draft with the first ``exit_layer`` layers, the last norm and the head; None is half of the layers.

    Elhoushi et al. (2024), LayerSkip, section 4.3: "early exit inference, self-speculative decoding". Keys,
    values and hidden states of the first E layers are what the verifying pass would compute for the same
    symbols: where the target runs in our own arithmetic (``way`` FusedForward), that pass takes them over
    (``reuse``) and runs these layers for the last drafted symbol alone; elsewhere it computes them again.
    Models trained with layer dropout and an early-exit loss draft best; any decoder can. CALM (Schuster et
    al. 2022) leaves where the softmax is confident: exit at E with ``policy=Confidence(threshold)`` is that
    rule with the target as judge.

    Raises:
        UsageError: nothing to draft.
    """

    name: ClassVar[str] = "early_exit"
    paper: ClassVar[str] = "Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710"
    trained: ClassVar[bool] = False
    exit_layer: int | None = None
    num_draft_tokens: int = 5
    reuse: bool = True

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)

    def begin(self, context: Context) -> DraftSession:
        """Make the short target.

        Raises:
            UsageError: an exit that is not inside the target.
            UnsupportedError: a target that cannot be left early.
        """
        itself = Itself(context, self.name)
        exit_layer = itself.layers // 2 if self.exit_layer is None else self.exit_layer
        if not 1 <= exit_layer < itself.layers:
            raise UsageError(
                f"early_exit leaves the target between two of its {itself.layers} layers: got exit_layer="
                f"{exit_layer}. Name one from 1 to {itself.layers - 1}, or use prompt_lookup where the "
                "target has one layer."
            )
        full = itself.forward
        if self.reuse and isinstance(full, FusedForward) and full is itself.session.forward:
            short = _Leaving(full, exit_layer)
            inner = SelfDraftSession(itself, self.num_draft_tokens, _alike, lambda _: short)
            return _ExitSession(itself, inner, short)
        lighter = full.without(Sublayers.whole(range(exit_layer, itself.layers)))
        return SelfDraftSession(itself, self.num_draft_tokens, _alike, lambda _: lighter)


def _alike(request: Request) -> int:
    return 0


class _Leaving:
    """The first layers and the head; remembers what it ran and with what it left, pass by pass."""

    def __init__(self, full: FusedForward, exit_layer: int) -> None:
        self.full, self.exit_layer = full, exit_layer
        self.layers: int = full.layers
        self.attention: Attention = full.attention
        self.like: Tensor = full.like
        self.ran: list[Tensor] = []
        self.left: list[Tensor] = []

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run the first layers."""
        hidden = self.full.through(self.full.embed(ids), step, cache, 0, self.exit_layer)
        self.ran.append(ids.clone())
        self.left.append(hidden)
        return self.full.read_out(hidden, keep)


class _ExitSession:
    """A ``SelfDraftSession`` that tells the target's session what it need not run again."""

    def __init__(self, itself: Itself, inner: SelfDraftSession[int], short: _Leaving) -> None:
        self._itself, self._inner, self._short = itself, inner, short

    @property
    def calls(self) -> int:
        """Passes of the first layers."""
        return self._inner.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Draft, and leave a head start for the next pass where all its rows have one."""
        self._short.ran, self._short.left = [], []
        self._itself.session.next_pass = None
        drafts = self._inner.propose(requests)
        lengths = {request.row: len(draft) for request, draft in zip(requests, drafts, strict=True)}
        known = self._known(lengths)
        if known:
            ids = torch.cat(self._short.ran, 1)[:, :known]
            hidden = torch.cat(self._short.left, 1)[:, :known]
            self._itself.session.next_pass = _Resuming(self._short, ids, hidden)
        return drafts

    def _known(self, lengths: dict[int, int]) -> int:
        """Columns of the next pass that were run for every row: the root, and all drafted but the last."""
        widths = {int(ids.shape[1]) for ids in self._short.ran}
        walked = {branch for row in lengths for branch in self._itself.branches(row)}
        # A row of the batch that drafts otherwise has to be run from its first layer.
        if widths != {1} or not set(self._itself.session.rows) <= walked:
            return 0
        return min(lengths.values())

    def observe(self, row: int, observation: Observation) -> None:
        """Nothing to roll back."""
        self._inner.observe(row, observation)

    def retract(self, row: int, length: int) -> None:
        """What is behind is not drafted from any more, so the head start is void."""
        self._itself.session.next_pass = None

    def end(self, rows: Sequence[int]) -> None:
        """Nothing to free."""
        self._inner.end(rows)


class _Resuming:
    """The whole target for one pass whose first columns are known up to the exit."""

    def __init__(self, short: _Leaving, ids: Tensor, hidden: Tensor) -> None:
        self._short, self._ids, self._hidden = short, ids, hidden
        self.layers: int = short.layers
        self.attention: Attention = short.attention
        self.like: Tensor = short.like

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run the first layers where they are not known, then all others."""
        full, exit_layer, known = self._short.full, self._short.exit_layer, self._ids.shape[1]
        if ids.shape[1] <= known or not torch.equal(ids[:, :known], self._ids):
            return full(ids, step, cache, keep)
        with _behind(cache, known, ids.shape[1]):
            rest = full.through(full.embed(ids[:, known:]), _rest(step, known), cache, 0, exit_layer)
        hidden = torch.cat([self._hidden, rest], 1)
        return full.read_out(full.through(hidden, step, cache, exit_layer), keep)


def _rest(step: Pass, known: int) -> Pass:
    """The pass without its first columns."""
    masks = {kind: None if mask is None else mask[:, :, known:] for kind, mask in step.masks.items()}
    table = None if step.table is None else step.table[:, known:]
    return step._replace(masks=masks, table=table, start=step.start + known)


class _behind:  # noqa: N801
    """The cache as it is behind the first columns of a pass."""

    def __init__(self, cache: RaggedCache, known: int, width: int) -> None:
        self._ledger, self._known, self._width = cache.ledger, known, width
        self._device: Any = cache.ragged[0].device

    def __enter__(self) -> None:
        self._lengths = list(self._ledger.lengths)
        self._ledger.lengths = [length + self._known for length in self._lengths]
        self._ledger.open(self._width - self._known, self._device)

    def __exit__(self, *error: object) -> None:
        self._ledger.lengths = self._lengths
        self._ledger.open(self._width, self._device)
