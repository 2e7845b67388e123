"""Who sees whom in one pass over ragged rows: committed entries, ancestors, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from multispec.tree import ancestor_mask, depths, is_chain


@dataclass(frozen=True)
class Attention:
    """The layer kinds of a model: a window for ``sliding_attention``, a chunk for ``chunked_attention``."""

    kinds: tuple[str, ...]
    window: int | None = None
    chunk: int | None = None


class Pass(NamedTuple):
    """One pass: positions ``[B, Q]``, and an additive mask ``[B, 1, Q, L]`` per layer kind (None: causal).

    A single row without branches runs from ``start`` to ``end``; others give their positions as ``table``.
    ``rows`` are the session's numbers of the rows of the batch; a ``prefill`` runs prompts. Where much of a
    pass is padding, ``real`` are the symbols that are not, as places in ``[B * Q]``: nobody reads the others.
    """

    masks: Mapping[str, Tensor | None]
    start: int = 0
    end: int = 0
    table: Tensor | None = None
    rows: Sequence[int] = (0,)
    prefill: bool = False
    real: Tensor | None = None

    def positions(self, device: torch.device) -> Tensor:
        """The position of every symbol of the pass."""
        if self.table is not None:
            return self.table
        return torch.arange(self.start, self.end, device=device)[None]


def plan(
    lengths: Sequence[int],
    parents: Sequence[tuple[int, ...]],
    width: int,
    attention: Attention,
    like: Tensor,
    rows: Sequence[int] = (0,),
    prefill: bool = False,
) -> Pass:
    """Positions and masks of a pass in which row b runs its root and the draft ``parents[b]``.

    ``width`` is Q, the root and the largest draft; shorter rows are padded and their padding is
    never read.
    """
    chain = all(is_chain(tree) for tree in parents)
    end = max(lengths) + width
    if len(lengths) == 1 and chain and not _limited(attention, end):
        masks = dict.fromkeys(attention.kinds, chain_mask(lengths[0], width, like))
        return Pass(masks, start=lengths[0], end=end, rows=rows, prefill=prefill)
    steps = torch.arange(width, device=like.device)
    starts = torch.tensor(lengths, device=like.device)[:, None]
    depth = steps.expand(len(parents), -1) if chain else _depths(parents, width).to(like.device)
    positions = starts + depth
    visible = _visible(starts, parents, steps, end, chain)
    keys = _key_positions(starts, depth, end)
    masks = {
        kind: _additive(_kind(visible, positions, keys, kind, attention), like) for kind in attention.kinds
    }
    return Pass(masks, table=positions, rows=rows, prefill=prefill)


def again(length: int, width: int, attention: Attention, like: Tensor, row: int = 0) -> Pass:
    """A pass of one row that runs its last ``width`` committed symbols anew, behind all that is committed.

    They stand where they stood, see what was before them and each other, and not what they were.
    """
    start = length - width
    steps = torch.arange(width, device=like.device)
    slots = torch.arange(length + width, device=like.device)
    keys = torch.where(slots < length, slots, slots - width)
    queries = start + steps
    visible = (keys <= queries[:, None]) & ((slots < start) | (slots >= length))
    masks = {
        kind: _additive(_kind(visible[None], queries[None], keys[None], kind, attention), like)
        for kind in attention.kinds
    }
    return Pass(masks, table=queries[None], rows=[row])


def padded(
    start: int, width: int, bucket: int, attention: Attention, like: Tensor, limit: int | None = None
) -> Pass:
    """A pass of one row over ``width`` symbols behind ``start``, and over keys that end with a whole bucket.

    ``end`` of the pass is that of the keys; no symbol sees what is behind it. Padding that is behind the
    ``limit`` of a model stands at its last position.
    """
    end = -(-(start + width) // bucket) * bucket
    queries = torch.arange(start, start + width, device=like.device)[None]
    keys = torch.arange(end, device=like.device)[None]
    visible = keys[:, None, :] <= queries[:, :, None]
    masks = {
        kind: _additive(_kind(visible, queries, keys, kind, attention), like) for kind in attention.kinds
    }
    table = queries if limit is None else queries.clamp(max=limit - 1)
    return Pass(masks, start=start, end=end, table=table)


def _limited(attention: Attention, end: int) -> bool:
    limits = [limit for limit in (attention.window, attention.chunk) if limit is not None]
    return any(kind != "full_attention" for kind in attention.kinds) and end > min(limits, default=end)


def chain_mask(start: int, width: int, like: Tensor) -> Tensor | None:
    """The additive mask ``[1, 1, width, start + width]`` of a chain behind ``start`` symbols; None where
    attention needs none.
    """
    if width == 1 or start == 0:
        # One query sees all; with nothing committed the square causal mask is built in.
        return None
    if width > _BAND:  # a piece of a long prompt: nobody wants that mask again
        lowest = torch.finfo(like.dtype).min
        whole = torch.full((width, start + width), lowest, dtype=like.dtype, device=like.device)
        return whole.triu_(start + 1)[None, None]
    # Queries that begin at ``start`` see what the band's rows see when it is shifted to end with them.
    room = _BAND * (1 + (start + width) // _BAND)
    band = _band(_BAND * (1 + width // _BAND), room, like.dtype, like.device)
    return band[None, None, :width, room - start : room + width]


_BAND = 256


@lru_cache(maxsize=4)
def _band(rows: int, room: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive ``[rows, room + rows]`` in which row i sees the first ``room + i + 1`` columns."""
    lowest = torch.finfo(dtype).min
    return torch.full((rows, room + rows), lowest, dtype=dtype, device=device).triu_(room + 1)


def _depths(parents: Sequence[tuple[int, ...]], width: int) -> Tensor:
    table = torch.zeros((len(parents), width), dtype=torch.long)
    for row, tree in enumerate(parents):
        table[row, 1 : len(tree) + 1] = torch.tensor(depths(tree), dtype=torch.long)
    return table


def _visible(
    starts: Tensor, parents: Sequence[tuple[int, ...]], steps: Tensor, end: int, chain: bool
) -> Tensor:
    keys = torch.arange(end, device=starts.device)
    if chain:
        return keys <= (starts + steps)[:, :, None]
    visible = (keys < starts)[:, None, :].expand(-1, len(steps), -1).clone()
    for row, tree in enumerate(parents):
        start, size = int(starts[row]), len(tree) + 1
        visible[row, :size, start : start + size] = ancestor_mask(tree).to(visible.device)
        visible[row, size:, start] = True  # padding must see something, or softmax divides by zero
    return visible


def _key_positions(starts: Tensor, depth: Tensor, end: int) -> Tensor:
    keys = torch.arange(end, device=starts.device).expand(len(starts), -1).clone()
    index = (starts + torch.arange(depth.shape[1], device=starts.device)).clamp(max=end - 1)
    return keys.scatter(1, index, starts + depth)


def _kind(visible: Tensor, queries: Tensor, keys: Tensor, kind: str, attention: Attention) -> Tensor:
    if kind == "sliding_attention" and attention.window is not None:
        return visible & (queries[:, :, None] - keys[:, None, :] < attention.window)
    if kind == "chunked_attention" and attention.chunk is not None:
        return visible & (queries[:, :, None] // attention.chunk == keys[:, None, :] // attention.chunk)
    return visible


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~visible, torch.finfo(like.dtype).min)[:, None]
