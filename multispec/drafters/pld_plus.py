"""PLD+: of all places where the last symbol stood before, the one that the target saw in the same light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.drafters.references import require_at_least
from multispec.drafters.self_draft import Itself
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class PLDPlus:
    """Copy what followed the match whose place resembles this one most to the target itself.

    Somasundaram et al. (2024), "PLD+: Accelerating LLM Inference by Leveraging Language Model Artifacts",
    section 3: of the places j < t that hold the last symbol, x_j = x_t, the draft is what follows

        j* = argmax_j cos(h_{j-1}, h_{t-1})

    with hidden states h of one ``layer``; the state of x_t itself is not known before it is run. Of equals
    the latest. What is compared here are the values of that layer, v = W_V norm(h), of all heads: the cache
    of the target holds them for every symbol, so nothing is run again and nothing is stored. ``layer`` is a
    third of the way up where none is named. Of more than ``candidates`` places the latest are compared. A
    copy that runs into the end of the text goes on into itself, as in ``prompt_lookup``.

    Raises:
        UsageError: nothing to draft, nothing to compare, or a layer below 0.

    >>> PLDPlus().candidates
    64
    """

    name: ClassVar[str] = "pld_plus"
    paper: ClassVar[str] = "Somasundaram et al. 2024, arXiv 2412.01447"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 10
    candidates: int = 64
    layer: int | None = None

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, candidates=1)
        if self.layer is not None:
            require_at_least(self.name, self, layer=0)

    def begin(self, context: Context) -> DraftSession:
        """Find the target's cache.

        Raises:
            UnsupportedError: a target whose cache cannot be read, or slots that are parallel.
            UsageError: a layer that the target does not have.
        """
        itself = Itself(context, self.name)
        layer = itself.layers // 3 if self.layer is None else self.layer
        if layer >= itself.layers:
            raise UsageError(
                f"pld_plus compares values of layer {layer}, and this target has layers 0 to "
                f"{itself.layers - 1}. Name one of them, or leave layer out."
            )
        return _Session(self, itself, layer)


@dataclass
class _Places:
    """Where every symbol of a row stood."""

    where: dict[int, list[int]] = field(default_factory=dict)
    done: int = 0

    def before(self, ids: Sequence[int], first: int) -> list[int]:
        """Places of the last symbol before the last one; those without a symbol before them are no use."""
        for place in range(max(self.done, first + 1), len(ids) - 1):
            self.where.setdefault(ids[place], []).append(place)
        self.done = max(len(ids) - 1, 0)
        return self.where.get(ids[-1], [])


class _Session:
    calls = 0

    def __init__(self, asked: PLDPlus, itself: Itself, layer: int) -> None:
        self._asked, self._itself, self._layer = asked, itself, layer
        self._rows = {row: _Places() for row in itself.context.prompts}

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Copy, row by row."""
        return [self._copied(request) for request in requests]

    def _copied(self, request: Request) -> Draft:
        ids, first = request.history.ids, request.history.first
        if len(ids) - first < 2:
            return Draft.empty()
        places = self._rows[request.row].before(ids, first)[-self._asked.candidates :]
        if not places:
            return Draft.empty()
        return Draft.chain(self._following(ids, self._likest(request, places) + 1, request.budget.nodes))

    def _likest(self, request: Request, places: Sequence[int]) -> int:
        """j*; the first branch of a guided row says it."""
        if len(places) == 1:
            return places[0]
        # The last symbol itself has not been run: its predecessor is the last that the cache holds.
        behind = (
            self._itself.session.length(self._itself.branches(request.row)[0]) - len(request.history.ids) + 1
        )
        asked = [place - 1 + behind for place in (*places, len(request.history.ids) - 1)]
        v = self._values(request.row, asked)
        alike = F.cosine_similarity(v[:-1], v[-1:], dim=-1)
        best = len(places) - 1 - int(alike.flip(0).argmax())
        return places[best]

    def _values(self, row: int, places: Sequence[int]) -> Tensor:
        """Values of all heads at these places of the cache ``[n, heads * C]``."""
        session = self._itself.session
        cached = session.cache.ragged[self._layer].values[session.rows.index(self._itself.branches(row)[0])]
        index = torch.tensor(places, device=cached.device)
        return cached[:, index].transpose(0, 1).flatten(1).float()

    def _following(self, ids: Sequence[int], start: int, count: int) -> list[int]:
        period, size = len(ids) - start, self._itself.context.vocab_size
        copied = [ids[start + place % period] for place in range(count)]
        return copied[: next((n for n, x in enumerate(copied) if x >= size), count)]

    def observe(self, row: int, observation: Observation) -> None:
        """What was committed is read from the history, and its values from the cache."""

    def end(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
        for row in rows:
            self._rows.pop(row, None)
